"""Running text: where it comes from, how it is split, its tokens, and the streams that a model reads."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_rnn_seq2seq.data.arguments import DataArguments, TokenizerArguments
from hf_rnn_seq2seq.data.contiguous import ContiguousLoader, ContiguousPlan, ContiguousText
from hf_rnn_seq2seq.data.running_text import build_tokenizer, load_text, split_off, token_ids
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.run_directory import read_tokenizer

TEXT = "To be, or not to be:\n\tthat is the question;\n\n  Whether 'tis nobler + in the mind é 👍\n"


def of_text(**options: Any) -> DataArguments:
    return DataArguments(**{"task": "text", **options})


# ------------------------------------------------------------------------------------------------ corpora


def test_the_documentation_of_python_needs_no_download() -> None:
    text = load_text(of_text(dataset_name="pydoc", test_fraction=0.1))
    counts = text.description["characters"]
    assert sum(counts.values()) > 300_000 and 'The "if" statement' in text.splits["train"][0]
    assert counts["test"] == pytest.approx(sum(counts.values()) / 10, rel=1e-4)
    assert counts["validation"] == pytest.approx(0.9 * sum(counts.values()) / 10, rel=1e-4)
    assert text.description["license"] == "PSF-2.0" and text.description["config"].startswith("Python 3.")


def test_the_held_out_texts_are_the_last_parts(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a" * 60, encoding="utf-8")
    with gzip.open(tmp_path / "two.txt.gz", "wt", encoding="utf-8") as file:
        file.write("b" * 40)
    files = f"{tmp_path / 'one.txt'},{tmp_path / 'two.txt.gz'}"
    text = load_text(of_text(train_file=files, test_fraction=0.1, validation_fraction=0.5))
    assert text.splits == {"train": ["a" * 45], "validation": ["a" * 15, "b" * 30], "test": ["b" * 10]}
    whole = load_text(of_text(train_file=files, validation_fraction=0))
    assert whole.splits == {"train": ["a" * 60, "b" * 40]}
    own = load_text(of_text(train_file=str(tmp_path / "one.txt"), validation_file=str(tmp_path / "two.txt.gz")))
    assert own.splits == {"train": ["a" * 60], "validation": ["b" * 40]}
    prints = [each.description["fingerprint"] for each in (text, whole, own)]
    assert len({*prints}) == 3


def test_a_cut_between_documents_leaves_no_empty_one() -> None:
    assert split_off(["abc", "def"], 0.5, "test_fraction") == (["abc"], ["def"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "train_file=None: give a text file, or dataset_name='pydoc'"),
        ({"dataset_name": "cldr"}, "dataset_name='cldr': task='text' has 'pydoc'"),
        ({"train_file": "missing.txt"}, "missing.txt"),
        ({"train_file": "EMPTY"}, "is empty"),
        ({"train_file": "SHORT", "validation_fraction": 0.01}, "validation_fraction=0.01: leaves nothing"),
    ],
    ids=str,
)
def test_texts_that_cannot_be_used(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "EMPTY").write_text("")
    (tmp_path / "SHORT").write_text("abc")
    places = {name: str(tmp_path / value) for name, value in options.items() if value in ("EMPTY", "SHORT")}
    with pytest.raises(DataError, match=message):
        load_text(of_text(**(options | places)))


# ------------------------------------------------------------------------------------------------ tokenizer


@pytest.mark.parametrize("algorithm", ["letter", "bpe", "char", "unigram"])
def test_a_text_comes_back_as_it_was(algorithm: str, tmp_path: Path) -> None:
    options = TokenizerArguments(tokenizer_algorithm=algorithm, vocab_size=340, min_frequency=1)
    build_tokenizer([TEXT], options).save_pretrained(tmp_path)
    tokenizer = read_tokenizer(tmp_path)
    ids = token_ids(tokenizer, [TEXT])
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer(TEXT)["input_ids"] == [tokenizer.bos_token_id, *ids]  # a prompt begins as a training text does
    assert tokenizer(["To", "be or"], padding=True)["input_ids"][0][:4] != [tokenizer.bos_token_id] * 4
    assert tokenizer.padding_side == "left"
    if algorithm == "letter":
        assert len(ids) == len(TEXT) and len(tokenizer) == 4 + len({*TEXT})


def test_a_text_is_read_as_other_files_are(tmp_path: Path) -> None:
    (tmp_path / "BIG.TXT.GZ").write_bytes(gzip.compress(b"abc\r\n" * 9))
    assert load_text(of_text(train_file=str(tmp_path / "BIG.TXT.GZ"), validation_fraction=0)).splits["train"] == [
        "abc\n" * 9
    ]
    (tmp_path / "wide.txt").write_bytes("abc".encode("utf-16"))
    with pytest.raises(DataError, match="wide.txt, line 1, byte 0: not UTF-8: it is UTF-16; convert it with `iconv"):
        load_text(of_text(train_file=str(tmp_path / "wide.txt")))


def test_documents_are_parted_by_the_end_token() -> None:
    tokenizer = build_tokenizer(["abc"], TokenizerArguments(tokenizer_algorithm="letter", min_frequency=1))
    ids = token_ids(tokenizer, ["ab", "c</s>"])
    assert [*ids[:4]] == [4, 5, 2, 6] and 2 not in ids[4:], "a written end token is text"
    assert tokenizer.unk_token_id in ids[4:]


def test_lower_case_and_rare_characters() -> None:
    options = TokenizerArguments(tokenizer_algorithm="letter", min_frequency=2, lowercase=True)
    tokenizer = build_tokenizer(["aAb Bc"], options)
    assert tokenizer.convert_ids_to_tokens(range(4, len(tokenizer))) == ["a", "b"]
    assert tokenizer.decode(token_ids(tokenizer, ["Ab"])) == "ab"


def test_algorithms_that_lose_spaces_are_refused() -> None:
    with pytest.raises(ArgumentError, match="tokenizer_algorithm='word': loses spaces and line ends"):
        build_tokenizer(["a b"], TokenizerArguments(tokenizer_algorithm="word"))


# ------------------------------------------------------------------------------------------------ streams


def contiguous(tokens: int = 23, length: int = 3) -> ContiguousText:
    return ContiguousText(np.arange(10, 10 + tokens, dtype=np.int32), length, start=1, pad=0)


@pytest.mark.parametrize("streams", [1, 4, 6])
def test_each_token_is_predicted_once_in_an_epoch_after_the_one_before_it(streams: int) -> None:
    plan = ContiguousPlan(contiguous(), streams=streams, seed=5)
    cuts = set()
    for epoch in range(3):
        read: list[list[int]] = [[] for _ in range(streams)]
        inputs: list[list[int]] = [[] for _ in range(streams)]
        for index in range(plan.pieces):
            update = next(plan.updates(epoch, index))
            assert (update.epoch, update.index) == (epoch, index)
            piece = plan.read(update, update.rows)
            assert update.target_tokens == int((piece["labels"] != -100).sum())
            for row in range(streams):
                real = piece["labels"][row] != -100
                read[row] += piece["labels"][row][real].tolist()
                inputs[row] += piece["input_ids"][row][real].tolist()
        assert sorted(sum(read, [])) == list(range(10, 33))
        for labels, before in zip(read, inputs, strict=True):
            assert before == [1, *labels[:-1]]
            assert all(after == (token - 10 + 1) % 23 + 10 for token, after in zip(labels, labels[1:], strict=False))
        cuts.add(plan.cut(epoch))
    assert len(cuts) == 3, "the circle is cut at another place in each epoch"


def test_processes_and_micro_batches_share_the_streams() -> None:
    """Whatever their number, stream n reads the same pieces; a process without a stream gets a filler of weight 0."""
    plan = ContiguousPlan(contiguous(), streams=5, seed=0)
    update = next(plan.updates(1, 1))
    whole = plan.read(update, update.rows)
    for processes, accumulation in ((1, 1), (2, 1), (1, 3), (2, 2), (4, 2)):
        found = {}
        for rank in range(processes):
            loader = ContiguousLoader(plan, rank=rank, processes=processes, accumulation=accumulation)
            for batch in loader.load(update):
                streams = batch.inputs["streams"].tolist()
                assert batch.target_tokens or streams == [5]
                assert not batch.inputs["begins"].any()
                for row, stream in enumerate(streams):
                    if stream < 5:
                        assert stream not in found
                        found[stream] = batch.inputs["input_ids"][row], batch.inputs["labels"][row]
        assert sorted(found) == [0, 1, 2, 3, 4]
        for stream, (inputs, labels) in found.items():
            width = len(inputs)  # a part is as wide as its longest stream
            assert torch.equal(inputs, whole["input_ids"][stream][:width])
            assert torch.equal(labels, whole["labels"][stream][:width])
            assert not (whole["labels"][stream][width:] != -100).any()


def test_more_streams_than_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="per_device_train_batch_size: 9 streams of a text of 8 tokens; give it fewer"):
        ContiguousPlan(contiguous(8), streams=9, seed=0)
