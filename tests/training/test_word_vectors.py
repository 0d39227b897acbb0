"""Pretrained word vectors: files that are read or refused, and the rows of the tables, counted by hand."""

import gzip
import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.training.word_vectors import (
    KINDS,
    embedding_table,
    fill_table,
    load_word_vectors,
    read_vectors,
    wanted_words,
)
from tests.helpers.checkpoints import tiny_bart, tiny_rnn
from tests.scripts.test_train import recipe, train

__all__ = ["recipe"]

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

GLOVE = "the 1 2 3\nhouse 4 5 6\n. . . 7 8 9\nHaus -1e-2 .5 0\n"


def write(path: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path, *words: str, width: int = 3) -> list[tuple[str, list[float]]]:
    return [(word.decode(), numbers) for word, numbers in read_vectors(path, {w.encode(): 0 for w in words}, width)]


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
@pytest.mark.parametrize("header", ["", "4 3\n", "\ufeff"])
def test_both_text_formats_plain_and_gzipped(name: str, header: str, tmp_path: Path) -> None:
    # word2vec's own program leaves a space at the end of each line.
    for content in (GLOVE, GLOVE.replace("\n", " \n"), GLOVE.replace("\n", "\r\n")):
        path = write(tmp_path / name, header + content)
        assert read(path, "house", "Haus", ".", ". . .") == [
            ("house", [4, 5, 6]),
            (". . .", [7, 8, 9]),
            ("Haus", [-0.01, 0.5, 0]),
        ]


def word2vec_binary() -> bytes:
    return b"2 3\nthe " + struct.pack("3f", 1, 2, 3) + b"\nhouse " + struct.pack("3f", 4, 5, 6) + b"\n"


