"""Gradients equal finite differences, and gates preserve them."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.visualization.gradients import (
    open_gates,
    plot_gradients,
    recurrent_kernel,
    state_gradients,
    word_gradients,
)
from tests.helpers.checkpoints import SOURCES, TARGETS, tiny_bart, tiny_rnn, tiny_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_state_gradients_are_those_of_finite_differences(kind: type[nn.RNNBase]) -> None:
    """A small step of a state along its gradient changes the loss by the gradient's norm times the step."""
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
    with pytest.raises(ArgumentError, match="RNN: has no gates"):
        open_gates(nn.RNN(2, 2), 1.0)
    with pytest.raises(ArgumentError, match="Linear: contains no recurrent layer"):
        recurrent_kernel(nn.Linear(2, 2))


def test_word_gradients_need_no_recurrence(runs: Path) -> None:
    tokenizer = tiny_tokenizer()
    for model in (tiny_rnn(tokenizer), tiny_bart(tokenizer)):
        curve = word_gradients(model, tokenizer, SOURCES[:3], TARGETS[:3], longest=4)
        assert len(curve) == 4 and all(value > 0 for value in curve)
        assert not any(parameter.grad is not None for parameter in model.parameters())
    encoder = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    model = tiny_rnn(tokenizer, encoder={"model_type": "bert", **encoder}, freeze_encoder=True)
    assert all(value > 0 for value in word_gradients(model, tokenizer, SOURCES[:3], TARGETS[:3], longest=4))
    with pytest.raises(ArgumentError, match="no sentence pair has text"):
        word_gradients(model, tokenizer, [" "], ["a"])


def test_gradient_pictures(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = plot_gradients({"a": [2.0, 1.0], "b": [4.0, 1.0]}, tmp_path / "a.svg")
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[1.0, 0.5], [1.0, 0.25]]
    with pytest.raises(ArgumentError, match="first value must be above 0"):
        plot_gradients({"a": [0.0, 1.0]})
    monkeypatch.setattr(command_line, "load_libraries", lambda: None)
    script = importlib.import_module("hf_rnn_seq2seq.commands.plot_gradients")
    data = ["--test_file", str(runs / "pairs.tsv"), "--source_lang", "en", "--target_lang", "fr"]
    assert script.main(["--output_file", str(tmp_path / "f.png"), "--steps", "12", "--hidden_size", "8"]) == 0
    assert capsys.readouterr().out.count("after 11 positions") == len(script.CELLS)
    assert script.main([str(runs / "plain"), "--output_file", str(tmp_path / "m.png"), *data]) == 0
    assert (tmp_path / "f.png").stat().st_size > 5000 and (tmp_path / "m.png").stat().st_size > 5000
