"""What a run may do to the tokenizer and the model that it starts from: new tokens, pretrained vectors, frozen weights.

Every function takes any `PreTrainedModel` and any fast tokenizer.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from torch import nn

from hf_rnn_seq2seq.data.tokenizer import source_vocabulary_size, target_vocabulary_size
from hf_rnn_seq2seq.generation.attention import stands_alone
from hf_rnn_seq2seq.training.arguments import ArgumentError, TrainingArguments
from hf_rnn_seq2seq.training.word_vectors import embedding_table, load_word_vectors

# --- frozen weights -----------------------------------------------------------------------------------------------


def freeze(model: nn.Module, patterns: Sequence[str], say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Takes the parameters whose names match any pattern out of training: no gradient, no optimizer state.

    A pattern is one of the shell, `model.encoder.*`. A tensor with several names (a tied table) is frozen by any.

    Returns:
        for the run's facts: `frozen_parameters`, how many numbers; empty where nothing is frozen, here or before.

    Raises:
        ArgumentError: a pattern matches no parameter, or nothing is left to train.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise ArgumentError(f"freeze={pattern!r}: matches no parameter; {_nearest(pattern, list(names))}")
        for name in matching:
            names[name].requires_grad_(False)
    everything = {id(parameter): parameter for parameter in names.values()}
    frozen = [parameter for parameter in everything.values() if not parameter.requires_grad]
    if len(frozen) == len(everything):
        raise ArgumentError(f"freeze={','.join(patterns)!r}: nothing is left to train")
    if not frozen:
        return {}
    count, total = (sum(parameter.numel() for parameter in group) for group in (frozen, everything.values()))
    say(f"frozen: {count:,} of {total:,} parameters, in {len(frozen)} of {len(everything)} tensors")
    return {"frozen_parameters": count}


def _nearest(pattern: str, names: list[str]) -> str:
    prefixes = {name.rsplit(".", depth)[0] + ".*" for name in names for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, [*sorted(prefixes), *names], n=3, cutoff=0.5)
    return f"the nearest are {', '.join(near or sorted(prefixes)[:3])}"


# --- new tokens ---------------------------------------------------------------------------------------------------


def read_tokens(files: str) -> list[list[str]]:
    """The tokens of one file, or of two separated by a comma: one a line, blank lines and repetitions left out.

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


def extend_tokenizer(tokenizer: Any, lists: Sequence[Sequence[str]]) -> list[int]:
    """Adds tokens to a vocabulary, behind its entries, so that text without them is split as before.

    What the tokenizer writes as one token already is left alone. A new token stands for a whole word, except in
    scripts that put no spaces between words.

    Args:
        tokenizer: any fast tokenizer; changed in place.
        lists: one list; or two, for a tokenizer with a vocabulary for the source and one for the target, which each
            receive their own (one list goes to both).

    Returns:
        how many entries each vocabulary received.

    Raises:
        ArgumentError: two lists for one vocabulary, a token that the vocabulary uses as the name of something else, or
            that it could not write back.
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
            raise ArgumentError(f"extend_vocabulary: {word!r} is the vocabulary's own name of something else")
        single = not any(map(stands_alone, word))
        added.append(word)
        backend.add_tokens([AddedToken(word, single_word=single, normalized=True)])
    _make_writable(backend, added)
    return len(added)


def _make_writable(backend: Tokenizer, words: Sequence[str]) -> None:
    """A byte-level decoder takes some letters (é) of an added token for bytes: it is given the token's own bytes."""

    def misread() -> list[str]:
        return [word for word in words if backend.decode([backend.token_to_id(word)]).strip() != word]

    if (wrong := misread()) and "ByteLevel" in str(backend.decoder):
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
        steps = [decoders.Replace(Regex(f"^{re.escape(word)}$"), to_bytes(word)[0][0]) for word in wrong]
        backend.decoder = decoders.Sequence([*steps, backend.decoder])
    if wrong := misread():
        raise ArgumentError(f"extend_vocabulary: this tokenizer could not write {wrong[0]!r} back")


def grow_tables(model: Any, *, source_vocab_size: int, vocab_size: int) -> None:
    """Gives a model's tables and output layer rows for new entries; the scores of the old ones stay as they are.

    Scores are what the softmax reads: the new entries take their share of its probability.
    New rows are drawn around the mean of the old ones (Hewitt 2021), so that no new entry outdoes the old at first.
    """
    had = getattr(model.config, "source_vocab_size", model.config.vocab_size), model.config.vocab_size
    if model.config.vocab_size < vocab_size:
        one = had[0] == had[1] and source_vocab_size == vocab_size
        (model.resize_token_embeddings if one else model.resize_target_embeddings)(vocab_size)
    if getattr(model.config, "source_vocab_size", source_vocab_size) < source_vocab_size:
        model.resize_source_embeddings(source_vocab_size)


# --- all of it, as a run asks for it ------------------------------------------------------------------------------


class Adaptation:
    """New tokens and pretrained vectors of one run, as its options ask for them.

    Args:
        arguments: the options.
        resumed: a checkpoint of this run will be read, in which all of it has been done.
        say: shows a message.

    Attributes:
        facts: for the run's summary.
    """

    def __init__(self, arguments: TrainingArguments, *, resumed: bool, say: Callable[[str], None]) -> None:
        self.arguments, self.resumed, self.say = arguments, resumed, say
        self.facts: dict[str, Any] = {}
        self._kept_rows = (0, 0)

    def extend(self, tokenizer: Any) -> None:
        """Adds the new tokens to the tokenizer."""
        a = self.arguments
        if a.model_name_or_path:
            self._kept_rows = (source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer))
        if a.extend_vocabulary and not self.resumed:
            added = extend_tokenizer(tokenizer, read_tokens(a.extend_vocabulary))
            self.facts["added_tokens"] = added
            self.say(f"extend_vocabulary: {' source and '.join(map(str, added))} new tokens")

    def fill(self, model: Any, tokenizer: Any, train: Any) -> None:
        """Puts the vectors into the model's tables, and takes those tables out of training with `freeze_vectors`.

        `train` is the tokenised training split, whose running tokens are counted; those of a stream are not.
        """
        a = self.arguments
        files = {"source": a.source_vectors, "target": a.target_vectors}
        if any(files.values()) and not self.resumed:
            reports = load_word_vectors(
                model,
                tokenizer,
                files,
                sizes=(source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer)),
                first_rows=self._kept_rows,
                count=lambda side, size: count_tokens(train, "input_ids" if side == "source" else "labels", size),
            )
            self.facts["word_vectors"] = {side: dataclasses.asdict(report) for side, report in reports.items()}
            for side, report in reports.items():
                self.say(f"{side}_vectors: {report}")
        for side, path in files.items():
            if path and a.freeze_vectors:
                embedding_table(model, side).weight.requires_grad_(False)


def count_tokens(rows: Any, column: str, size: int) -> np.ndarray | None:
    """How often each entry stands in a column of token ids, (size,); None for rows that are not there yet."""
    if column not in (getattr(rows, "column_names", None) or ()) or not hasattr(rows, "__len__"):
        return None
    counts = np.zeros(size, dtype=np.int64)
    for batch in rows.select_columns([column]).with_format(None).iter(1000):
        ids = np.fromiter((token for row in batch[column] for token in row), dtype=np.int64)
        counts += np.bincount(ids, minlength=size)[:size]
    return counts


__all__ = ["Adaptation", "count_tokens", "extend_tokenizer", "freeze", "grow_tables", "read_tokens"]
