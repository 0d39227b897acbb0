"""The text that each token stands for, and how tokens form words."""

import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

SPECIAL = ("</s>", "<s>", "<pad>", "<unk>")


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


def is_unspaced_script(character: str) -> bool:
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
            boundary |= bool(text) and (is_unspaced_script(text[0]) or is_unspaced_script(word[-1]))
        if boundary or not groups:
            groups.append([])
            word = ""
        groups[-1].append(position)
        word += piece
    return groups
