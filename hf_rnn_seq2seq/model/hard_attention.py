"""Hard attention: each word is produced from one source position; the positions are summed out exactly, or one is drawn.

Summed out (`marginal`), with the decoder's state s_t and the encoder's state h_j, which the readout reads in the place of the
context:

    p(y_t | y_<t) = sum over j of p(a_t = j | y_<t) p(y_t | s_t, h_j)

* `hard` (Wu 2018; 0-HARD of Wu and Cotterell 2019): p(a_t = j) = softmax over j of score(s_t, h_j), whatever the positions
  of the words before.
* `monotonic` (Wu and Cotterell 2019): p(a_t = j | a_t-1 = i) = the same softmax over the j >= i alone (0-MONO). With
  `alignment_order=1` U_(j-i) [s_t; h_i] is added to the score, a preference for the length of the step; all steps of
  `JUMPS` - 1 and more have the same U (1-MONO of the paper has U alone, and no longer steps). Before the first word, i is
  the first source word.

The forward algorithm sums over the positions of all earlier words. From one target position to the next it carries
log p(a_t = j | y_<t) for each j, and the target's part of the readout, from which p(y_t | s_t, h_j) is computed when y_t
is known. So the logits of a position are the exact conditional log-probabilities, and those of the labels add up to the
log-probability of the sequence. All probabilities are logarithms, in float32 at least.

Drawn (`SampledAttention`, with its equations): the stochastic "hard" attention of Xu 2015.

Axes: batch, heads, target, source, vocab; units are the readout before its nonlinearity, in which target and source are added.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import NEVER
from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .departures import departure
from .loss import IGNORED_LABEL, LogSoftmaxAt, word_indices
from .matmul import LINEAR
from .readout import Readout
from .recurrence import states_at

JUMPS = 6  # the paper's window of 5 positions to the right, and the position itself
AVERAGED = 0.5  # probability that a sentence reads the average
DECAY = 0.9  # of the baseline of the draws


class Alignment(NamedTuple):
    """Inputs of the sum over source positions, for the target positions of a pass."""

    target: Tensor  # (batch, target, units), or with the step lengths of order 1 (batch, target, units + JUMPS)
    source: Tensor  # (batch, source, units), or (batch, source, units + JUMPS)
    weights: Tensor  # (batch, target, source), log-softmax of the scores
    source_mask: Tensor  # bool (batch, source)
    words: Tensor | None = None  # (batch, target), the words read; None for `hard`
    before: Tensor | None = (
        None  # (batch, units + source), what was carried; None: as at the start, and nothing is carried on
    )
    mask: Tensor | None = None  # bool (batch, target), False at padding


class Marginal(NamedTuple):
    """The result of the sum over source positions."""

    scores: Tensor  # (batch, target, vocab), log p(y_t | y_<t); with labels (batch, target), those of the labels
    weights: Tensor  # (batch, 1, target, source), p(a_t = j | y_<t)
    after: Tensor | None  # (batch, target, units + source), carried after each position


class Jumps(nn.Module):
    """U [s_t; h_i], a preference for each length of a step to the right."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.state = nn.Linear(config.hidden_size, JUMPS)
        self.source = nn.Linear(config.encoder_output_size, JUMPS, bias=False)


def start(source: Tensor, source_mask: Tensor, units: int) -> Tensor:
    """What is carried before the first position, (batch, units + source): the first source word, for certain."""
    exact = torch.promote_types(source.dtype, torch.float32)
    carried = torch.full((source.shape[0], units + source.shape[1]), NEVER, dtype=exact, device=source.device)
    carried[:, :units] = 0
    return carried.scatter(1, units + source_mask.long().argmax(1, keepdim=True), 0.0)


