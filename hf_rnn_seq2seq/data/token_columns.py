"""Text columns -> token columns, memory-mapped and cached by the content of the split and of the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import numpy as np
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.readers import listed
from hf_rnn_seq2seq.data.word_alignment import FEATURE, token_alignments
from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.files import content_hash, digest
from hf_rnn_seq2seq.run_directory import tokenizer_hash

_TOKENS = {
    "id": Value("int64"),
    "input_ids": List(Value("int32")),
    "labels": List(Value("int32")),
    "source_length": Value("int32"),
    "target_length": Value("int32"),
}
_TEXT = {"source": Value("string"), "target": Value("string")}


AnyDataset: TypeAlias = Dataset | IterableDataset


def tokenize_corpus(
    split: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_source_length: int,
    max_target_length: int,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
    alignment_unit: str = "word",
    keep_text: bool = False,
) -> tuple[Dataset, dict[str, int]]:
    """Tokenizes a split into memory-mapped int columns, cached by the content of split and tokenizer.

    Args:
        split: text columns `source`, `target`, and `id`.
        max_source_length, max_target_length: in tokens with the end token; longer rows are left out and counted.
        num_proc: worker processes; None for one.
        cache_dir: by default in the cache of `datasets`.
        alignment_unit: what positions in a column `alignment` count, see `token_alignments`.
        keep_text: keep the columns `source` and `target` too.

    Returns:
        `id`, `input_ids`, `labels`, `source_length`, `target_length`; and the number of rows left out by reason
        (too_long_source, too_long_target; a row with both counts as source).

    Raises:
        DataError: a limit below 2, or no row short enough.
    """
    for name, limit in (("max_source_length", max_source_length), ("max_target_length", max_target_length)):
        if limit < 2:
            raise DataError(f"{name}={limit}: must be at least 2 (one token and the end token)")
    aligned = "alignment" in split.column_names
    options: dict[str, Any] = {
        "batched": True,
        "batch_size": 4_000,
        "remove_columns": [] if keep_text else ["source", "target"],
        "features": Features(_TOKENS | ({"alignment": FEATURE} if aligned else {}) | (_TEXT if keep_text else {})),
        "fn_kwargs": {"tokenizer": tokenizer, "alignment_unit": alignment_unit},
    }
    key = digest([split._fingerprint, tokenizer_hash(tokenizer), content_hash([Path(__file__)]), keep_text])[:32]
    folder = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE) / "hf_rnn_seq2seq")
    folder.mkdir(parents=True, exist_ok=True)
    rows = split.map(
        encode,
        num_proc=num_proc if num_proc and num_proc > 1 and len(split) >= 2 * num_proc else None,
        new_fingerprint=key,
        cache_file_name=str(folder / f"tokens-{key}.arrow"),
        writer_batch_size=4_000,  # Arrow keeps 10 KB in memory for each batch that was written
        desc="Tokenizing",
        **options,
    )
    return _within_limits(rows, max_source_length, max_target_length, folder, key)


def _within_limits(
    rows: Dataset, max_source_length: int, max_target_length: int, folder: Path, key: str
) -> tuple[Dataset, dict[str, int]]:
    """The rows that are short enough, and the number of the others by reason; `key` names their file in `folder`."""
    counts, short = {"too_long_source": 0, "too_long_target": 0}, []
    for batch in rows.select_columns(["source_length", "target_length"]).with_format("numpy").iter(1 << 16):
        long_source = batch["source_length"] > max_source_length
        long_target = batch["target_length"] > max_target_length
        counts["too_long_source"] += int(long_source.sum())
        counts["too_long_target"] += int((long_target & ~long_source).sum())
        short.append(~(long_source | long_target))
    counts = {reason: count for reason, count in counts.items() if count}
    if counts:
        kept = np.flatnonzero(np.concatenate(short))
        if not len(kept):
            raise DataError(
                f"{rows.split or 'corpus'}: none of its {len(rows)} rows is within {max_source_length=}, "
                f"{max_target_length=} ({listed(counts)}); raise them, or name another file"
            )
        # On disk, like the rows: their numbers would take 8 bytes each in memory.
        file = folder / f"kept-{digest([key, max_source_length, max_target_length])[:32]}.arrow"
        rows = rows.select(kept, indices_cache_file_name=str(file))
    return rows, counts


def encode(
    batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, alignment_unit: str = "word"
) -> dict[str, list[Any]]:
    """The token columns of text columns `id`, `source`, `target` and perhaps `alignment`, without a limit of length."""
    tokens = tokenizer(batch["source"], text_target=batch["target"], return_attention_mask=False, verbose=False)
    lengths = {"source_length": list(map(len, tokens["input_ids"])), "target_length": list(map(len, tokens["labels"]))}
    aligned = {"alignment": token_alignments(batch, tokenizer, alignment_unit)} if "alignment" in batch else {}
    return {"id": batch["id"], "input_ids": tokens["input_ids"], "labels": tokens["labels"], **lengths, **aligned}
