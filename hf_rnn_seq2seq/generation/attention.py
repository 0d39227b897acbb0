"""Attention of returned hypotheses as matrices, and tokens as people read them.

Axes: `target` counts produced tokens (end of sentence included), `source` input tokens. Weights are float32 on CPU.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import SPECIAL, source_pieces, target_pieces, word_groups
from hf_rnn_seq2seq.errors import AttentionError


def stack_layer(attentions: Sequence[Any] | None, layer: int = -1) -> Tensor:
    """Pick one layer of `cross_attentions`, (batch, heads, target, source).

    Raises AttentionError when the model returned none (a context by initial state only, or an attention implementation
    that keeps its weights to itself) or has no such layer.
    """
    weights = [layer_weights for layer_weights in attentions or () if layer_weights is not None]
    if not weights:
        raise AttentionError("the model returned no cross_attentions: it has no attention, or keeps its weights")
    if not -len(weights) <= layer < len(weights):
        raise AttentionError(f"layer is {layer}; the model returned attention of {len(weights)} layer(s)")
    return weights[layer]


def hypothesis_attention(output: Any, index: int, length: int, source_length: int, layer: int = -1) -> Tensor:
    """Attention behind row `index` of `output.sequences`, (heads, target, source).

    `output` is what `generate(return_dict_in_generate=True, output_attentions=True)` returns; `length` counts the
    generated tokens to keep and `source_length` the source tokens that are not padding (right-padded sources).
    Under beam search step t of a hypothesis was computed in row `beam_indices[index, t]` of the batch of beams, and the
    survivors are reordered after every step, so each step is read from the row it was computed in.
    """
    beam_indices = getattr(output, "beam_indices", None)
    rows = []
    for step in range(length):
        weights = stack_layer(output.cross_attentions[step], layer)
        row = index if beam_indices is None else int(beam_indices[index, step])
        # A prompt makes the first step several positions long; the last one produced the token.
        rows.append(weights[row, :, -1, :source_length])
    return torch.stack(rows, dim=1).float().cpu()


def merge_words(weights: Tensor, source: Sequence[str], target: Sequence[str]) -> tuple[Tensor, list[str], list[str]]:
    """Attention between words, (..., target words, source words), and the words.

    A source word receives the sum over its tokens, a target word the mean over its own, so that rows which summed to
    one still do (Clark et al. 2019, section 4.1).
    """
    columns, rows = word_groups(source), word_groups(target)
    weights = _sums(_sums(weights, columns, -1), rows, -2)
    weights = weights / torch.tensor([len(group) for group in rows], device=weights.device).unsqueeze(-1)
    source_words = ["".join(source[position] for position in group) for group in columns]
    return weights, source_words, ["".join(target[position] for position in group) for group in rows]


def _sums(weights: Tensor, groups: Sequence[Sequence[int]], axis: int) -> Tensor:
    """Sums along an axis over groups of neighbours, which together hold every position."""
    shape = list(weights.shape)
    shape[axis] = len(groups)
    group_of = [number for number, group in enumerate(groups) for _ in group]
    index = torch.tensor(group_of, dtype=torch.long, device=weights.device)
    return weights.new_zeros(shape).index_add_(axis, index, weights)


def hard_alignment(weights: Tensor) -> list[tuple[int, int]]:
    """(source, target) pairs: each target position, and where it attends most; weights are (target, source)."""
    return [(int(row.argmax()), target) for target, row in enumerate(weights)]


def word_pairs(tokenizer: PreTrainedTokenizerBase, source: str, hypothesis: Any) -> list[tuple[int, int]]:
    """(source word, target word) pairs: where each word of a `Hypothesis` attends most.

    Special tokens and white space are left out of the count.
    """
    weights, source_words, target_words = merge_words(
        hypothesis.attention.mean(0),
        source_pieces(tokenizer, source, len(hypothesis.source_ids)),
        target_pieces(tokenizer, hypothesis.token_ids),
    )
    numbers = []
    for words in (source_words, target_words):
        kept = [index for index, word in enumerate(words) if word.strip() and word not in SPECIAL]
        numbers.append({index: number for number, index in enumerate(kept)})
    pairs = hard_alignment(weights)
    return [(numbers[0][s], numbers[1][t]) for s, t in pairs if s in numbers[0] and t in numbers[1]]
