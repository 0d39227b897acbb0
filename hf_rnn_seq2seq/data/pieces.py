"""The text that each token stands for, and how tokens form words."""

import unicodedata
from collections.abc import Container, Sequence

from transformers import PreTrainedTokenizerBase


def source_pieces(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> list[str]:
    """The part of `text` that each of its first `length` tokens covers, with the white space before it.

    Special tokens have their names.
    """
    encoding = tokenizer(text, return_offsets_mapping=True, verbose=False)
    tokens = tokenizer.convert_ids_to_tokens(encoding["input_ids"])
    pieces, previous_end = [], 0
    for token, (start, end) in zip(tokens, encoding["offset_mapping"], strict=True):
        if start == end:
            pieces.append(token)
            continue
        # Byte-level tokens that share one character have the same offsets: the first one gets the text.
        pieces.append(text[previous_end:end] if end > previous_end else "")
        previous_end = max(previous_end, end)
    if len(pieces) > length:  # a truncated source keeps its end-of-sentence token
        pieces = [*pieces[: length - 1], pieces[-1]]
    return pieces


def target_pieces(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text that each generated token adds to the decoded sentence, with the white space before it.

    Prefixes are decoded, which works for every algorithm. Where byte-level tokens share a character, the last of them
    has the character and the others are empty.
    """
    special = set(tokenizer.all_special_ids)
    convert = getattr(tokenizer, "convert_target_ids_to_tokens", tokenizer.convert_ids_to_tokens)
    names = convert(list(token_ids))
    pieces, decoded = [], ""
    for position, token_id in enumerate(token_ids):
        if token_id in special:
            pieces.append(names[position])
            continue
        prefix = tokenizer.decode(token_ids[: position + 1], skip_special_tokens=True)
        if prefix.endswith("\N{REPLACEMENT CHARACTER}"):
            pieces.append("")
            continue
        pieces.append(prefix[len(decoded) :] or names[position])
        decoded = prefix
    return pieces


def is_unspaced_script(character: str) -> bool:
    """Whether a character's script is written without spaces between words."""
    name = unicodedata.name(character, "")
    return name.startswith(("CJK ", "HIRAGANA", "KATAKANA", "THAI", "LAO ", "KHMER", "MYANMAR", "IDEOGRAPHIC"))


def splits_letters(tokenizer: PreTrainedTokenizerBase, *, target: bool = False) -> bool:
    """Whether each token of a side is a letter (algorithm `letter`), so that tokens are what alignments count."""
    backend = getattr(tokenizer, "target_backend_tokenizer" if target else "backend_tokenizer", None)
    backend = backend or getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "Fuse"


def letter_groups(pieces: Sequence[str], special: Container[str], form: str | None = None) -> list[list[int]]:
    """Groups token positions into letters of the text: a tokenizer may read one letter as several tokens (é, 한).

    The first token of a source letter has its text and the others are empty. Each of the `special` tokens stands alone.
    Of a target, `form` is the Unicode form that the text is brought into.
    """
    groups: list[list[int]] = []
    letter = ""
    for position, piece in enumerate(pieces):
        joins = not piece or (form is not None and len(unicodedata.normalize(form, letter + piece)) <= len(letter))
        if not groups or letter in special or piece in special or not joins:
            groups.append([])
            letter = ""
        groups[-1].append(position)
        letter += piece
        letter = unicodedata.normalize(form, letter) if form else letter
    return groups


def word_groups(pieces: Sequence[str], special: Container[str]) -> list[list[int]]:
    """Groups token positions into words at white space; in scripts without spaces each token is a word.

    Each of the `special` tokens (`tokenizer.all_special_tokens`) stands alone.
    """
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
