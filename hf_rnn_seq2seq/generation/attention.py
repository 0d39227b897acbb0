"""Attention of hypotheses as matrices, and of words in place of tokens.

Axes: `target` counts generated tokens (end of sentence included), `source` input tokens. Weights are float32 on CPU.
"""

import math
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from hf_rnn_seq2seq.data.pieces import letter_groups, source_pieces, splits_letters, target_pieces, word_groups
from hf_rnn_seq2seq.errors import AttentionError

if TYPE_CHECKING:
    from hf_rnn_seq2seq.generation.translate import Hypothesis


def stack_layer(attentions: Sequence[Tensor | None] | None, layer: int = -1) -> Tensor:
    """One layer of `cross_attentions`, (batch, heads, target, source).

    Raises:
        AttentionError: the model returned no attention weights, or has no such layer.
    """
    weights = [layer_weights for layer_weights in attentions or () if layer_weights is not None]
    if not weights:
        raise AttentionError("the model returned no cross_attentions: it has no attention, or keeps its weights")
    if not -len(weights) <= layer < len(weights):
        raise AttentionError(f"layer is {layer}; the model returned attention of {len(weights)} layer(s)")
    return weights[layer]


def hypothesis_attention(output: ModelOutput, index: int, length: int, source_length: int, layer: int = -1) -> Tensor:
    """Attention of row `index` of `output.sequences`, (heads, target, source).

    `output` is what `generate(return_dict_in_generate=True, output_attentions=True)` returns; `length` counts the
    generated tokens to keep and `source_length` the source tokens that are not padding (right-padded sources). Beam
    search reorders its rows after each step: step t was computed in row `beam_indices[index, t]` and is read there.
    """
    beam_indices = getattr(output, "beam_indices", None)
    rows = []
    for step in range(length):
        weights = stack_layer(output.cross_attentions[step], layer)
        row = index if beam_indices is None else int(beam_indices[index, step])
        # The first step has a position for each token of the prompt; the last position generated the token.
        rows.append(weights[row, :, -1, :source_length])
    return torch.stack(rows, dim=1).float().cpu()


def merge_words(
    weights: Tensor,
    source: Sequence[str],
    target: Sequence[str],
    special: Container[str],
    columns: Sequence[Sequence[int]] | None = None,
    rows: Sequence[Sequence[int]] | None = None,
) -> tuple[Tensor, list[str], list[str]]:
    """Attention between words, (..., target words, source words), and the words.

    Weights are summed over the tokens of a source word and averaged over the tokens of a target word, so that rows
    still sum to one (Clark et al. 2019, section 4.1).

    Args:
        special: names of tokens that are words of their own: `tokenizer.all_special_tokens`.
        columns: groups of source positions (default: words).
        rows: groups of target positions, likewise.
    """
    columns, rows = columns or word_groups(source, special), rows or word_groups(target, special)
    weights = _sums(_sums(weights, columns, -1), rows, -2)
    weights = weights / torch.tensor([len(group) for group in rows], device=weights.device).unsqueeze(-1)
    source_words = ["".join(source[position] for position in group) for group in columns]
    return weights, source_words, ["".join(target[position] for position in group) for group in rows]


def _sums(weights: Tensor, groups: Sequence[Sequence[int]], axis: int) -> Tensor:
    """Sums along an axis over groups of consecutive positions, which together cover the axis."""
    shape = list(weights.shape)
    shape[axis] = len(groups)
    group_of = [number for number, group in enumerate(groups) for _ in group]
    index = torch.tensor(group_of, dtype=torch.long, device=weights.device)
    return weights.new_zeros(shape).index_add_(axis, index, weights)


def region_grid(weights: Tensor) -> Tensor:
    """Weights of regions (..., regions), row by row, as maps (..., side, side).

    The first state of a Vision Transformer is that of the whole picture and has no place; it is left out.

    Raises:
        AttentionError: the regions are no square.
    """
    states = weights.shape[-1]
    side = math.isqrt(states)
    if states - side * side not in (0, 1):
        raise AttentionError(
            f"{states} states of a picture: must be the regions of a square, perhaps after one of its own"
        )
    return weights[..., states - side * side :].unflatten(-1, (side, side))


def hard_alignment(weights: Tensor) -> list[tuple[int, int]]:
    """(source, target) pairs: where each target position attends most; weights are (target, source)."""
    return [(int(row.argmax()), target) for target, row in enumerate(weights)]


def word_pairs(tokenizer: PreTrainedTokenizerBase, source: str, hypothesis: "Hypothesis") -> list[tuple[int, int]]:
    """(source word, target word) pairs: the source word that each target word attends to most.

    The hypothesis must have attention. Special tokens and white space are not counted as words; letters of a tokenizer
    that splits letters are.
    """
    read = source_pieces(tokenizer, source, len(hypothesis.source_ids))
    written = target_pieces(tokenizer, hypothesis.token_ids)
    special = {*tokenizer.all_special_tokens}
    columns = letter_groups(read, special) if splits_letters(tokenizer) else None
    form = getattr(tokenizer, "output_form", None)
    rows = letter_groups(written, special, form) if splits_letters(tokenizer, target=True) else None
    attention = hypothesis.attention.mean(0)
    weights, source_words, target_words = merge_words(attention, read, written, special, columns, rows)
    source_number, target_number = _word_numbers(source_words, special), _word_numbers(target_words, special)
    return [
        (source_number[column], target_number[row])
        for column, row in hard_alignment(weights)
        if column in source_number and row in target_number
    ]


def _word_numbers(words: Sequence[str], special: Container[str]) -> dict[int, int]:
    """Position -> number among the words that are neither special tokens nor white space."""
    positions = [position for position, word in enumerate(words) if word.strip() and word not in special]
    return {position: number for number, position in enumerate(positions)}
