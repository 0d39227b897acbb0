"""Error analysis: measures against their definitions written out, beam trees against generate(), gradients likewise."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import EvaluationError, PlotError
from hf_rnn_seq2seq.evaluation import error_analysis as analysis
from hf_rnn_seq2seq.generation.translate import Hypothesis
from hf_rnn_seq2seq.visualization.beam_tree import beam_tree, plot_beam_tree
from hf_rnn_seq2seq.visualization.gradients import (
    open_gates,
    plot_gradients,
    recurrent_kernel,
    state_gradients,
    word_gradients,
)
from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_bart, tiny_rnn, tiny_tokenizer

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
    (report,) = analysis.analyse(["three days"], ["trois jours"], [hypothesis], tokenizer)
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
    (report,) = analysis.analyse(["ago, 2 kg"], ["2"], [hypothesis], tokenizer)
    assert len(ids) == 10 and report.unread == ("kg",)


def test_analysis_counts_and_orders() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["a a", "x", "", "b c"]
    reports = analysis.analyse(["x"] * 4, ["a", "a b c d e", "a", "b c"], [Hypothesis(t) for t in texts], tokenizer)
    assert [report.errors for report in reports] == [("repeated",), ("untranslated", "too_short"), ("empty",), ()]
    assert analysis.worst(reports, 2) == [1, 2]
    facts = analysis.summarise(reports)
    assert (facts["repeated"], facts["empty"], facts["too_short"], facts["exact"]) == (1, 1, 1, 1)
    assert facts["entropy"] is None
    header, row = analysis.summary_table({"s": reports})
    assert dict(zip(header, row, strict=True))["untranslated"] == "1 (25.0 %)"
    with pytest.raises(EvaluationError, match="1 sources, 0 references, 0 hypotheses"):
        analysis.analyse(["a"], [], [], tokenizer)


def test_short_names_tell_apart() -> None:
    assert analysis.short_names(["runs/a", "runs/b/"]) == ["a", "b"]
    assert analysis.short_names(["one/a", "two/a"]) == ["one/a", "two/a"]
    assert analysis.short_names(["runs/a", "runs/a"]) == ["a", "a"]


def data_of(runs: Path) -> list[str]:
    return ["--test_file", str(runs / "pairs.tsv"), "--source_lang", "en", "--target_lang", "fr"]


def test_script_prints_tables_and_writes_every_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "quiet_libraries", lambda: None)
    script = importlib.import_module("error_analysis")
    models = [str(runs / "attention"), str(runs / "plain")]
    options = ["--worst", "2", "--no_progress", "--output", str(tmp_path / "all.jsonl")]
    assert script.main([*models, *data_of(runs), *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("the worst 2") == 2 and "coverage" in printed
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["source"] for row in rows] == SOURCES[: len(TARGETS)] * 2
    assert all(0 <= row["coverage"] <= 1 for row in rows[: len(TARGETS)])
    assert all(row["entropy"] is None for row in rows[len(TARGETS) :])
    with pytest.raises(ValueError, match="its folder does not exist"):
        script.main([*models, *data_of(runs), "--output", str(tmp_path / "no" / "x.jsonl")])


def test_every_line_is_analysed_and_what_was_cut_is_said(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "quiet_libraries", lambda: None)
    (tmp_path / "t.tsv").write_text("en\tfr\n2 kg\t2 kg\n\tun\nin an hour\t\n" + "ago " * 90 + "\til y a\n")
    data = ["--test_file", str(tmp_path / "t.tsv"), "--source_lang", "en", "--target_lang", "fr", "--no_progress"]
    models = [str(runs / "attention"), str(runs / "plain")]
    assert importlib.import_module("error_analysis").main([*models, *data, "--output", str(tmp_path / "a.jsonl")]) == 0
    printed = {"error_analysis": capsys.readouterr().out}
    assert importlib.import_module("report").main([*models, *data, "--output", str(tmp_path / "r.html")]) == 0
    printed |= {"report": capsys.readouterr().out, "page": (tmp_path / "r.html").read_text(encoding="utf-8")}
    for text in printed.values():
        assert "1 of 4 sources are empty and scored as they are" in text
        assert "attention: 1 of 4 sources are longer than the limit and were cut" in text
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["truncated"] for row in rows] == [False, False, False, True] * 2
    assert [row["translation"] for row in rows if not row["source"]] == ["", ""]


# ---------------------------------------------------------------- beam tree


@pytest.mark.parametrize("kind", ["rnn", "bart"])
def test_beam_tree_holds_the_hypotheses_of_generate(kind: str, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_rnn(tokenizer) if kind == "rnn" else tiny_bart(tokenizer)
    root = beam_tree(model, tokenizer, SOURCES[1], num_beams=3, max_new_tokens=8)
    inputs = tokenizer([SOURCES[1]], return_tensors="pt")
    found = model.generate(
        **inputs, num_beams=3, num_return_sequences=3, max_new_tokens=8, output_scores=True,
        return_dict_in_generate=True, length_penalty=0.0,
    )  # fmt: skip
    plain = model.generate(**inputs, num_beams=3, num_return_sequences=3, max_new_tokens=8)
    ranked = sorted((node for node in root.walk() if node.rank), key=lambda node: node.rank)
    assert len(ranked) == 3
    for node, row in zip(ranked, plain.tolist(), strict=True):
        assert list(node.token_ids) == row[1 : 1 + len(node.token_ids)]
    sums = {tuple(row[1:]): float(score) for row, score in zip(found.sequences.tolist(), found.sequences_scores)}  # noqa: B905
    shared = [node for node in ranked if node.token_ids in sums]
    for node in shared:
        assert node.log_probability == pytest.approx(sums[node.token_ids], abs=1e-4)
    assert shared
    for node in root.walk():
        for child in node.children:
            assert child.token_ids[:-1] == node.token_ids
            step = node.log_probability + math.log(max(child.probability, 1e-30))
            assert child.log_probability == pytest.approx(step, abs=1e-4)
    figure = plot_beam_tree(root, tmp_path / "tree.png", title=SOURCES[1])
    assert len(figure.axes[0].lines) == len(root.walk()) - 1
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert f"1.  log-probability {ranked[0].log_probability:.2f}" in shown
    assert (tmp_path / "tree.png").stat().st_size > 5000


def test_beam_tree_script_and_refusals(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line, "quiet_libraries", lambda: None)
    script = importlib.import_module("plot_beam_tree")
    model = str(runs / "attention")
    output = ["--output", str(tmp_path / "tree.svg")]
    assert script.main([model, "3 days", *output, "--num_beams", "2", "--max_new_tokens", "5"]) == 0
    assert capsys.readouterr().out.count("\n") == 2 and (tmp_path / "tree.svg").stat().st_size > 5000
    with pytest.raises(EvaluationError, match="num_beams=1: a beam tree needs at least 2"):
        script.main([model, "3 days", *output, "--num_beams", "1"])
    with pytest.raises(PlotError, match="suffix"):
        script.main([model, "3 days", "--output", "tree.gif"])


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_state_gradients_are_those_of_finite_differences(kind: type[nn.RNNBase]) -> None:
    """A state moved by a little moves the loss by the gradient's length along the gradient."""
    torch.manual_seed(0)
    kernel = kind(3, 4, batch_first=True).double()
    inputs = torch.randn(1, 5, 3, dtype=torch.double)
    norms = state_gradients(kernel, inputs)
    direction = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(0)).double()
    direction /= direction.norm()
    with torch.no_grad():
        _, state = kernel(inputs[:, :2])
    parts = list(state) if isinstance(state, tuple) else [state]

    @torch.no_grad()
    def loss(changed: list[torch.Tensor]) -> float:
        _, end = kernel(inputs[:, 2:], tuple(changed) if len(changed) > 1 else changed[0])
        return float(((end[0] if isinstance(end, tuple) else end) * direction).sum())

    total, step = 0.0, 1e-5
    for part in range(len(parts)):
        for unit in range(4):
            nudge = torch.zeros_like(parts[part])
            nudge[..., unit] = step
            higher = [one + nudge if place == part else one for place, one in enumerate(parts)]
            lower = [one - nudge if place == part else one for place, one in enumerate(parts)]
            total += ((loss(higher) - loss(lower)) / (2 * step)) ** 2
    assert norms.shape == (5,)
    assert float(norms[1]) == pytest.approx(math.sqrt(total), rel=1e-5)
    assert float(norms[-1]) == pytest.approx(1.0, rel=1e-5)


