"""The training loss: cross entropy of the output layer in bounded memory, and auxiliary losses on the attention weights.

The cross entropy counts the positions that have a label. Logits are overwritten by their gradient, instead of being kept
together with their log-softmax and their gradient: to allocate memory of that size takes a tenth of a small model's
training step on a CPU. If the logits of all positions would take more than a budget, they are computed in chunks of
positions. Logits of 16 bits are widened some rows at a time, so that the memory stays in the processor's caches. Value and
gradients are the same; there is no second derivative.

Attention weights are (batch, heads, target, source); the auxiliary losses read the average of the heads. Positions without
a label do not count.

N counts positions, D the readout, V the vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .departures import departure
from .matmul import LINEAR, compiles_products, compute_dtype, onednn_is_faster, outer, product, without_autocast

IGNORED_LABEL = -100
BLOCK = 2**18  # logits that are widened together: 1 MiB in float32
ROWS = 32  # rows are padded to a multiple of it where oneDNN compiles products for each number of rows


def perplexity(nats: float) -> float:
    """exp of a mean loss in nats; above 700 nats it is exp(700), because exp(710) overflows a 64-bit float."""
    return math.exp(min(nats, 700.0))


def output_loss(readout: Tensor, head: nn.Linear, labels: Tensor, smoothing: float, budget: int) -> Tensor:
    """Sum over the labeled positions of the smoothed cross entropy, in nats; a scalar of float32 at least.

    Args:
        readout: (batch, target, D).
        head: the output layer, D to V.
        labels: (batch, target), -100 for no label.
        smoothing: share of the probability spread over the vocabulary.
        budget: bytes of logits in float32; above it they are computed in chunks.
    """
    labels = labels.to(readout.device)
    # Adapters replace the layer, and offloading wraps its forward: then the weight alone is not enough.
    plain = departure(head, LINEAR) is None
    if readout.device.type == "cpu":
        # Elsewhere the number of labeled positions would have to be read back, which stops the device's queue.
        real = labels != IGNORED_LABEL
        rows, labels = readout[real], labels[real]
        if plain and compiles_products(rows, head.weight) and (spare := -len(rows) % ROWS):
            rows, labels = F.pad(rows, (0, 0, 0, spare)), F.pad(labels, (0, spare), value=IGNORED_LABEL)
    else:
        rows, labels = readout.flatten(0, 1), labels.flatten()
    if plain:
        row_bytes = head.weight.shape[0] * torch.promote_types(rows.dtype, torch.float32).itemsize
        in_place = rows.device.type == "cpu" and torch.is_grad_enabled()
        if in_place or len(rows) * row_bytes > budget:
            return chunked_cross_entropy(rows, head.weight, head.bias, labels, smoothing, max(1, budget // row_bytes))
    logits = head(rows)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)


def word_indices(labels: Tensor) -> Tensor:
    """The labels as indices of words: 0 where there is none, whose result the caller drops."""
    return labels.masked_fill(labels == IGNORED_LABEL, 0)


def logits_loss(logits: Tensor, labels: Tensor, budget: int, smoothing: float = 0.0) -> Tensor:
    """Sum over the labeled positions of the smoothed cross entropy, in nats; a scalar of float32 at least.

    Args:
        logits: (batch, target, V).
        labels: (batch, target), -100 for no label.
        budget: bytes of the log-softmax in float32; a larger one is computed in chunks.
        smoothing: share of the probability spread over the vocabulary.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)
    size = max(1, budget // (logits.shape[-1] * exact.itemsize))
    chunks = zip(
        logits.flatten(0, 1).split(size), labels.to(logits.device, torch.long).flatten().split(size), strict=True
    )
    smooth = {"reduction": "sum", "label_smoothing": smoothing}
    return sum(F.cross_entropy(rows.to(exact), words, **smooth) for rows, words in chunks)


def chunked_cross_entropy(
    rows: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float, size: int
) -> Tensor:
    """Sum of the smoothed cross entropy of `rows @ weight.T + bias`, `size` rows at a time.

    Under autocast the products are computed in its type, the softmax in float32.

    Args:
        rows: (N, D).
        weight: (V, D).
        bias: (V,) or None.
        labels: (N,), -100 for rows that do not count.
        smoothing: share of the probability spread over the vocabulary.
        size: rows of a chunk.
    """
    rows = rows.to(compute_dtype(rows))
    with without_autocast(rows):
        return _ChunkedCrossEntropy.apply(rows, weight, bias, labels, smoothing, size)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float, size: int
    ) -> Tensor:
        ctx.smoothing, ctx.size = smoothing, size
        ctx.save_for_backward(rows, weight, bias, labels)
        ctx.needed = ctx.needs_input_grad[:3]
        total, *ctx.gradients = _loss_and_gradients(rows, weight, bias, labels, smoothing, size, ctx.needed)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_total: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second backward pass: the first one has freed them
            gradients = _loss_and_gradients(*ctx.saved_tensors, ctx.smoothing, ctx.size, ctx.needed)[1:]
        # In place: a copy of the weight's gradient would be the largest tensor of a step with a large vocabulary.
        scaled = (None if gradient is None else gradient.mul_(d_total) for gradient in gradients)
        return *scaled, None, None, None


