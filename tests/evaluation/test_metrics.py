"""The offline metrics: equal to sacrebleu and jiwer, importable, and loadable by path with `evaluate.load`."""

import random
import sys
from pathlib import Path

import evaluate
import jiwer
import pytest
import sacrebleu.metrics as sacrebleu_metrics

from hf_rnn_seq2seq.evaluation.metrics import SACREBLEU
from hf_rnn_seq2seq.evaluation.scores import METRICS, OF_SACREBLEU, load_metric, merged, why_blind
from hf_rnn_seq2seq.evaluation.sentence_scores import sentence_metric

SCRIPT = Path(__file__).parents[2] / "hf_rnn_seq2seq" / "evaluation" / "metrics.py"
HYPOTHESES = ["The cat sat on a mat.", "", "Es war 3,5 Grad.", "日本語の文です。", "Il fait froid."]
REFERENCES = ["The cat sat on the mat.", "Nothing here", "", "これは日本語の文です。", "Il fait très froid."]

THEIRS = {
    "bleu": lambda: sacrebleu_metrics.BLEU(),
    "char_bleu": lambda: sacrebleu_metrics.BLEU(tokenize="char"),
    "chrf": lambda: sacrebleu_metrics.CHRF(),
    "chrf++": lambda: sacrebleu_metrics.CHRF(word_order=2),
    "ter": lambda: sacrebleu_metrics.TER(),
}


def test_the_names_of_sacrebleu_are_those_of_its_metrics() -> None:
    assert tuple(THEIRS) == tuple(SACREBLEU) == OF_SACREBLEU


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("case", ["mixed", "empty predictions", "empty references"])
def test_equals_sacrebleu_with_its_signature(name: str, case: str) -> None:
    hypotheses = [""] * len(REFERENCES) if case == "empty predictions" else HYPOTHESES
    references = [""] * len(HYPOTHESES) if case == "empty references" else REFERENCES
    metric = load_metric(name)
    ours = metric.compute(predictions=hypotheses, references=references)
    theirs = THEIRS[name]()
    assert ours["score"] == pytest.approx(theirs.corpus_score(hypotheses, [references]).score, abs=1e-9)
    assert ours["signature"] == str(theirs.get_signature())
    if case == "mixed":
        assert 1 < ours["score"] < 99


@pytest.mark.parametrize("name", THEIRS)
def test_several_references_also_in_different_numbers(name: str) -> None:
    rows = [
        [reference, f"{reference} indeed"] if index % 2 else [reference] for index, reference in enumerate(REFERENCES)
    ]
    metric = load_metric(name)
    ours = metric.compute(predictions=HYPOTHESES, references=rows)
    streams = [[row[0] for row in rows], [row[1] if len(row) > 1 else None for row in rows]]
    theirs = THEIRS[name]()
    assert ours["score"] == pytest.approx(theirs.corpus_score(HYPOTHESES, streams).score, abs=1e-9)
    assert "nrefs:var" in ours["signature"]


@pytest.mark.parametrize("name", THEIRS)
def test_bootstrap_interval_is_sacrebleus(name: str) -> None:
    generator = random.Random(0)
    references = [" ".join(generator.choices("abcdefgh", k=9)) for _ in range(40)]
    hypotheses = [" ".join(word if generator.random() < 0.8 else "z" for word in line.split()) for line in references]
    metric = load_metric(name)
    ours = metric.compute(predictions=hypotheses, references=references, n_bootstrap=50)
    theirs = THEIRS[name]()
    score = theirs.corpus_score(hypotheses, [references], n_bootstrap=50)
    assert (ours["mean"], ours["interval"]) == pytest.approx((score._mean, score._ci), abs=1e-9)
    assert ours["interval"] > 0
    assert "bs:50" in ours["signature"]


@pytest.mark.parametrize(("name", "function"), [("wer", jiwer.wer), ("cer", jiwer.cer)])
def test_error_rates_equal_jiwer(name: str, function) -> None:
    metric = load_metric(name)
    ours = metric.compute(predictions=HYPOTHESES, references=REFERENCES)
    assert ours["score"] == pytest.approx(100 * function(REFERENCES, HYPOTHESES), abs=1e-9)
    assert ours["signature"].startswith(f"{name}|unit:")
    with pytest.raises(ValueError, match="exactly one reference"):
        metric.compute(predictions=["a"], references=[["a", "b"]])


