"""Replaces the unknown words of a translation by aligned source words (Luong 2015 b, section 3.3).

An unknown target word becomes the dictionary's entry for the source word it attends to most, or that source word
itself if the dictionary does not have it (names and numbers are copied).
"""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import (
    is_unspaced_script,
    letter_groups,
    source_pieces,
    splits_letters,
    target_pieces,
    word_groups,
)
from hf_rnn_seq2seq.data.readers import read_lines
from hf_rnn_seq2seq.errors import DataError


def replace_unknown(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    token_ids: Sequence[int],
    weights: Tensor,
    dictionary: Mapping[str, str] | None = None,
) -> str:
    """The text of `token_ids`, with each unknown token replaced by a word.

    Args:
        tokenizer: has `unk_token_id`.
        source: the sentence that was translated.
        token_ids: the generated tokens.
        weights: (target, source) attention; rows for these tokens, columns for the source's tokens.
        dictionary: source word to target word; words are looked up as written, then in lower case.
    """
    unknown = tokenizer.unk_token_id
    if unknown not in token_ids:
        return tokenizer.decode(list(token_ids), skip_special_tokens=True)
    pieces = source_pieces(tokenizer, source, weights.shape[1])
    # Pieces are parts of the sentence, not token names, so an unknown source word has its text here.
    parts = (letter_groups if splits_letters(tokenizer) else word_groups)(pieces, {*tokenizer.all_special_tokens})
    groups = [group for group in parts if _is_text(pieces, group, tokenizer)]
    word_of = {position: group for group in groups for position in group}
    text = ""
    for row, (token, piece) in enumerate(zip(token_ids, target_pieces(tokenizer, token_ids), strict=True)):
        if token != unknown:
            text += "" if token in tokenizer.all_special_ids or piece == "·" else piece
            continue
        if not word_of:
            continue
        best = max(word_of, key=lambda position: float(weights[row, position]))
        word = "".join(pieces[position] for position in word_of[best]).strip()
        if dictionary:
            word = dictionary.get(word, dictionary.get(word.lower(), word))
        joined = not text or text[-1].isspace() or is_unspaced_script(text[-1])
        text += word if joined else f" {word}"
    form = getattr(tokenizer, "output_form", None)
    return (unicodedata.normalize(form, text) if form else text).strip()


def _is_text(pieces: Sequence[str], group: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    word = "".join(pieces[position] for position in group).strip()
    return bool(word) and word not in set(tokenizer.all_special_tokens) - {tokenizer.unk_token}


def read_dictionary(path: str) -> dict[str, str]:
    """Source word to target word, from lines `source<TAB>target`; the first entry of a word counts.

    Raises:
        DataError: a line has no tab, or the file cannot be read.
    """
    entries: dict[str, str] = {}
    for number, line in enumerate(read_lines(Path(path)), start=1):
        source, tab, target = line.partition("\t")
        if not tab:
            raise DataError(f"{path}: line {number} has no tab between source and target word")
        entries.setdefault(source, target)
    return entries
