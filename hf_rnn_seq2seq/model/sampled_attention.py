"""Attention that reads one source position, drawn in training: the stochastic "hard" attention of Xu 2015, section 4.1.

    s_t ~ Multinoulli(a_t);  z_t = h_(s_t)

with the attention weights a_t and the states h of the source. Training maximizes the lower bound of log p(y)

    L_s = sum over s of p(s) log p(y | s)

by the gradient of one draw for each word (equation 12 of the paper; b is a baseline, H the entropy):

    d log p(y | s) + lambda_r (log p(y | s) - b) d log p(s) + lambda_e d H(a)

As in the paper, a sentence reads its weights' average, as with soft attention, with probability 0.5, and b is a moving average
with a decay of 0.9. Departs: a draw answers for its word and those after it, not for the words before, on which it has no
effect; and b is an average for each word, so that a sentence has a baseline of its length. Both leave the expectation as it
is and lower the variance. The gradient of a sentence that reads the average passes through its weights.

Outside training the most likely position is read, so that searches and scores do not depend on chance. The authors' program
draws there too.

Axes: batch, heads, target, source.
"""

import torch
from torch import Tensor, nn

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig

AVERAGED = 0.5  # probability that a sentence reads the average
DECAY = 0.9  # of the baseline


class SampledAttention(nn.Module):
    """The choice of the position that is read, and its learning rule.

    The baseline is in the checkpoint, so that a run that is resumed goes on as it would have.
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