def test_exact_match_counts_sentences_that_are_a_reference() -> None:
    metric = load_metric("exact_match")
    assert metric.compute(predictions=["a", "b", "A", ""], references=["a", "c", "a", ""])["score"] == 50
    assert metric.compute(predictions=["a", "b"], references=[["x", "a"], ["c"]])["score"] == 50


def edits(found: list[str], expected: list[str]) -> int:
    """The Levenshtein distance by its definition."""
    if not found or not expected:
        return len(found) + len(expected)
    kept = edits(found[1:], expected[1:]) + (found[0] != expected[0])
    return min(kept, 1 + edits(found[1:], expected), 1 + edits(found, expected[1:]))


def test_errors_of_outputs_and_symbols_are_those_of_the_shared_tasks() -> None:
    """SIGMORPHON 2020: the share of words that are wrong, and all edits over all symbols, in percent."""
    gold = ["b ɔ̃ ʒ u ʁ", "s a", "k a t", "ɛ", "t ʁ o"]
    found = ["b ɔ̃ ʒ u ʁ", "s a a", "t a k", "", "t  ʁ o"]
    pairs = [(one.split(), other.split()) for one, other in zip(found, gold, strict=True)]
    wrong = sum(one != other for one, other in pairs)
    distance, symbols = sum(edits(*pair) for pair in pairs), sum(len(other) for _, other in pairs)
    assert (wrong, distance, symbols) == (3, 4, 14)
    sequence, symbol = (
        load_metric(name).compute(predictions=found, references=gold) for name in ("sequence_error", "symbol_error")
    )
    assert sequence["score"] == pytest.approx(100 * wrong / 5) and symbol["score"] == pytest.approx(100 * distance / 14)
    assert (symbol["edits"], symbol["symbols"], symbol["wrong"]) == (4, 14, 3)


def test_the_nearest_of_several_references_counts() -> None:
    several = [["r iː d", "r ɛ d"], ["a", "b c d e"]]
    found = ["r ɛ d", "b c d"]  # of "a" it is three edits in one symbol, of the other one edit in four
    assert load_metric("sequence_error").compute(predictions=found, references=several)["score"] == 50
    assert load_metric("symbol_error").compute(predictions=found, references=several)["score"] == pytest.approx(100 / 7)
    assert sentence_metric("sequence_error")("a  b", "a b") == 1 and sentence_metric("sequence_error")("a", "a b") == 0
    assert sentence_metric("symbol_error")("a c", "a b") == 0.5 and sentence_metric("symbol_error")("a b c", "x") == 0
    assert merged(["x", "y", "x"], ["1", "2", "3"]) == (["x", "y"], [["1", "3"], ["2"]])


def test_bleu_does_not_distinguish_texts_without_a_run_of_four() -> None:
    assert why_blind("bleu", ["cat", "a red cat", "", "a red cat slept"]) == (
        "bleu counts runs of four words, and 3 of 4 references are shorter: it says little about them; choose "
        "exact_match, sequence_error or chrf"
    )
    assert why_blind("bleu", [["cat sat, ok"], ["a red cat slept"]]) is None  # the comma is a token
    assert why_blind("char_bleu", ["cats"]) is None and "four characters" in str(why_blind("char_bleu", ["cat"]))
    assert why_blind("chrf", ["cat"]) is None


@pytest.mark.parametrize("name", METRICS)
def test_a_sentence_without_reference_is_refused(name: str) -> None:
    metric = load_metric(name)
    with pytest.raises(ValueError, match=r"sentence 1: references are an empty list"):
        metric.compute(predictions=["a", "b"], references=[["a"], []])


def test_unknown_metric_names_the_choices() -> None:
    with pytest.raises(ValueError, match=r"metric 'blue' is not known; choose from bleu, "):
        load_metric("blue")


@pytest.mark.parametrize("name", METRICS)
def test_loads_by_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = tmp_path / "modules"
    monkeypatch.setattr("evaluate.loading.init_dynamic_modules", lambda: _dynamic_modules(modules, monkeypatch))
    metric = evaluate.load(str(SCRIPT), name, keep_in_memory=True)
    assert str(modules) in sys.modules[type(metric).__module__].__file__
    pair = {"predictions": HYPOTHESES, "references": REFERENCES}
    assert metric.compute(**pair) == load_metric(name).compute(**pair)
    with pytest.raises(ValueError, match=r"config_name='default': must be one of bleu, "):
        evaluate.load(str(SCRIPT), keep_in_memory=True)


def _dynamic_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = folder / f"metrics_loaded_{folder.parent.name}"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    return str(package)