def test_open_gates_keep_the_gradient_and_tanh_loses_it() -> None:
    left = {}
    for name, kind, bias in (("tanh", nn.RNN, 0), ("closed", nn.LSTM, 0), ("lstm", nn.LSTM, 6), ("gru", nn.GRU, 6)):
        torch.manual_seed(1)
        kernel = kind(8, 16, batch_first=True)
        if bias:
            open_gates(kernel, bias)
        norms = state_gradients(kernel, torch.randn(4, 40, 8))
        left[name] = float(norms[0] / norms[-1])
    assert left["tanh"] < 1e-6 and left["closed"] < 1e-4
    assert left["lstm"] > 0.1 and left["gru"] > 0.1
    with pytest.raises(EvaluationError, match="RNN: has no gates"):
        open_gates(nn.RNN(2, 2), 1.0)
    with pytest.raises(EvaluationError, match="Linear: contains no recurrent layer"):
        recurrent_kernel(nn.Linear(2, 2))


def test_word_gradients_need_no_recurrence(runs: Path) -> None:
    tokenizer = tiny_tokenizer()
    for model in (tiny_rnn(tokenizer), tiny_bart(tokenizer)):
        curve = word_gradients(model, tokenizer, SOURCES[:3], TARGETS[:3], longest=4)
        assert len(curve) == 4 and all(value > 0 for value in curve)
        assert not any(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(EvaluationError, match="no sentence pair has text"):
        word_gradients(model, tokenizer, [" "], ["a"])


def test_gradient_pictures(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = plot_gradients({"a": [2.0, 1.0], "b": [4.0, 1.0]}, tmp_path / "a.svg")
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[1.0, 0.5], [1.0, 0.25]]
    with pytest.raises(PlotError, match="nothing to draw"):
        plot_gradients({"a": [0.0, 1.0]})
    monkeypatch.setattr(command_line, "quiet_libraries", lambda: None)
    script = importlib.import_module("plot_gradients")
    assert script.main(["--output", str(tmp_path / "f.png"), "--steps", "12", "--hidden_size", "8"]) == 0
    assert capsys.readouterr().out.count("after 11 positions") == len(script.CELLS)
    assert script.main([str(runs / "plain"), "--output", str(tmp_path / "m.png"), *data_of(runs)]) == 0
    assert (tmp_path / "f.png").stat().st_size > 5000 and (tmp_path / "m.png").stat().st_size > 5000
