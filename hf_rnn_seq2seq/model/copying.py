"""Copying words of the source: the pointer-generator (See 2017, section 2.2) over one vocabulary for both sides.

    p_gen = sigmoid(w_c c_t + w_s s_t + w_x x_t + b)                                (equation 8)
    P(w)  = p_gen P_vocab(w) + (1 - p_gen) sum over the i with source word w of a_i   (equation 9)

with the context c, the decoder's state s, the word x it reads, and the attention a (the mean over several heads). If the
attention does not sum to 1 (a Gaussian window, 16 bits) it is divided by its sum; a row without any source word only
generates. Padding has no weight, so it is never copied; the source's end of sentence is copied like any word. The
vocabulary is not extended by a source's unknown words: they are copied as the unknown token.

All probabilities are logarithms, so that small ones do not underflow.

Axes: batch, target, source, vocab.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .departures import departure
from .loss import IGNORED_LABEL, LogSoftmaxAt, word_indices
from .matmul import LINEAR, without_autocast


class Copying(NamedTuple):
    """Inputs of the copy distribution."""

    gate: Tensor  # (batch, target), log-odds of p_gen
    weights: Tensor  # (batch, target, source), attention averaged over heads; zero at padding
    source_ids: Tensor  # (batch, source)

    def last(self, positions: int) -> "Copying":
        """The last target positions only."""
        return self._replace(gate=self.gate[:, -positions:], weights=self.weights[:, -positions:])


class CopyGate(nn.Module):
    """w_c c_t + w_s s_t + w_x x_t + b (See 2017, equation 8)."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.context_width + config.hidden_size + config.embedding_size, 1)

    def forward(self, context: Tensor, state: Tensor, word: Tensor) -> Tensor:
        """(batch, target, width) each -> (batch, target)."""
        return self.project(torch.cat([context, state, word], -1)).squeeze(-1)


def missing_source(source_ids: Tensor | None, source_mask: Tensor) -> str:
    """The error message for missing source ids."""
    if source_ids is None:
        return (
            "copy_mechanism=True: copying needs the words of the source, not only its states; give input_ids, or the "
            "encoder_outputs that get_encoder() computed from input_ids"
        )
    return f"source ids of shape {tuple(source_ids.shape)}: must be (batch, source) = {tuple(source_mask.shape)}"


