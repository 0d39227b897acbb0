"""Vanishing gradients: the norm of the gradient of the loss with respect to a state, or a word, far back in time.

Bengio, Simard and Frasconi 1994 explain why a recurrence without gates forgets; Hochreiter and Schmidhuber 1997 and Cho
et al. 2014 add the gates. `state_gradients` measures one recurrent layer, `word_gradients` a whole model.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.generation.batches import evaluation_mode
from hf_rnn_seq2seq.generation.encoding import encode_targets, encoded_sources
from hf_rnn_seq2seq.visualization.figure import (
    QUIET,
    SERIES,
    check_output,
    legend,
    log_axis,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def recurrent_kernel(module: nn.Module) -> nn.RNNBase:
    """The first recurrent layer of torch inside `module`, such as the encoder of a model.

    Raises:
        ArgumentError: there is none.
    """
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            return part
    raise ArgumentError(f"{type(module).__name__}: contains no recurrent layer of torch")


@torch.no_grad()
def open_gates(kernel: nn.RNNBase, bias: float) -> None:
    """Adds `bias` to the bias of the gate that keeps the old state (LSTM: forget; GRU: update), in place.

    With random weights the gate passes about half of the old state on at each position. A high initial bias opens it
    (Gers, Schmidhuber and Cummins 2000; Jozefowicz, Zaremba and Sutskever 2015).

    Raises:
        ArgumentError: the layer has no gates.
    """
    if not isinstance(kernel, nn.LSTM | nn.GRU):
        raise ArgumentError(f"{type(kernel).__name__}: has no gates; use an LSTM or a GRU")
    kernel.bias_ih_l0[kernel.hidden_size : 2 * kernel.hidden_size] += bias


def state_gradients(kernel: nn.RNNBase, inputs: Tensor, *, seed: int = 0) -> Tensor:
    """|d loss / d state_t| for each t, averaged over the batch; (time,).

    The loss is the last hidden state projected on a random direction, a different one for each row. The state of an
    LSTM includes its cell.

    Args:
        kernel: a recurrent layer of torch with one layer, one direction and `batch_first`.
        inputs: (batch, time, input).
    """
    generator = torch.Generator().manual_seed(seed)
    state: Tensor | tuple[Tensor, ...] | None = None
    states: list[tuple[Tensor, ...]] = []
    for position in inputs.unbind(1):
        _, state = kernel(position.unsqueeze(1), state)
        states.append(state if isinstance(state, tuple) else (state,))
    last = states[-1][0]
    direction = torch.randn(last.shape, generator=generator).to(last)
    loss = (last * direction / direction.norm(dim=-1, keepdim=True)).sum()
    flat = [part for parts in states for part in parts]
    gradients = torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True)
    size = len(states[0])  # tensors of one state
    norms = [torch.cat(gradients[start : start + size], -1).norm(dim=-1) for start in range(0, len(flat), size)]
    return torch.stack(norms).flatten(1).mean(1)


def word_gradients(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    references: Sequence[str],
    *,
    longest: int = 60,
) -> list[float]:
    """|d loss / d word vector| by distance from the end of the source, averaged over sentences.

    Of a model over a foreign encoder the vectors are the states of that, which stand in the place of word vectors. The
    loss is that of the model on the first word of the reference, so it measures what the decoder knows about the source
    at its first step.

    Raises:
        ArgumentError: no pair has text on both sides, or the model sums features, which are at no place of the source.
    """
    if getattr(model.config, "feature_token_ids", None):
        raise ArgumentError(
            f"feature_token_ids={model.config.feature_token_ids}: the sum of features has no distance to a word; draw "
            "a model that was trained without sum_features"
        )
    sums, counts = [0.0] * longest, [0] * longest
    targets = encode_targets(tokenizer, references)
    with evaluation_mode(model):
        for ids, reference, labels in zip(encoded_sources(tokenizer, sources).ids, references, targets, strict=True):
            if not ids or not reference.strip():
                continue
            words = torch.tensor([ids], device=model.device)
            mask = torch.ones_like(words)
            foreign = getattr(model.get_encoder(), "foreign", None)
            vectors = model.get_input_embeddings()(words) if foreign is None else foreign(words, mask.bool())
            vectors = vectors.detach().requires_grad_()
            target = torch.tensor([labels[:1]], device=model.device)
            with torch.enable_grad():
                loss = model(inputs_embeds=vectors, attention_mask=mask, labels=target).loss
            norms = torch.autograd.grad(loss, vectors)[0][0].norm(dim=-1).flip(0)[:longest]
            for distance, norm in enumerate(norms.tolist()):
                sums[distance] += norm
                counts[distance] += 1
    if not counts[0]:
        raise ArgumentError("no sentence pair has text on both sides")
    return [total / count for total, count in zip(sums, counts, strict=True) if count]


def plot_gradients(
    curves: Mapping[str, Sequence[float]],
    output: str | os.PathLike[str] | None = None,
    *,
    title: str = "",
    backwards: str = "positions back in time",
) -> "Figure":
    """Draws gradient norms by distance, a line for each system, relative to its value at distance 0.

    Args:
        curves: name -> norms, from distance 0 on.
        output: file to write, .png, .svg or .pdf.
        backwards: label of the distance axis.

    Returns the Matplotlib figure. Raises ArgumentError if a curve is empty or its first value is 0.
    """
    if not curves or not all(len(curve) and curve[0] > 0 for curve in curves.values()):
        raise ArgumentError("curves: each needs at least one value, and its first value must be above 0")
    check_output(output)
    figure = new_figure(figsize=(6.2, 3.4), layout="constrained")
    ax = figure.subplots()
    for position, curve in enumerate(curves.values()):
        shares = [value / curve[0] for value in curve]
        ax.plot(range(len(shares)), shares, color=SERIES[position % len(SERIES)], linewidth=1.8)
    log_axis(ax)
    style_axes(ax, title or "norm of the gradient, relative to the last position")
    ax.set_xlabel(backwards, fontsize=8, color=QUIET, loc="right")
    legend(figure, list(curves))
    return save_figure(figure, output)
