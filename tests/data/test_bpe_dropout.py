"""BPE dropout: other pieces of the same text in each epoch of training, and the usual ones everywhere else."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.bpe_dropout import BpeDropout
from hf_rnn_seq2seq.data.loader import UpdatePlan
from hf_rnn_seq2seq.data.named_tokenizer import load_tokenizer
from hf_rnn_seq2seq.data.token_columns import encode
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.launch import build_accelerator
from hf_rnn_seq2seq.training.run import make_loop
from tests.helpers.training_runs import arguments, build_loop, dropout_stream, dropout_table, letter_rows, record
from tests.scripts.test_train import TINY

SOURCES = ["the lower the better", "newest and widest", "low lower lowest", "</s> is text, 🙂 too", "wide newer news"]
TARGETS = ["je tiefer desto besser", "das neueste", "tief am tiefsten", "</s> ist Text: 🙂", "weite neuere Welt"]
LIMITS = {"max_source_length": 99, "max_target_length": 99}

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def tokenizer_of(algorithm: str, joint: bool = True) -> PreTrainedTokenizerBase:
    sizes = {"vocab_size": 320, "min_frequency": 1, "model_max_length": 99}
    texts = (SOURCES * 2, TARGETS * 2)
    return build_tokenizer(*texts, algorithm=algorithm, joint=joint, **sizes)


def rows_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    """The columns of text and of usual pieces."""
    texts = {"id": list(range(5)), "source": SOURCES, "target": TARGETS}
    return {**texts, **encode(texts, tokenizer)}


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_pieces_are_drawn_anew_and_spell_the_same_text(joint: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bpe", joint)
    rows = rows_of(tokenizer)
    redraw = BpeDropout(tokenizer, 0.4, **LIMITS)
    drawn, again = redraw(rows), redraw(rows)
    assert set(drawn) == {"id", "input_ids", "labels", "source_length", "target_length"} and drawn["id"] == rows["id"]
    read = tokenizer.decode if joint else tokenizer.decode_source
    for ids, labels, source, target in zip(drawn["input_ids"], drawn["labels"], SOURCES, TARGETS, strict=True):
        assert ids[-1] == labels[-1] == tokenizer.eos_token_id and 2 not in ids[:-1] and 2 not in labels[:-1]
        assert read(ids[:-1]) == source and tokenizer.decode(labels[:-1]) == target
    for side, length in (("input_ids", "source_length"), ("labels", "target_length")):
        assert drawn[length] == list(map(len, drawn[side]))
        assert sum(drawn[length]) > sum(rows[length]) and drawn[side] != again[side]
    # The tokenizer itself splits as before, and so does its file.
    assert rows_of(tokenizer) == rows
    tokenizer.save_pretrained(tmp_path)
    for file in tmp_path.glob("*tokenizer.json"):
        assert json.loads(file.read_text(encoding="utf-8"))["model"]["dropout"] is None, file
    assert rows_of(AutoTokenizer.from_pretrained(tmp_path)) == rows


def test_a_sentence_that_becomes_too_long_keeps_its_usual_pieces() -> None:
    tokenizer = tokenizer_of("bpe")
    rows = rows_of(tokenizer)
    longest = max(rows["source_length"])
    drawn = BpeDropout(tokenizer, 1.0, max_source_length=longest, max_target_length=99)(rows)
    assert max(drawn["source_length"]) == longest
    for ids, usual, text in zip(drawn["input_ids"], rows["input_ids"], SOURCES, strict=True):
        assert ids == usual or len(ids) == len(text.encode()) + 1
    assert drawn["target_length"] == [len(text.encode()) + 1 for text in TARGETS]


@pytest.mark.parametrize(
    ("algorithm", "kind"),
    [("unigram", "a Unigram model"), ("wordpiece", "a WordPiece model"), ("char", "a BPE model without merges")],
)
def test_tokenizers_without_merges_are_refused(algorithm: str, kind: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        BpeDropout(tokenizer_of(algorithm), 0.1, **LIMITS)
    assert str(caught.value) == f"bpe_dropout=0.1: the tokenizer is {kind}; needs tokenizer_algorithm bpe"


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_a_loaded_tokenizer_has_no_dropout(joint: bool, tmp_path: Path) -> None:
    """A foreign tokenizer.json may contain dropout, and the translations of a text would differ between calls."""
    tokenizer = tokenizer_of("bpe", joint)
    tokenizer.save_pretrained(tmp_path)
    for file in tmp_path.glob("*tokenizer.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["model"]["dropout"] = 0.5
        file.write_text(json.dumps(content), encoding="utf-8")
    assert rows_of(load_tokenizer(str(tmp_path))) == rows_of(tokenizer)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("kind", ["table", "stream"])
def test_every_row_once_in_each_epoch_in_other_pieces(kind: str, tmp_path: Path) -> None:
    train = dropout_table(30) if kind == "table" else dropout_stream(30, 30)
    loop = build_loop("rnn", arguments(tmp_path, per_device_train_batch_size=10, max_steps=6), train=train)
    seen = record(loop)
    loop.run()
    rows, tokenizer = letter_rows(30)
    expected = Counter((row["source"].replace(" ", ""), row["target"].replace(" ", "")) for row in rows)
    spelled = [tuple(tokenizer.decode(ids[:-1]).replace(" ", "") for ids in row) for row in seen]
    assert Counter(spelled[:30]) == Counter(spelled[30:]) == expected
    assert len({str(row) for row in seen}) > 50, "the second epoch has other pieces"
    # The loss is divided by the tokens that were read, which are more than the plan knows of.
    tokens = sum(len(labels) for _, labels in seen)
    assert json.loads((tmp_path / "summary.json").read_text())["target_tokens"] == tokens


def test_a_plan_without_exact_lengths_leaves_the_tokens_to_be_counted() -> None:
    plans = [UpdatePlan([3, 4], [5, 6], batch_size=1, max_tokens=None, seed=0, exact_lengths=e) for e in (True, False)]
    updates = [list(itertools.islice(plan.updates(), 2)) for plan in plans]
    assert [update.rows for update in updates[0]] == [update.rows for update in updates[1]]
    assert sorted((update.source_tokens, update.target_tokens) for update in updates[0]) == [(3, 5), (4, 6)]
    assert {(update.source_tokens, update.target_tokens) for update in updates[1]} == {(None, None)}


def tiny(folder: Path, **options: Any) -> RunOptions:
    words = [(f"--{name}", str(value)) for name, value in {**TINY, "output_dir": folder, **options}.items()]
    return RunOptions.parse([*itertools.chain(*words)])


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_a_run_draws_the_pieces_of_its_training_rows_only(streaming: bool, tmp_path: Path, capsys: Any) -> None:
    options = {"bpe_dropout": 0.5, "streaming": streaming, "predict_with_generate": False}
    options |= {"metric_for_best_model": "loss", "eval_steps": 1}

    def build(**more: Any) -> Any:
        run = tiny(tmp_path, **options, **more)
        return make_loop(run, build_accelerator(run.training))

    loop = build(max_steps=1)
    update = next(loop.plan.updates())
    drawn = [loop.loader.columns(update, update.rows)["labels"] for _ in range(2)]
    assert drawn[0] != drawn[1]
    measured = [loop.validator.loader.read([0, 1, 2])["labels"].tolist() for _ in range(2)]
    assert measured[0] == measured[1]
    loop.run()
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["model"]["dropout"] is None
    resumed = build(max_steps=2, resume_from_checkpoint="latest")
    assert "bpe_dropout: the run continues with the same rows in the same order" in capsys.readouterr().err
    assert resumed.run() == "max_steps" and resumed.state.progress.step == 2


def test_alignments_belong_to_the_usual_pieces(tmp_path: Path) -> None:
    run = tiny(tmp_path, bpe_dropout=0.1, guided_alignment_weight=0.5)
    with pytest.raises(ArgumentError) as caught:
        make_loop(run, build_accelerator(run.training))
    assert str(caught.value) == (
        "bpe_dropout=0.1: guided_alignment_weight=0.5 aligns the usual pieces; set one of them to 0"
    )