def marginal(
    alignment: Alignment,
    readout: Readout,
    head: nn.Module,
    budget: int,
    *,
    product: Callable[[Tensor], Tensor] | None = None,
    dropout: Tensor | None = None,
    labels: Tensor | None = None,
    smoothing: float = 0.0,
) -> Marginal:
    """Sums over the source positions.

    If the logits of all pairs of a target and a source position would take more than `budget` bytes, they are computed in
    chunks, of target positions and if necessary of rows, and again for the gradient.

    Args:
        alignment: of the pass.
        readout: activates the units.
        head: the output layer.
        budget: bytes.
        product: computes `head`; None: `head` itself.
        dropout: (batch, target or 1, readout), the mask of the readout, one for all source positions.
        labels: (batch, target), -100 for no label: only their smoothed log-probabilities are returned, 0 without a label,
            and nothing is carried on.
        smoothing: share of the probability of a label that is spread over the vocabulary.
    """
    target, source = alignment.target, alignment.source
    batch, length = target.shape[:2]
    upcoming, joint = _carried(alignment, readout, head)
    if dropout is not None:
        dropout = dropout.expand(-1, length, -1)
    over_time = (target, alignment.weights, upcoming, alignment.mask, dropout, labels)
    sums = partial(_sums, readout, product or head, smoothing)
    # For each pair of positions the logits, the readout and, if it is carried, the positions before.
    pair = head.weight.shape[0] + head.weight.shape[1] + source.shape[1]
    fits = budget // (source.shape[1] * pair * alignment.weights.dtype.itemsize)
    at_once = torch.compiler.is_compiling()  # an exported graph works for every batch, and reads one position
    rows = batch if at_once else min(batch, max(1, fits))
    steps = length if at_once else max(1, fits // rows)
    if rows == batch and steps >= length:
        scores, weights, carried, _ = sums(source, joint, *over_time)
        return _result(alignment, scores, weights, carried)
    # Random states are preserved for an adapter with dropout; a CUDA graph may not read them.
    again = {"use_reentrant": False, "preserve_rng_state": departure(head, LINEAR) is not None}
    results = []
    for first in range(0, batch, rows):
        here = slice(first, first + rows)
        joint_here, chunks = None if joint is None else joint[here], []
        for time in range(0, length, steps):
            part = (None if tensor is None else tensor[here, time : time + steps] for tensor in over_time)
            *chunk, joint_here = checkpoint(sums, source[here], joint_here, *part, **again)
            chunks.append(chunk)
        results.append([None if parts[0] is None else torch.cat(parts, 1) for parts in zip(*chunks, strict=True)])
    return _result(alignment, *(None if parts[0] is None else torch.cat(parts) for parts in zip(*results, strict=True)))


def _carried(alignment: Alignment, readout: Readout, head: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """The real word read after each position, (batch, target), and the joint log-probability before the first.

    That is the carried log p(a = j) + log p(word | j), (batch, source), up to a constant, with the first word read.
    """
    words, before, width = alignment.words, alignment.before, alignment.source.shape[1]
    if words is None:
        return None, None
    upcoming = torch.cat([words[:, 1:], words[:, -1:]], 1)  # the last is not known, and not read
    first = words[:, :1]
    if alignment.mask is not None:
        length = words.shape[1]
        numbers = torch.arange(length, device=words.device)
        real = torch.where(alignment.mask, numbers, length - 1).flip(1).cummin(1).values.flip(1)
        read = words.gather(1, real)
        first, upcoming = read[:, :1], torch.cat([read[:, 1:], read[:, -1:]], 1)
    if before is None:
        return upcoming, start(alignment.source, alignment.source_mask, 0)
    units = alignment.source[..., : readout.units] + before[:, : readout.units].to(alignment.source.dtype).unsqueeze(1)
    features = readout.activate(units)
    if departure(head, LINEAR) is None:
        logits = torch.bmm(features, head.weight[first].transpose(1, 2))
        logits = logits if head.bias is None else logits + head.bias[first].unsqueeze(1)
    else:
        logits = head(features).gather(2, first.unsqueeze(1).expand(-1, width, -1))
    return upcoming, before[:, readout.units :] + logits.squeeze(2)


def _sums(
    readout: Readout,
    product: Callable[[Tensor], Tensor],
    smoothing: float,
    source: Tensor,
    joint: Tensor | None,
    target: Tensor,
    weights: Tensor,
    upcoming: Tensor | None,
    mask: Tensor | None,
    dropout: Tensor | None,
    labels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The sums at some target positions; the arguments are those of `marginal` and the result of `_carried`.

    Returns:
        the scores; log p(a_t = j | y_<t), (batch, target, source); the same minus the logarithm of the normalizer of
        p(y_t | s_t, h_j), without labels; and the joint log-probability after the last position.
    """
    units = source[..., : readout.units].unsqueeze(1) + target[..., : readout.units].unsqueeze(2)
    features = readout.activate(units)
    if dropout is not None:
        features = features * dropout.unsqueeze(2)
    logits = product(features).to(weights.dtype)
    steps = None if upcoming is None else _steps(source[..., readout.units :], target[..., readout.units :], weights)
    if labels is not None and not smoothing:
        words = word_indices(labels).unsqueeze(-1)
        words = words if upcoming is None else torch.stack([words[..., 0], upcoming], -1)
        at = words.unsqueeze(2).expand(*logits.shape[:3], -1)
        produced = LogSoftmaxAt.apply(logits.flatten(0, 2), at.flatten(0, 2))[0].view(at.shape)
        if steps is not None:
            weights, joint = _forward_algorithm(steps, joint, produced[..., 1], mask)
        scores = (weights + produced[..., 0]).logsumexp(2)
        return scores.masked_fill(labels == IGNORED_LABEL, 0.0), weights, None, joint
    total = logits.logsumexp(-1)
    if steps is not None:
        read = logits.gather(-1, upcoming[:, :, None, None].expand(*logits.shape[:3], 1)).squeeze(-1)
        weights, joint = _forward_algorithm(steps, joint, read - total, mask)
    carried = weights - total
    scores = (logits + carried.unsqueeze(-1)).logsumexp(2)
    if labels is None:
        return scores, weights, carried, joint
    label = scores.gather(-1, word_indices(labels).unsqueeze(-1)).squeeze(-1)
    scores = (1 - smoothing) * label + smoothing * scores.mean(-1)
    return scores.masked_fill(labels == IGNORED_LABEL, 0.0), weights, None, joint


def _steps(source: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """log p(a_t = j | a_t-1 = i), (batch, target, i, j), from log-weights (batch, target, j).

    Args:
        source: (batch, source, JUMPS), the part of h_i in the preference for the length of a step; or no columns.
        target: (batch, target, JUMPS), the part of s_t.
        weights: the log-softmax of the scores.
    """
    numbers = torch.arange(weights.shape[2], device=weights.device)
    lengths = numbers - numbers.unsqueeze(1)
    scores = weights.unsqueeze(2)
    if source.shape[2]:
        preference = (source.unsqueeze(1) + target.unsqueeze(2)).to(weights.dtype)
        index = lengths.clamp(0, source.shape[2] - 1).expand(*preference.shape[:2], -1, -1)
        scores = scores + preference.gather(3, index)
    return scores.masked_fill(lengths < 0, NEVER).log_softmax(-1)


def _forward_algorithm(steps: Tensor, joint: Tensor, read: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """log p(a_t = j | y_<t), (batch, target, source), and the joint log-probability after the last position.

    Args:
        steps: (batch, target, i, j), log p(a_t = j | a_t-1 = i).
        joint: (batch, i), before the first position, up to a constant.
        read: (batch, target, j), log p(word | s_t, h_j) of the word read after each position.
        mask: bool (batch, target), False at padding, which changes nothing.
    """
    weights = []
    for time, (step, word) in enumerate(zip(steps.unbind(1), read.unbind(1), strict=True)):
        weights.append((joint.log_softmax(1).unsqueeze(2) + step).logsumexp(1))
        after = weights[-1] + word
        joint = after if mask is None else torch.where(mask[:, time : time + 1], after, joint)
    return torch.stack(weights, 1), joint


def _result(alignment: Alignment, scores: Tensor, weights: Tensor, carried: Tensor | None) -> Marginal:
    """The result from that of `_sums`, with what is carried: at padding as it was."""
    shares = weights.exp().masked_fill(~alignment.source_mask.unsqueeze(1), 0.0).unsqueeze(1)
    if carried is None or alignment.before is None:
        return Marginal(scores, shares, None)
    before = alignment.before.unsqueeze(1)
    units = alignment.target[..., : before.shape[2] - carried.shape[2]]
    after = torch.cat([units.to(carried.dtype), carried], 2)
    if alignment.mask is not None:
        numbers = torch.arange(1, after.shape[1] + 1, device=after.device)
        last = (numbers * alignment.mask).cummax(1).values
        after = states_at(torch.cat([before, after], 1), last)
    return Marginal(scores, shares, after)


# ---------------------------------------------------------------- one position, drawn


class SampledAttention(nn.Module):
    """The choice of the position that is read, drawn in training, and its learning rule (Xu 2015, section 4.1).

        s_t ~ Multinoulli(a_t);  z_t = h_(s_t)

    with the attention weights a_t and the states h of the source. Training maximizes the lower bound of log p(y)

        L_s = sum over s of p(s) log p(y | s)

    by the gradient of one draw for each word (equation 12 of the paper; b is a baseline, H the entropy):

        d log p(y | s) + lambda_r (log p(y | s) - b) d log p(s) + lambda_e d H(a)

    As in the paper, a sentence reads its weights' average, as with soft attention, with probability 0.5, and b is a moving
    average with a decay of 0.9. Departs: a draw answers for its word and those after it, not for the words before, on which
    it has no effect; and b is an average for each word, so that a sentence has a baseline of its length. Both leave the
    expectation as it is and lower the variance. The gradient of a sentence that reads the average passes through its weights.

    Outside training the most likely position is read, so that searches and scores do not depend on chance. The authors'
    program draws there too. The baseline is in the checkpoint, so that a resumed run continues as it would have; each
    of several processes follows its own rewards, and a checkpoint has the first one's.
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.reward, self.entropy = config.sampled_attention_reward, config.sampled_attention_entropy
        self.register_buffer("baseline", torch.zeros(()))

    def rows(self, weights: Tensor) -> Tensor | None:
        """Which sentences draw in a pass over them, bool (batch, 1, 1, 1); None outside training.

        Args:
            weights: any tensor with the batch first.
        """
        if not self.training:
            return None
        return torch.rand(len(weights), 1, 1, 1, device=weights.device) >= AVERAGED

    def forward(self, weights: Tensor, rows: Tensor | None) -> Tensor:
        """What multiplies the source's values: 1 at one position; or in training the weights, where `rows` is False.

        Args:
            weights: (batch, heads, target, source), of sum 1, or 0 where no position is allowed.
            rows: which sentences draw, from `rows`; None: each head reads its most likely position.
        """
        # The largest quotient by exponential noise is a draw by the weights.
        noise = 1.0 if rows is None else torch.empty_like(weights, dtype=torch.float32).exponential_()
        position = (weights.detach() / noise).argmax(-1, keepdim=True)
        one = torch.zeros_like(weights).scatter(-1, position, 1.0) * (weights > 0)
        return one if rows is None else torch.where(rows, one, weights)

    def loss(self, weights: Tensor, read: Tensor, losses: Tensor, real: Tensor) -> Tensor:
        """Minus lambda_r (log p(y | s) - b) log p(s) - lambda_e H(a), summed over the batch; and moves the baseline.

        The first term has the value 0: it is there for its gradient.

        Args:
            weights: (batch, heads, target, source).
            read: what `forward` returned. Of a sentence that read its weights the gradient of the first term is 0, because
                that of their sum is.
            losses: (batch, target), -log p of each word, without a gradient.
            real: bool (batch, target), True where a word is predicted.
        """
        rewards = -losses.masked_fill(~real, 0.0)
        shares = weights.to(losses.dtype)
        logs = shares.clamp(min=torch.finfo(losses.dtype).tiny).log()
        surplus = (rewards - self.baseline.to(rewards)).masked_fill(~real, 0.0)
        later = surplus.flip(1).cumsum(1).flip(1)
        gained = self.reward * (later * (read.detach() * logs).sum(-1).sum(1)).sum()
        loss = gained.detach() - gained
        if self.entropy:
            loss = loss + self.entropy * ((shares * logs).sum(-1).sum(1) * real).sum()
        self._follow(rewards.sum() / real.sum())
        return loss

    @torch.no_grad()
    def _follow(self, mean: Tensor) -> None:
        """b <- 0.9 b + 0.1 mean, unless an update without words, or one that is not finite, would spoil it."""
        mean = mean.to(self.baseline)
        self.baseline.lerp_(torch.where(mean.isfinite(), mean, self.baseline), 1 - DECAY)
