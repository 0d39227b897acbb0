"""Attention of returned hypotheses as matrices, and tokens as people read them.

Axes: `target` counts produced tokens (end of sentence included), `source` input tokens. Weights are float32 on CPU.
"""

import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import AttentionError

SPECIAL = ("</s>", "<s>", "<pad>", "<unk>")


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


def source_pieces(tokenizer: PreTrainedTokenizerBase, text: str, length: int, *, target: bool = False) -> list[str]:
    """The stretch of `text` behind each of its first `length` tokens, with the white space before it.

    Special tokens stand under their own names. `target` reads `text` with the target vocabulary.
    """
    encoding = tokenizer(
        **({"text_target": text} if target else {"text": text}), return_offsets_mapping=True, verbose=False
    )
    key = "labels" if "labels" in encoding and "input_ids" not in encoding else "input_ids"
    tokens = _names(tokenizer, encoding[key], target=target)
    pieces, previous_end = [], 0
    for token, (start, end) in zip(tokens, encoding["offset_mapping"], strict=True):
        if start == end:
            pieces.append(token)
            continue
        # Byte-level tokens that share one character have the same stretch: it is shown once.
        stretch = text[previous_end:end] if end > previous_end else ""
        pieces.append(stretch)
        previous_end = max(previous_end, end)
    if len(pieces) > length:  # a truncated source ends with its own end-of-sentence token
        pieces = [*pieces[: length - 1], pieces[-1]]
    return pieces


def target_pieces(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text each produced token adds to the decoded sentence, white space before it included.

    Decoding prefixes works for any algorithm, byte-level ones too, where a character may need several tokens: the
    character is shown at its last token and the earlier ones are empty.
    """
    special = set(tokenizer.all_special_ids)
    names = _names(tokenizer, token_ids, target=True)
    pieces, shown = [], ""
    for position, token_id in enumerate(token_ids):
        if token_id in special:
            pieces.append(names[position])
            continue
        prefix = tokenizer.decode(token_ids[: position + 1], skip_special_tokens=True)
        if prefix.endswith("\N{REPLACEMENT CHARACTER}"):
            pieces.append("")
            continue
        pieces.append(prefix[len(shown) :] or names[position])
        shown = prefix
    return pieces


def _names(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], *, target: bool) -> list[str]:
    separate = getattr(tokenizer, "convert_target_ids_to_tokens", None) if target else None
    return list((separate or tokenizer.convert_ids_to_tokens)(list(token_ids)))


def stands_alone(character: str) -> bool:
    """Whether a character's script is written without spaces between words."""
    name = unicodedata.name(character, "")
    return name.startswith(("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO ", "KHMER", "MYANMAR", "IDEOGRAPHIC"))


def word_groups(pieces: Sequence[str], special: Sequence[str] = SPECIAL) -> list[list[int]]:
    """Group token positions into words at white space; scripts without spaces keep their tokens apart."""
    groups: list[list[int]] = []
    word = ""
    for position, piece in enumerate(pieces):
        text = piece.strip()
        boundary = piece in special or word in special
        if word.strip():  # white space alone belongs to the word after it
            boundary |= piece[:1].isspace() or word[-1].isspace()
            boundary |= bool(text) and (stands_alone(text[0]) or stands_alone(word[-1]))
        if boundary or not groups:
            groups.append([])
            word = ""
        groups[-1].append(position)
        word += piece
    return groups


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
