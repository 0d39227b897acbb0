"""Changes to the tokenizer and the model that a run starts from: new tokens, pretrained vectors, frozen weights.

Every function takes any `PreTrainedModel` and any fast tokenizer.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.new_tokens import extend_tokenizer, read_tokens
from hf_rnn_seq2seq.data.streaming import TextStream
from hf_rnn_seq2seq.data.tokenizer import source_vocabulary_size, target_vocabulary_size
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.word_vectors import embedding_table, load_word_vectors


def freeze(model: nn.Module, patterns: Sequence[str], log: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Excludes the parameters whose names match a pattern from training: no gradient, no optimizer state.

    A pattern is a glob such as `model.encoder.*`. One of the names of a tied tensor is enough to freeze it.

    Returns:
        for the summary of the run: `frozen_parameters`, how many numbers; empty if no parameter is frozen.

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
    log(f"frozen: {count:,} of {total:,} parameters, in {len(frozen)} of {len(everything)} tensors")
    return {"frozen_parameters": count}


def _nearest(pattern: str, names: list[str]) -> str:
    prefixes = {name.rsplit(".", depth)[0] + ".*" for name in names for depth in range(1, name.count(".") + 1)}
    near = difflib.get_close_matches(pattern, [*sorted(prefixes), *names], n=3, cutoff=0.5)
    return f"the nearest are {', '.join(near or sorted(prefixes)[:3])}"


def grow_tables(model: PreTrainedModel, *, source_vocab_size: int, vocab_size: int) -> None:
    """Adds rows for new entries to a model's embeddings and output layer; the logits of the old entries do not change.

    New rows are drawn around the mean of the old ones (Hewitt 2021), so that no new entry has the highest logit at
    first.
    """
    had = getattr(model.config, "source_vocab_size", model.config.vocab_size), model.config.vocab_size
    if model.config.vocab_size < vocab_size:
        one = had[0] == had[1] and source_vocab_size == vocab_size
        (model.resize_token_embeddings if one else model.resize_target_embeddings)(vocab_size)
    if getattr(model.config, "source_vocab_size", source_vocab_size) < source_vocab_size:
        model.resize_source_embeddings(source_vocab_size)


class Adaptation:
    """New tokens and pretrained vectors of one run, as its options ask for them.

    Args:
        arguments: the options.
        resumed: a checkpoint of this run will be read, which has these changes already.
        log: prints a message.

    Attributes:
        facts: for the summary of the run.
    """

    def __init__(self, arguments: TrainingOptions, *, resumed: bool, log: Callable[[str], object]) -> None:
        self.arguments, self.resumed, self.log = arguments, resumed, log
        self.facts: dict[str, Any] = {}
        self._kept_rows = (0, 0)

    def extend(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Adds the new tokens to the tokenizer."""
        a = self.arguments
        if a.model_name_or_path:
            self._kept_rows = (source_vocabulary_size(tokenizer), target_vocabulary_size(tokenizer))
        if a.extend_vocabulary and not self.resumed:
            added = extend_tokenizer(tokenizer, read_tokens(a.extend_vocabulary))
            self.facts["added_tokens"] = added
            self.log(f"extend_vocabulary: {' source and '.join(map(str, added))} new tokens")

    def fill(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Dataset | TextStream) -> None:
        """Copies the vectors to the model's embeddings, and freezes these with `freeze_vectors`.

        `train` is the tokenized training split, whose tokens are counted; those of a stream are not.
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
                self.log(f"{side}_vectors: {report}")
        for side, path in files.items():
            if path and a.freeze_vectors:
                embedding_table(model, side).weight.requires_grad_(False)


def count_tokens(rows: Dataset | TextStream, column: str, size: int) -> np.ndarray | None:
    """How often each entry occurs in a column of token ids, (size,); None for a stream."""
    if column not in (getattr(rows, "column_names", None) or ()) or not hasattr(rows, "__len__"):
        return None
    counts = np.zeros(size, dtype=np.int64)
    for batch in rows.select_columns([column]).with_format(None).iter(1000):
        ids = np.fromiter((token for row in batch[column] for token in row), dtype=np.int64)
        counts += np.bincount(ids, minlength=size)[:size]
    return counts