def _loss_and_gradients(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    smoothing: float,
    size: int,
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The sum of the loss, and the gradients of rows, weight and bias that are needed."""
    exact = torch.promote_types(rows.dtype, torch.float32)
    used = weight.to(rows.dtype)
    total = torch.zeros((), dtype=exact, device=rows.device)
    d_rows = torch.empty_like(rows) if needed[0] else None
    whole = 0 < len(rows) <= size  # one chunk, whose product is the gradient
    d_weight = torch.zeros_like(weight, dtype=exact) if needed[1] and not whole else None
    d_bias = torch.zeros_like(bias, dtype=exact) if needed[2] else None
    # Blocks do not help on a device: each would launch its own kernels.
    block = max(1, BLOCK // len(weight)) if rows.device.type == "cpu" else size
    for start in range(0, len(rows), size):
        part, here = rows[start : start + size], labels[start : start + size]
        d_logits = product(part, used.t())
        for logits, targets in zip(d_logits.split(block), here.split(block), strict=True):
            wide = logits.to(exact)
            if bias is not None:
                wide += bias  # here, while the logits are in the processor's cache
            total += _softmax_loss(wide, targets, smoothing)
            if d_bias is not None:
                d_bias += wide.sum(0)
            if wide is not logits:
                logits.copy_(wide)
        if d_rows is not None:
            product(d_logits, used, d_rows[start : start + size])
        if needed[1] and whole:
            d_weight = outer(d_logits, part)
        elif needed[1]:
            _add_outer(d_weight, d_logits, part)
    d_weight = None if d_weight is None else d_weight.to(weight.dtype)
    return total, d_rows, d_weight, None if d_bias is None else d_bias.to(bias.dtype)


def _softmax_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The summed loss of logits (n, V), whose gradient overwrites them.

    With e the smoothing: loss = logsumexp(z) - (1 - e) z_label - e mean(z); gradient = softmax(z) - (1 - e) at the
    label - e / V everywhere.
    """
    counts = (labels != IGNORED_LABEL).to(logits.dtype)
    index, spread = word_indices(labels).unsqueeze(1), smoothing / logits.shape[1]
    target = (1 - smoothing) * logits.gather(1, index).squeeze(1)
    if smoothing:
        target += spread * logits.sum(1)
    # The logarithm of the sum of exponentials follows from the largest logit and its probability.
    largest = logits.amax(1)
    torch.softmax(logits, 1, out=logits)
    loss = ((largest - logits.amax(1).log() - target) * counts).sum()
    logits.mul_(counts.unsqueeze(1))
    if smoothing:
        logits.sub_((spread * counts).unsqueeze(1))
    logits.scatter_add_(1, index, ((smoothing - 1) * counts).unsqueeze(1))
    return loss


def _add_outer(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (V, D) += left (n, V)^T right (n, D).

    If the product cannot be added in the same operation, it is computed for a block of the vocabulary at a time.
    """
    if total.dtype == left.dtype and (total.device.type != "cpu" or not onednn_is_faster()):
        total.addmm_(left.t(), right)
        return
    block = 8192
    for start in range(0, len(total), block):
        total[start : start + block] += outer(left[:, start : start + block], right)


@torch.no_grad()
def word_losses(readout: Tensor, head: nn.Module, labels: Tensor, smoothing: float, size: int) -> Tensor:
    """What each position adds to `output_loss`, (batch, target), without a gradient; arguments as there.

    Args:
        size: positions whose logits are computed together.
    """
    found = []
    labeled = labels.to(readout.device).flatten()
    for rows, words in zip(readout.flatten(0, 1).split(size), labeled.split(size), strict=True):
        logits = head(rows)
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        found.append(F.cross_entropy(exact, words, reduction="none", label_smoothing=smoothing))
    return torch.cat(found).view(labels.shape)


class LogSoftmaxAt(torch.autograd.Function):
    """The log-softmax of logits (n, V) at some words (n, k), and its mean over all (n,). Its gradient is one tensor."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        total = logits.logsumexp(1, keepdim=True)
        ctx.save_for_backward(logits, total, words)
        return logits.gather(1, words) - total, logits.mean(1) - total[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_at: Tensor, d_mean: Tensor | None) -> tuple[Tensor, None]:
        logits, total, words = ctx.saved_tensors
        received = d_at.sum(1) if d_mean is None else d_at.sum(1) + d_mean
        d_logits = torch.sub(logits, total).exp_().mul_(-received.unsqueeze(1))
        if d_mean is not None:
            d_logits.add_(d_mean.unsqueeze(1) / logits.shape[1])
        return d_logits.scatter_add_(1, words, d_at), None


def figure_names(config: RnnSeq2SeqConfig) -> tuple[str, ...]:
    """The figures of `attention_terms`, in order; none without attention."""
    if config.context != "attention":
        return ()
    names = {"coverage_loss": config.coverage_loss, "doubly_stochastic_loss": config.doubly_stochastic}
    names["guided_alignment_loss"] = config.guided_alignment_weight
    base = ("ml_loss",) * config.supervises_attention
    return (*base, "attention_entropy", *(name for name, weight in names.items() if weight))


def attention_terms(
    nats: Tensor,
    weights: Tensor,
    labels: Tensor,
    alignments: Tensor | None,
    config: RnnSeq2SeqConfig,
    source_mask: Tensor | None = None,
    sampled: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted losses of the attention, summed over the batch, (); and (figures, 2), the sum and the count of each.

    Args:
        nats: the loss without them, summed over the batch, ().
        weights: (batch, heads, target, source).
        labels: (batch, target), -100 for no label.
        alignments: (batch, target, source), see `guided_alignment_loss`; None: no row has an alignment.
        config: which losses count, and their weights.
        source_mask: bool (batch, source), False at padding; None: there is none.
        sampled: (), the loss of a sampled attention, summed over the batch; None: it is not one, or not trained.
    """
    real = labels.to(weights.device) != IGNORED_LABEL
    shares = weights.to(torch.promote_types(weights.dtype, torch.float32))
    entropy = -torch.xlogy(shares.detach(), shares.detach()).sum(-1).mean(1)
    figures = [(nats.to(entropy), real.sum())] * config.supervises_attention
    figures.append((entropy.masked_fill(~real, 0.0).sum(), real.sum()))
    shares, penalty = shares.mean(1), shares.new_zeros(()) if sampled is None else sampled
    if config.coverage_loss:
        loss = coverage_loss(shares, real)
        penalty = penalty + config.coverage_loss * loss
        figures.append((loss, real.sum()))
    if config.doubly_stochastic:
        loss = doubly_stochastic_loss(shares, real, source_mask)
        penalty = penalty + config.doubly_stochastic * loss
        figures.append((loss, real.any(1).sum()))
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


def doubly_stochastic_loss(weights: Tensor, real: Tensor, source_mask: Tensor | None = None) -> Tensor:
    """Sum over the batch of sum_i (1 - sum_t a_ti)^2 (Xu 2015, equation 14); a row without a label adds nothing.

    Args:
        weights: (batch, target, source).
        real: bool (batch, target).
        source_mask: bool (batch, source), False at padding; None: there is none.
    """
    received = (weights * real.unsqueeze(-1)).sum(1)
    counts = real.any(1, keepdim=True) if source_mask is None else real.any(1, keepdim=True) & source_mask
    return ((1 - received).square() * counts).sum()


def guided_alignment_loss(weights: Tensor, real: Tensor, alignments: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Sum over positions t of -sum_i A_ti log a_ti (Chen 2016); and the number of rows with an alignment.

    Each row of A is normalized to sum 1.

    Args:
        weights: (batch, target, source).
        real: bool (batch, target).
        alignments: (batch, target, source), not negative; a row of zeros has no alignment.
        smallest: lower bound of the weights in the logarithm.

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
