"""New tokens for the vocabulary of a trained tokenizer (`extend_vocabulary`)."""

import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import is_unspaced_script
from hf_rnn_seq2seq.errors import ArgumentError


def read_tokens(files: str) -> list[list[str]]:
    """The tokens of one file or of two, separated by a comma: one a line, without blank lines and repetitions.

    Raises:
        ArgumentError: a file that is missing or not UTF-8, no token at all, a token with white space inside.
    """
    lists = []
    for path in files.split(","):
        try:
            lines = Path(path.strip()).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ArgumentError(f"extend_vocabulary={path.strip()!r}: cannot be read ({reason})") from None
        tokens = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        if spaced := [token for token in tokens if len(token.split()) > 1]:
            raise ArgumentError(f"extend_vocabulary={path!r}: {spaced[0]!r} holds white space; one token a line")
        lists.append(tokens)
    if len(lists) > 2 or not any(lists):
        raise ArgumentError(f"extend_vocabulary={files!r}: name one file with tokens, or two, source,target")
    return lists


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, lists: Sequence[Sequence[str]]) -> list[int]:
    """Appends tokens to a vocabulary, so that text without them is split as before.

    A word that already is one token is not added. A new token matches whole words only, except in scripts without
    spaces between words.

    Args:
        tokenizer: any fast tokenizer; changed in place.
        lists: one list, or two for a tokenizer with separate vocabularies of source and target (one list is added to
            both).

    Returns:
        the number of entries that each vocabulary received.

    Raises:
        ArgumentError: two lists for one vocabulary, or a token that the vocabulary uses as the name of another entry or
            cannot decode.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ArgumentError(f"extend_vocabulary: a {type(tokenizer).__name__} cannot be extended, it is not a fast one")
    backends = [tokenizer.backend_tokenizer]
    if hasattr(tokenizer, "target_backend_tokenizer"):
        backends.append(tokenizer.target_backend_tokenizer)
    if len(lists) > len(backends):
        raise ArgumentError("extend_vocabulary: two files, but one vocabulary for both sides; name one")
    lists = [lists[0], lists[-1]][: len(backends)]
    return [_add(backend, words, tokenizer.unk_token) for backend, words in zip(backends, lists, strict=True)]


def _add(backend: Tokenizer, words: Sequence[str], unknown: str | None) -> int:
    added = []
    for word in words:
        word = backend.normalizer.normalize_str(word) if backend.normalizer else word
        pieces = [backend.encode(form, add_special_tokens=False).tokens for form in (word, f" {word}")]
        if any(len(tokens) == 1 and tokens != [unknown] for tokens in pieces):
            continue
        if backend.token_to_id(word) is not None:
            raise ArgumentError(f"extend_vocabulary: {word!r} already names an entry of the vocabulary")
        single = not any(map(is_unspaced_script, word))
        added.append(word)
        backend.add_tokens([AddedToken(word, single_word=single, normalized=True)])
    _make_writable(backend, added)
    return len(added)


def _make_writable(backend: Tokenizer, words: Sequence[str]) -> None:
    """Adds steps to a byte-level decoder, which would read some letters (é) of an added token as bytes."""

    def misread() -> list[str]:
        return [word for word in words if backend.decode([backend.token_to_id(word)]).strip() != word]

    if (wrong := misread()) and "ByteLevel" in str(backend.decoder):
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
        steps = [decoders.Replace(Regex(f"^{re.escape(word)}$"), to_bytes(word)[0][0]) for word in wrong]
        backend.decoder = decoders.Sequence([*steps, backend.decoder])
    if wrong := misread():
        raise ArgumentError(f"extend_vocabulary: this tokenizer could not write {wrong[0]!r} back")
