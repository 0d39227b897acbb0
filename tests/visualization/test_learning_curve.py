"""Learning curves, and scores by source length."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_rnn_seq2seq import errors
from hf_rnn_seq2seq.evaluation.length_bins import LengthBin
from hf_rnn_seq2seq.visualization.learning_curve import plot_learning_curve, plot_score_by_length

ROOT = Path(__file__).parents[2]
HEADS = {"attention_type": "multi_head", "num_attention_heads": 2}
sys.path.insert(0, str(ROOT / "scripts"))


def write_log(folder: Path, offset: float = 0.0) -> Path:
    folder.mkdir()
    rows: list[dict[str, Any]] = [{"event": "start", "versions": "x"}]
    rows += [{"step": step, "loss": 9 / step + offset, "learning_rate": 0.1} for step in (10, 20, 30)]
    rows += [{"step": 20, "eval_loss": 0.5, "eval_bleu": 30.0}, {"step": 30, "loss": 0.25, "eval_bleu": float("nan")}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train_log.jsonl").write_text(text + '{"step": 40, "lo')
    return folder


def test_learning_curve_draws_what_the_log_holds(tmp_path: Path) -> None:
    run = write_log(tmp_path / "first")
    figure = plot_learning_curve(run / "train_log.jsonl", tmp_path / "a.png")
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title("left").split("   ")[0] for ax in shown] == ["loss", "BLEU, validation", "learning rate"]
    training, evaluated = shown[0].lines
    assert training.get_xydata().tolist() == [[10, 0.9], [20, 0.45], [30, 0.25]]  # a repeated step counts as last said
    assert evaluated.get_xydata().tolist() == [[20, 0.5]]
    assert shown[1].lines[1].get_xydata().tolist() == [[20, 30.0]]
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_runs_are_overlaid_under_their_names(tmp_path: Path) -> None:
    first, second = write_log(tmp_path / "first"), write_log(tmp_path / "second", 1.0)
    figure = plot_learning_curve([first, second], tmp_path / "a.pdf")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]
    assert figure.axes[0].lines[2].get_ydata()[0] == pytest.approx(1.9)
    script = importlib.import_module("plot_learning_curve")
    assert script.main([str(first), str(second), "--output_file", str(tmp_path / "b.pdf")]) == 0
    assert (tmp_path / "b.pdf").read_bytes() == (tmp_path / "a.pdf").read_bytes()
    with pytest.raises(errors.ArgumentError, match="no such log"):
        plot_learning_curve([first, tmp_path / "missing"])
    (second / "train_log.jsonl").write_text('{"step"\n{"step": 1}\n')
    with pytest.raises(errors.ArgumentError, match="line 1 is not a JSON object"):
        plot_learning_curve(second)
    (second / "train_log.jsonl").write_text('{"step": 1, "other": 2}\n')
    with pytest.raises(errors.ArgumentError, match="contain no quantity to draw"):
        plot_learning_curve(second)


def test_score_by_length_draws_every_system(tmp_path: Path) -> None:
    bins = [LengthBin(1, 5, 40, 50.0, 1.0), LengthBin(6, 10, 20, 40.0, 0.9)]
    lower = [LengthBin(1, 5, 40, 45.0, 1.1), LengthBin(6, 10, 20, 20.0, 0.8)]
    figure = plot_score_by_length({"attention": bins, "none": lower}, tmp_path / "a.svg")
    left, right = (ax for ax in figure.axes if ax.lines)
    assert [line.get_xydata().tolist() for line in left.lines] == [[[3, 50], [8, 40]], [[3, 45], [8, 20]]]
    assert [line.get_ydata().tolist() for line in right.lines[:2]] == [[1.0, 0.9], [1.1, 0.8]]
    figure.savefig(tmp_path / "a.png")
    counts = {text.get_text(): text for text in left.texts}
    assert set(counts) == {"40", "20"}
    top = max(line.get_ydata().max() for line in left.lines)  # no line runs through the numbers
    assert all(text.get_window_extent().y0 > left.transData.transform((0, top))[1] for text in counts.values())
    assert left.get_xlim() == right.get_xlim()
    with pytest.raises(errors.ArgumentError, match="at least one length bin"):
        plot_score_by_length({"attention": []})