REFUSED = {
    "binary": (word2vec_binary(), "the binary format is not supported (it names neither the type of its numbers nor"),
    "another width": ("the 1 2\n", "vectors of 2 numbers; embedding_size is 3, they must agree"),
    "another width in the header": ("1 4\nthe 1 2 3 4\n", "vectors of 4 numbers; embedding_size is 3"),
    "too few numbers": ("the 1 2 3\nhouse 1 2\n", "line 2 has 2 numbers instead of 3"),
    "too few for any word": ("the 1 2 3\n\nnobody 1 2\n", "line 3 has 2 numbers instead of 3"),
    "too many numbers": ("the 1 2 3\nhouse 1 2 3 4\n", "line 2 has 4 numbers instead of 3"),
    "not a number": ("the 1 2 3\nhouse 1 x 3\n", "line 2: 'x' is not a finite number"),
    "not finite": ("2 3\nthe 1 2 3\nhouse 1 nan 3\n", "line 3: 'nan' is not a finite number"),
    "cut off": ("3 3\nthe 1 2 3\nhouse 1 2 3\n", "its header says 3 vectors, there are 2"),
    "empty": ("", "holds no vectors"),
    "one endless line": (b"the 1 2 3 " * 200_000, "line 1 is longer than 1 MiB"),
    "tabs": ("the\t1\t2\t3\n", "vectors of 0 numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_used_is_named_with_its_line(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    path = write(tmp_path / "vectors.txt", content)
    with pytest.raises(DataError) as caught:
        read(path, "the", "house")
    assert message in str(caught.value) and repr(str(path)) in str(caught.value)


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.txt': no such file"):
        read(tmp_path / "none.txt", "the")
    path = write(tmp_path / "v.gz", "".join(f"w{n} 1 2 3\n" for n in range(40_000)))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="damaged gzip archive"):
        read(path, "the")


def test_how_words_are_found() -> None:
    """Ids 0 to 5; 0 is special. `Ġ` and `##` are marks of a piece, `Ã©tÃ©` is how byte-level names spell été."""
    names = ["<pad>", "ĠHouse", "##ing", "Ã©tÃ©", "the", "."]
    texts = [None, " House", "##ing", "été", "the", "."]
    words_of_rows = wanted_words(names, texts)
    table = nn.Embedding(6, 1)
    start = table.weight.detach().clone()
    kinds = np.full(6, len(KINDS))
    words = {"<pad>": 1, "house": 2, "House": 3, "House ": 4, "ing": 5, "été": 6, "The": 7, "nothing": 8}

    def found(path: Path, *lines: str) -> list[int]:
        write(path, "".join(f"{line.strip()} {words[line]}\n" for line in lines))
        fill_table(table, words_of_rows, path, kinds)
        return kinds.tolist()

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.txt"
        # House is found as it is written although house comes first, and its second vector changes nothing.
        assert found(path, "<pad>", "house", "House", "House ", "ing", "été", "The") == [3, 1, 1, 1, 3, 3]
        assert table.weight[1:4, 0].tolist() == [3, 5, 6]
        assert torch.equal(table.weight[[0, 4, 5]], start[[0, 4, 5]])
        # A second file for the same table fills what the first has left, and nothing else.
        words_of_rows[b"The"] = [(4, 2)]
        assert found(path, "house", "The") == [3, 1, 1, 1, 2, 3]
        assert table.weight[1:5, 0].tolist() == [3, 5, 6, 7]


@pytest.mark.parametrize("algorithm", ["bpe", "unigram", "wordpiece", "word", "char"])
def test_coverage_by_algorithm(algorithm: str, tmp_path: Path) -> None:
    """Words within a sentence and at its start, where byte-level names differ (`ĠAuto`, `the`)."""
    tokenizer = build_tokenizer(["the Auto is The"] * 5, [], algorithm=algorithm, vocab_size=400, min_frequency=2)
    model = tiny_rnn(tokenizer, embedding_size=2, share_encoder_decoder_embeddings=True)
    start = model.model.encoder.embed_tokens.weight.detach().clone()
    vectors = {"the": [1, 2], "Auto": [3, 4], "is": [5, 6], "auto": [9, 9]}
    write(tmp_path / "v.txt", "".join(f"{word} {a} {b}\n" for word, (a, b) in vectors.items()))
    running = np.arange(len(tokenizer))
    report = load_word_vectors(
        model,
        tokenizer,
        {"source": str(tmp_path / "v.txt")},
        sizes=(len(tokenizer), len(tokenizer)),
        count=lambda side, size: running[:size],
    )["source"]
    rows = model.model.encoder.embed_tokens.weight
    ways, filled = {"exact": 0, "stripped": 0, "lowercased": 0}, []
    for name, row in tokenizer.get_vocab().items():
        plain = name.replace("Ġ", "").replace("##", "")
        word = name if name in vectors else plain if plain in vectors else plain.lower()
        way = "exact" if name in vectors else "stripped" if plain in vectors else "lowercased"
        if word in vectors:
            ways[way] += 1
            filled.append(row)
            assert rows[row].tolist() == vectors[word], name
        else:
            assert torch.equal(rows[row], start[row]), name
    assert report.found == ways and report.entries == len(tokenizer) - 4
    assert report.running == pytest.approx(sum(filled) / sum(range(4, len(tokenizer))))
    if algorithm == "bpe":
        assert ways["stripped"] >= 2 and {"the", "ĠAuto", "ĠThe"} <= tokenizer.get_vocab().keys()
    if algorithm == "word":
        assert ways == {"exact": 3, "stripped": 0, "lowercased": 1}


def test_each_side_of_two_vocabularies_gets_its_own(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(
        ["das Haus"],
        ["The house das"],
        algorithm="word",
        min_frequency=1,
        joint=False,
    )
    model = tiny_rnn(tokenizer, embedding_size=2)
    before = {side: embedding_table(model, side).weight.detach().clone() for side in ("source", "target")}
    files = {
        "source": str(write(tmp_path / "de.txt", "das 1 2\nhouse 3 4\n")),
        "target": str(write(tmp_path / "en.vec", "2 2\nhouse 5 6\nthe 7 8\n")),
    }
    reports = load_word_vectors(model, tokenizer, files, sizes=(len(tokenizer), tokenizer.target_vocab_size))
    assert str(reports["source"]) == "de.txt: 1 of 2 entries (50.0%) have a vector (1 exact, 0 stripped, 0 lowercased)"
    assert reports["target"].found == {"exact": 1, "stripped": 0, "lowercased": 1} and reports["target"].entries == 3
    source, target = (embedding_table(model, side).weight for side in ("source", "target"))
    assert source[tokenizer.get_vocab()["das"]].tolist() == [1, 2]
    assert target[tokenizer.get_target_vocab()["The"]].tolist() == [7, 8]
    assert target[tokenizer.get_target_vocab()["house"]].tolist() == [5, 6]
    untouched = [i for word, i in tokenizer.get_target_vocab().items() if word not in ("The", "house")]
    assert torch.equal(target[untouched], before["target"][untouched])
    # Tied, the output layer is the table; in one table the target's file fills what the source's has left.
    tied = tiny_rnn(tokenizer, embedding_size=2, readout_size=2, tie_word_embeddings=True)
    load_word_vectors(tied, tokenizer, files, sizes=(len(tokenizer), tokenizer.target_vocab_size))
    assert tied.lm_head.weight[tokenizer.get_target_vocab()["The"]].tolist() == [7, 8]


def test_one_table_takes_two_files(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["das Haus the house"], [], algorithm="word", min_frequency=1)
    model = tiny_rnn(tokenizer, embedding_size=2, share_encoder_decoder_embeddings=True)
    files = {
        "source": str(write(tmp_path / "de.txt", "das 1 2\nhaus 3 4\n")),
        # A better match in the second file does not take a row from the first.
        "target": str(write(tmp_path / "en.txt", "das 5 6\nHaus 9 9\nhouse 7 8\n")),
    }
    reports = load_word_vectors(model, tokenizer, files, sizes=(len(tokenizer), len(tokenizer)))
    rows = model.model.decoder.embed_tokens.weight
    assert [rows[tokenizer.get_vocab()[word]].tolist() for word in ("das", "Haus", "house")] == [[1, 2], [3, 4], [7, 8]]
    assert [sum(report.found.values()) for report in reports.values()] == [2, 3]


def test_models_of_other_families(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(["das Haus"], [], algorithm="word", min_frequency=1)
    model = tiny_bart(tokenizer)
    path = write(tmp_path / "v.txt", "Haus" + " 1" * 16 + "\n")
    load_word_vectors(model, tokenizer, {"target": str(path)}, sizes=(len(tokenizer), len(tokenizer)))
    assert model.get_decoder().embed_tokens.weight[tokenizer.get_vocab()["Haus"]].tolist() == [1] * 16
    model.get_decoder().embed_tokens = None
    with pytest.raises(DataError, match="target_vectors: the BartDecoder of this model has no table embed_tokens"):
        load_word_vectors(model, tokenizer, {"target": str(path)}, sizes=(len(tokenizer), len(tokenizer)))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    line = " 0.25" * 50 + "\n"
    path = tmp_path / "v.txt"
    path.write_text("".join(f"w{n}{line}" for n in range(20_000)))
    assert path.stat().st_size > 5_000_000
    tracemalloc.start()
    found = read(path, "w7", "w19999", width=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [word for word, _ in found] == ["w7", "w19999"] and peak < 1_000_000


def test_a_run_with_vectors(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A frozen table keeps the vectors of the file and its initial other rows; otherwise it is trained."""
    numbers = [round(0.01 * n, 2) for n in range(12)]
    vectors = write(
        tmp_path / "fr.vec.gz", "2 12\n" + "".join(f"{w} {' '.join(map(str, numbers))}\n" for w in ("ou", "et"))
    )
    words = [recipe, "--target_vectors", vectors, "--tokenizer_algorithm", "word", "--min_frequency", 1]
    assert train(*words, "--output_dir", tmp_path / "free") == 0
    printed = capsys.readouterr().err
    assert "target_vectors: fr.vec.gz: 2 of " in printed and "(2 exact, 0 stripped, 0 lowercased)" in printed
    assert "frozen:" not in printed
    assert train(*words, "--output_dir", tmp_path / "frozen", "--freeze_vectors", "--weight_decay", 0.5) == 0
    assert "frozen: 3,600 of " in capsys.readouterr().err
    tables = {}
    for name in ("free", "frozen"):
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name)
        tables[name] = model.model.decoder.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "frozen")
    row = tokenizer.get_vocab()["ou"]
    assert torch.equal(tables["frozen"][row], torch.tensor(numbers)) and not torch.equal(
        tables["free"][row], tables["frozen"][row]
    )
    summary = json.loads((tmp_path / "frozen" / "summary.json").read_text())
    assert summary["word_vectors"]["target"]["found"]["exact"] == 2 and summary["frozen_parameters"] == 3600
    share = summary["word_vectors"]["target"]["running"]
    corpus_share = _running_share(tmp_path / "frozen", {row, tokenizer.get_vocab()["et"]})
    assert share == pytest.approx(corpus_share) and 0 < share < 1
    # A resumed run reads its checkpoint, not the file; what is frozen stays so.
    vectors.unlink()
    more = ["--output_dir", tmp_path / "frozen", "--resume_from_checkpoint", "latest", "--max_steps", 6]
    assert train(tmp_path / "frozen" / "recipe.yaml", *more) == 0
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "frozen" / "checkpoints" / "step-00000006")
    assert torch.equal(again.model.decoder.embed_tokens.weight, tables["frozen"])


def _running_share(run: Path, found: set[int]) -> float:
    from hf_rnn_seq2seq.data.arguments import DataArguments
    from hf_rnn_seq2seq.data.corpus import load_corpus
    from hf_rnn_seq2seq.run_directory import data_options

    options = data_options(run)
    del options["data_seed"]  # which is the default
    corpus = load_corpus(DataArguments(**options), splits=("train",))
    tokenizer = AutoTokenizer.from_pretrained(run)
    ids = [i for row in corpus.splits["train"]["target"] for i in tokenizer(text_target=row)["input_ids"] if i > 3]
    return sum(i in found for i in ids) / len(ids)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--freeze_vectors"], "freeze_vectors=True: needs source_vectors or target_vectors"),
        (
            ["--source_vectors", "v", "--model_name_or_path", "m"],
            "source_vectors='v': cannot be combined with model_name_or_path",
        ),
        (["--target_vectors", "nowhere.txt"], "word vectors 'nowhere.txt': no such file"),
    ],
)
def test_options_are_checked(words: list[str], message: str, recipe: str, tmp_path: Path) -> None:
    with pytest.raises((ArgumentError, DataError), match=message):
        train(recipe, "--output_dir", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()
