"""What goes into a search and comes out of it, in parts: sentences of similar length together, limits by sentence."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .search_options import OwnOptions, SearchError
from .search_plan import Found, Limits, SearchPlan

Rows = Tensor | slice


def split_inputs(inputs: dict[str, Any], rows: int | None) -> list[tuple[Rows, dict[str, Any]]]:
    """Parts of at most `rows` sentences of similar length, longest first, without columns that are all padding."""
    inputs = {name: value for name, value in inputs.items() if name != "decoder_input_ids" and value is not None}
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if rows is None or ids is None or mask is None or len(inputs) > 2:
        return [(slice(None), inputs)]
    parts = []
    for chosen in mask.sum(1).argsort(descending=True, stable=True).split(rows):
        columns = mask[chosen].bool().any(0)
        parts.append((chosen, {"input_ids": ids[chosen][:, columns], "attention_mask": mask[chosen][:, columns]}))
    return parts


def map_inputs(inputs: dict[str, Any], function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """`function` of every tensor, those of encoder outputs included."""

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, dict):  # a ModelOutput too
            return type(value)(**{name: visit(part) for name, part in value.items()})
        return tuple(map(visit, value)) if isinstance(value, (tuple, list)) else value

    return {name: visit(value) for name, value in inputs.items()}


def join_parts(parts: Sequence[tuple[Tensor, Found]], plan: SearchPlan, sentences: int) -> Found:
    """The hypotheses of all parts in the order of the input."""
    back = torch.cat([rows for rows, _ in parts]).argsort()
    width = max(found.tokens.shape[1] for _, found in parts)

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors).unflatten(0, (sentences, plan.num_return_sequences))[back].flatten(0, 1)

    def widen(tensor: Tensor, *ends: int, value: float = 0) -> Tensor:
        sizes = [end - size for end, size in zip(ends, tensor.shape[1:], strict=True)]
        return F.pad(tensor, [part for size in reversed(sizes) for part in (0, size)], value=value)

    weights = None
    if plan.need_weights:
        source = max(found.weights.shape[2] for _, found in parts)
        weights = join([widen(found.weights, width, source) for _, found in parts])
    return Found(
        join([widen(found.tokens, width, value=plan.fill_token_id) for _, found in parts]),
        join([found.scores for _, found in parts]),
        join([found.log_probabilities for _, found in parts]),
        join([found.lengths for _, found in parts]),
        weights,
    )


def make_limits(own: OwnOptions, plan: SearchPlan, vocab_size: int, sentences: int, device: torch.device) -> Limits:
    """The shortlist and the prefixes as the search reads them.

    Raises:
        SearchError: ids outside the vocabulary, too few of them, or not one sequence for each sentence.
    """
    prefix = _prefix(own, vocab_size, sentences)
    if own.shortlist is None:
        return Limits(prefix=None if prefix is None else prefix.to(device))
    lists = own.shortlist.tolist() if isinstance(own.shortlist, Tensor) else list(own.shortlist)
    by_sentence = bool(lists) and isinstance(lists[0], (list, tuple, set, frozenset, Tensor))
    lists = [sorted(map(int, row)) for row in lists] if by_sentence else [sorted(map(int, lists))]
    if by_sentence and len(lists) != sentences:
        raise SearchError(f"shortlist for {len(lists)} sentences: there are {sentences}")
    forced = [] if prefix is None else prefix[prefix >= 0].tolist()
    words = torch.tensor(sorted({*plan.eos_token_ids, *forced, *(word for row in lists for word in row)}))
    shortest = min(len({*plan.eos_token_ids, *row}) for row in lists)
    if shortest < plan.candidates or int(words[0]) < 0 or int(words[-1]) >= vocab_size:
        raise SearchError(
            f"shortlist of {shortest} ids from {int(words[0])} to {int(words[-1])}: needs at least {plan.candidates} "
            f"of the target ids 0 to {vocab_size - 1}"
        )
    allowed = None
    if by_sentence:
        allowed = torch.zeros(sentences, len(words), dtype=torch.bool)
        for row, ids in enumerate(lists):
            forced = [] if prefix is None else [word for word in prefix[row].tolist() if word >= 0]
            allowed[row, torch.searchsorted(words, torch.tensor([*ids, *plan.eos_token_ids, *forced]))] = True
        allowed = allowed.to(device)
    if prefix is not None:
        prefix = torch.where(prefix < 0, prefix, torch.searchsorted(words, prefix.clamp(min=0))).to(device)
    return Limits(words.to(device), allowed, prefix)


def _prefix(own: OwnOptions, vocab_size: int, sentences: int) -> Tensor | None:
    """(sentences, longest) target ids, -1 past each end."""
    if own.prefix is None:
        return None
    rows = [list(map(int, row)) for row in own.prefix]
    if len(rows) != sentences:
        raise SearchError(f"prefix for {len(rows)} sentences: there are {sentences}")
    if any(not 0 <= word < vocab_size for row in rows for word in row):
        raise SearchError(f"prefix: must hold target ids from 0 to {vocab_size - 1}")
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long).view(sentences, width)


__all__ = ["join_parts", "make_limits", "map_inputs", "split_inputs"]
