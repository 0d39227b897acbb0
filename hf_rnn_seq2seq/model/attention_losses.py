"""What training may ask of the attention weights beside the right words, and what the log says about them.

Weights are (batch, heads, target, source); the heads' average counts as the one attention. Positions without a label count
for nothing.
"""

import torch
from torch import Tensor

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .loss import IGNORED_LABEL


def figure_names(config: RnnSeq2SeqConfig) -> tuple[str, ...]:
    """The figures of `attention_terms`, in order; none without attention."""
    if config.context != "attention":
        return ()
    names = {"coverage_loss": config.coverage_loss, "guided_alignment_loss": config.guided_alignment_weight}
    own = ("ml_loss",) * config.supervises_attention
    return (*own, "attention_entropy", *(name for name, weight in names.items() if weight))


def attention_terms(
    nats: Tensor, weights: Tensor, labels: Tensor, alignments: Tensor | None, config: RnnSeq2SeqConfig
) -> tuple[Tensor, Tensor]:
    """The weighted losses of the attention, summed over the batch, (); and (figures, 2), the sum and number of each.

    Args:
        nats: the loss without them, summed over the batch, ().
        weights: (batch, heads, target, source).
        labels: (batch, target), -100 where there is none.
        alignments: (batch, target, source), see `guided_alignment_loss`; None: no row says anything.
        config: says which losses count, and how much.
    """
    real = labels.to(weights.device) != IGNORED_LABEL
    shares = weights.to(torch.promote_types(weights.dtype, torch.float32))
    entropy = -torch.xlogy(shares.detach(), shares.detach()).sum(-1).mean(1)
    figures = [(nats.to(entropy), real.sum())] * config.supervises_attention
    figures.append((entropy.masked_fill(~real, 0.0).sum(), real.sum()))
    shares, penalty = shares.mean(1), shares.new_zeros(())
    if config.coverage_loss:
        loss = coverage_loss(shares, real)
        penalty = penalty + config.coverage_loss * loss
        figures.append((loss, real.sum()))
    if config.guided_alignment_weight:
        given = torch.zeros_like(shares) if alignments is None else alignments
        loss, aligned = guided_alignment_loss(shares, real, given, torch.finfo(weights.dtype).tiny)
        penalty = penalty + config.guided_alignment_weight * loss
        figures.append((loss, aligned))
    return penalty, torch.stack([torch.stack([total, count.to(total.dtype)]) for total, count in figures]).detach()


def coverage_loss(weights: Tensor, real: Tensor) -> Tensor:
    """Sum over positions t of sum_i min(a_i^t, c_i^t), with c^t the sum of the a before t (See 2017, equation 12).

    Args:
        weights: (batch, target, source).
        real: bool (batch, target).
    """
    weights = weights * real.unsqueeze(-1)
    covered = weights.cumsum(1) - weights
    return torch.minimum(weights, covered).sum()


def guided_alignment_loss(weights: Tensor, real: Tensor, alignments: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Sum over positions t of -sum_i A_ti log a_ti, each row of A made to sum to 1 (Chen 2016); and how many say something.

    Args:
        weights: (batch, target, source).
        real: bool (batch, target).
        alignments: (batch, target, source), not negative; a row of zeros says nothing.
        smallest: a weight below this counts as this.

    Raises:
        ValueError: the alignments have another shape than the weights.
    """
    if alignments.shape != weights.shape:
        raise ValueError(
            f"alignments of shape {tuple(alignments.shape)}: must be (batch, target, source) = {tuple(weights.shape)}"
        )
    given = alignments.to(weights) * real.unsqueeze(-1)
    total = given.sum(-1, keepdim=True)
    given = given / total.masked_fill(total == 0, 1.0)
    return -(given * weights.clamp(min=smallest).log()).sum(), (total > 0).sum()


__all__ = ["attention_terms", "coverage_loss", "figure_names", "guided_alignment_loss"]
