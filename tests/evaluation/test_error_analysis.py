"""Error analysis: the measures equal their definitions."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.evaluation import error_analysis as analysis
from hf_rnn_seq2seq.generation.translate import Hypothesis
from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_tokenizer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Thursday, March 12, 2026", ["Thursday", "March", "12", "2026"]),
        ("« naïve » — l'an", ["naïve", "—", "l'an"]),
        ("2026年3月", list("2026年3月")),
        ("  ", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert analysis.split_words(text) == words


@pytest.mark.parametrize(
    ("source", "translation", "reference", "found"),
    [
        ("Oman, France, Latvia", "Oman, France, latvia", "Oman, France, Lettonie", ["Latvia"]),
        ("12 kg", "12 kg", "12 kilos", ["kg"]),
        ("12 kg", "12", "douze", []),
    ],
)
def test_untranslated_words(source: str, translation: str, reference: str, found: list[str]) -> None:
    assert analysis.untranslated_words(source, translation, reference) == found


@pytest.mark.parametrize(
    ("translation", "reference", "found"),
    [
        ("Japon, Pakistan, Pakistan et Somalie", "", ["pakistan"]),
        ("in the in the house", "", ["in the"]),
        ("the the the", "", ["the", "the"]),
        ("a b c d e a b c d e", "", []),  # longer than what is looked for
        ("very very good", "very very good", []),
        ("one two one", "", []),
        ("", "", []),
    ],
)
def test_repeated_words(translation: str, reference: str, found: list[str]) -> None:
    assert analysis.repeated_words(translation, reference) == found


def test_length_errors() -> None:
    cases = {"": "empty", "a": "too_short", "a b": None, "a b c d e f g h i": "too_long"}
    assert {text: analysis.length_error(text, "a b c d") for text in cases} == cases
    assert analysis.length_error("a", "a b") is None


def test_entropy_and_coverage_are_those_of_the_definition() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert analysis.attention_entropy(weights) == pytest.approx(math.log(2) / 2)
    assert analysis.attention_received(weights).tolist() == [1.5, 0.5, 0.0]
    tokenizer = tiny_tokenizer("word")
    ids = tokenizer("three days")["input_ids"]
    attention = torch.tensor([[[0.9, 0.05, 0.05], [0.3, 0.1, 0.6]]])
    hypothesis = Hypothesis("trois jours", (7, 2), tuple(ids), -1.0, attention)
    (report,) = analysis.analyze(["three days"], ["trois jours"], [hypothesis], tokenizer)
    assert report.coverage == pytest.approx((1.0 + 0.15) / 2)  # the end of sentence does not count
    assert report.unread == ("days",)
    assert report.log_probability == pytest.approx(-0.5)
    assert (report.chrf, report.bleu, report.errors) == (pytest.approx(100), pytest.approx(100), ())


def test_unread_words_are_whole() -> None:
    tokenizer = tiny_tokenizer("char")
    ids = tokenizer("ago, 2 kg")["input_ids"]
    # Each letter of a word gets little, "ago" together enough; the comma is no word.
    received = [0.2, 0.2, 0.2, 0.0, 0.0, 1.0, 0.0, 0.1, 0.0, 0.3][: len(ids)]
    hypothesis = Hypothesis("2", (7,), tuple(ids), -1.0, torch.tensor([[received]]))
    (report,) = analysis.analyze(["ago, 2 kg"], ["2"], [hypothesis], tokenizer)
    assert len(ids) == 10 and report.unread == ("kg",)


def test_analysis_counts_and_orders() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["a a", "x", "", "b c"]
    reports = analysis.analyze(["x"] * 4, ["a", "a b c d e", "a", "b c"], [Hypothesis(t) for t in texts], tokenizer)
    assert [report.errors for report in reports] == [("repeated",), ("untranslated", "too_short"), ("empty",), ()]
    assert analysis.worst(reports, 2) == [1, 2]
    facts = analysis.summarize(reports)
    assert (facts["repeated"], facts["empty"], facts["too_short"], facts["exact"]) == (1, 1, 1, 1)
    assert facts["entropy"] is None
    header, row = analysis.summary_table({"s": reports})
    assert dict(zip(header, row, strict=True))["untranslated"] == "1 (25.0 %)"
    with pytest.raises(ArgumentError, match="1 sources, 0 references, 0 hypotheses"):
        analysis.analyze(["a"], [], [], tokenizer)


def test_short_names_differ() -> None:
    assert analysis.short_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert analysis.short_names(["one/a", "two/a"]) == ["one/a", "two/a"]
    assert analysis.short_names(["runs/a", "runs/a"]) == ["a", "a"]


def data_of(runs: Path) -> list[str]:
    return ["--test_file", str(runs / "pairs.tsv"), "--source_lang", "en", "--target_lang", "fr"]


def test_script_prints_tables_and_writes_every_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "load_libraries", lambda: None)
    script = importlib.import_module("error_analysis")
    models = [str(runs / "attention"), str(runs / "plain")]
    options = ["--worst", "2", "--disable_tqdm", "--output_file", str(tmp_path / "all.jsonl")]
    assert script.main([*models, *data_of(runs), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("the worst 2") == 2 and "coverage" in printed
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["source"] for row in rows] == SOURCES[: len(TARGETS)] * 2
    assert all(0 <= row["coverage"] <= 1 for row in rows[: len(TARGETS)])
    assert all(row["entropy"] is None for row in rows[len(TARGETS) :])
    with pytest.raises(ValueError, match="its folder does not exist"):
        script.main([*models, *data_of(runs), "--output_file", str(tmp_path / "no" / "x.jsonl")])


def test_every_line_is_analyzed_and_cuts_are_reported(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "load_libraries", lambda: None)
    (tmp_path / "t.tsv").write_text("en\tfr\n2 kg\t2 kg\n\tun\nin an hour\t\n" + "ago " * 90 + "\til y a\n")
    data = ["--test_file", str(tmp_path / "t.tsv"), "--source_lang", "en", "--target_lang", "fr", "--disable_tqdm"]
    models = [str(runs / "attention"), str(runs / "plain")]
    assert (
        importlib.import_module("error_analysis").main([*models, *data, "--output_file", str(tmp_path / "a.jsonl")])
        == 0
    )
    printed = {"error_analysis": capsys.readouterr().err}
    assert importlib.import_module("report").main([*models, *data, "--output_file", str(tmp_path / "r.html")]) == 0
    printed |= {"report": capsys.readouterr().err, "page": (tmp_path / "r.html").read_text(encoding="utf-8")}
    for text in printed.values():
        assert "1 of 4 sources are empty and scored as they are" in text
        assert "attention: 1 of 4 sources are longer than the limit and were cut" in text
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["truncated"] for row in rows] == [False, False, False, True] * 2
    assert [row["translation"] for row in rows if not row["source"]] == ["", ""]