def mixture(logits: Tensor, copying: Copying) -> Tensor:
    """log P(w), (batch, target, vocab) in float32 at least, from the logits of P_vocab."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    log_generate, log_copy, weights = _parts(copying, exact)
    generated = logits.to(exact).log_softmax(-1) + log_generate.unsqueeze(-1)
    index = copying.source_ids.unsqueeze(1).expand_as(weights)
    gain = _gain(generated.gather(-1, index), log_copy.unsqueeze(-1), _by_word(weights, copying.source_ids))
    return generated.scatter_add(-1, index, gain)


def copy_loss(
    readout: Tensor, head: nn.Module, copying: Copying, labels: Tensor, smoothing: float, budget: int
) -> Tensor:
    """Sum over the labeled positions of the smoothed cross entropy of P, in nats; a scalar of float32 at least.

    P itself is never computed: the logits' logsumexp, the label's logit and those of the source's words are enough. If the
    logits would take more than `budget` bytes in float32, they are computed in chunks of positions, and again for the
    gradient: bounded memory at the price of one more product of the output layer.

    Args:
        readout: (batch, target, D).
        head: the output layer, D to vocab.
        copying: of the same positions.
        labels: (batch, target), -100 for no label.
        smoothing: share of the probability spread over the vocabulary.
        budget: bytes.
    """
    labels = labels.to(readout.device)
    exact = torch.promote_types(readout.dtype, torch.float32)
    log_generate, log_copy, weights = _parts(copying, exact)
    ids = copying.source_ids.unsqueeze(1).expand_as(weights)
    copied = (weights * (ids == labels.unsqueeze(-1))).sum(-1)
    parts = [readout, labels, log_generate, log_copy, copied]
    if smoothing:
        parts += [ids, _by_word(weights, copying.source_ids)]
    if readout.device.type == "cpu":
        # Elsewhere the number of labeled positions would have to be read back, which stops the device's queue.
        real = labels != IGNORED_LABEL
        parts = [part[real] for part in parts]
    else:
        parts = [part.flatten(0, 1) for part in parts]
    size = max(1, budget // ((getattr(head, "out_features", None) or head.weight.shape[0]) * exact.itemsize))
    if len(parts[0]) <= size:
        return _rows_loss(head, smoothing, *parts)
    chunks = zip(*(part.split(size) for part in parts), strict=True)
    # Random states are preserved for an adapter with dropout; a CUDA graph may not read them.
    again = {"use_reentrant": False, "preserve_rng_state": departure(head, LINEAR) is not None}
    return sum(checkpoint(_rows_loss, head, smoothing, *chunk, **again) for chunk in chunks)


def _rows_loss(
    head: nn.Module,
    smoothing: float,
    readout: Tensor,
    labels: Tensor,
    log_generate: Tensor,
    log_copy: Tensor,
    copied: Tensor,
    ids: Tensor | None = None,
    by_word: Tensor | None = None,
) -> Tensor:
    """The summed loss of n positions: tensors (n,), readout (n, D), and with smoothing ids and by_word (n, source).

    With e the smoothing: -(1 - e) log P(label) - e / V sum over w of log P(w).
    """
    logits = head(readout).to(log_generate.dtype)
    words = word_indices(labels).unsqueeze(1)
    words = torch.cat([words, ids], 1) if smoothing else words
    generated, mean = LogSoftmaxAt.apply(logits, words)
    generated = generated + log_generate.unsqueeze(1)
    score = generated[:, 0] + _gain(generated[:, 0], log_copy, copied)
    if smoothing:
        gain = _gain(generated[:, 1:], log_copy.unsqueeze(1), by_word)
        everywhere = mean + log_generate + gain.sum(-1) / logits.shape[1]
        score = (1 - smoothing) * score + smoothing * everywhere
    return -(score * (labels != IGNORED_LABEL)).sum()


def _parts(copying: Copying, exact: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """log p_gen, log (1 - p_gen), and weights that sum to 1, or to 0 if there is nothing to copy."""
    gate, weights = copying.gate.to(exact), copying.weights.to(exact)
    total = weights.sum(-1)
    log_generate = F.logsigmoid(gate).masked_fill(total <= 0, 0.0)
    return log_generate, F.logsigmoid(-gate), weights / total.clamp(min=torch.finfo(exact).tiny).unsqueeze(-1)


def _by_word(weights: Tensor, source_ids: Tensor) -> Tensor:
    """The weights of all positions of a word, summed at its first position; 0 at the others (batch, target, source)."""
    same = source_ids.unsqueeze(1) == source_ids.unsqueeze(2)
    numbers = torch.arange(source_ids.shape[1], device=source_ids.device)
    repeated = (same & (numbers.unsqueeze(1) > numbers)).any(-1)
    with without_autocast(weights):
        received = weights @ same.to(weights.dtype)
    return received.masked_fill(repeated.unsqueeze(1), 0.0)


def _gain(generated: Tensor, log_copy: Tensor, copied: Tensor) -> Tensor:
    """The increase of the logarithm `generated` by copying: log(e^generated + e^log_copy copied) - generated; 0 without."""
    # Without the clamp the logarithm of zero would make the gradient NaN, even in the branch that is not taken.
    ratio = log_copy + copied.clamp(min=torch.finfo(copied.dtype).tiny).log() - generated
    return torch.where(copied > 0, torch.logaddexp(ratio, torch.zeros_like(ratio)), 0.0)
