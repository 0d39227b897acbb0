"""The embedded corpora, which need no download, as splits of two text columns; and rows that a generator makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset, Value
from datasets.exceptions import DatasetGenerationError

from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.token_columns import AnyDataset
from hf_rnn_seq2seq.errors import DataError, is_out_of_memory, reason
from hf_rnn_seq2seq.files import digest

CLDR_ROWS = {"train": 20_000, "validation": 1_000, "test": 1_000}
CLDR_SHARD = 50_000
SHAPES_ROWS = {"train": 16_000, "validation": 500, "test": 500}
# Corpora that are drawn row by row: the module, the rows, the language of the target, and what the module needs.
DRAWN = {
    "documents": ("cldr_documents", CLDR_ROWS, None, "Babel; pip install 'hf_rnn_seq2seq[train]'"),
    "shapes": ("shapes", SHAPES_ROWS, "en", "Pillow; pip install 'hf_rnn_seq2seq[images]'"),
}

TEXT = {"source": Value("string"), "target": Value("string"), "id": Value("int64")}
ALIGNED = TEXT | {"alignment": Value("string")}

Loaded = tuple[dict[str, AnyDataset], dict[str, Any]]  # the splits, and entries of the description


def generated(
    generator: Callable[..., Iterator[dict[str, Any]]],
    arguments: dict[str, Any],
    features: dict[str, Any],
    split: str,
    streaming: bool,
    shards: int = 1,
) -> AnyDataset:
    """The rows that a generator yields, written to the cache of `datasets` unless they are streamed."""
    options: dict[str, Any] = {"features": Features(features), "gen_kwargs": arguments, "split": datasets.Split(split)}
    if streaming:
        return IterableDataset.from_generator(generator, **options)
    workers = min(shards, os.cpu_count() or 1)
    try:
        return Dataset.from_generator(generator, num_proc=workers if workers > 1 else None, **options)
    except DatasetGenerationError as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, DataError):
            cause = cause.__cause__
        if isinstance(cause, DataError) or is_out_of_memory(cause):
            raise cause from None
        cache = datasets.config.HF_DATASETS_CACHE
        raise DataError(f"{split}: its rows cannot be written to the cache in {cache} ({reason(cause)})") from error


def load_cldr(
    data: DataArguments, limits: Mapping[str, int | None], splits: Sequence[str], aligned_splits: Sequence[str]
) -> Loaded:
    """Phrases in two locales."""
    try:
        from hf_rnn_seq2seq.data import cldr
    except ModuleNotFoundError as error:
        raise DataError("dataset_name='cldr': needs Babel; pip install 'hf_rnn_seq2seq[train]'") from error

    if data.alignment_column not in (None, "alignment"):
        raise DataError(f"alignment_column={data.alignment_column!r}: the column of cldr is 'alignment'")
    config, source, target = data.dataset_config_name, data.source_lang, data.target_lang
    if config is not None:
        pair = cldr.parse_pair(config)
        for name, given, parsed in (("source_lang", source, pair[0]), ("target_lang", target, pair[1])):
            if given is not None and cldr.parse_locale(given) != cldr.parse_locale(parsed):
                raise DataError(f"{name}={given!r}: contradicts dataset_config_name={config!r}; leave one of them out")
        source, target = pair
    if source is None or target is None:
        raise DataError("dataset_config_name=None: cldr needs it, such as en-fr, or source_lang and target_lang")
    source, target = map(str, cldr.phrase_book(source, target).locales)
    version = cldr.generator_version()
    found: dict[str, AnyDataset] = {}
    for split in (split for split in cldr.SPLITS if split in splits):
        rows = limits[split] or CLDR_ROWS[split]
        step = CLDR_SHARD if split == "train" else rows  # only train rows can be drawn independently of each other
        ranges = [(start, min(start + step, rows)) for start in range(0, rows, step)]
        seed = data.data_seed if split == "train" else 0
        arguments = {"source": source, "target": target, "split": split, "seed": seed, "ranges": ranges}
        arguments["version"] = version
        found[split] = generated(cldr.generate, arguments, ALIGNED, split, data.streaming, len(ranges))
        if data.alignment_column is None or split not in aligned_splits:
            found[split] = found[split].remove_columns("alignment")
    facts = {"config": f"{source}-{target}", "source_lang": source, "target_lang": target, "license": cldr.LICENSE}
    facts["fingerprint"] = digest([source, target, data.data_seed, version, {split: limits[split] for split in found}])
    return found, facts


def load_drawn(
    data: DataArguments, limits: Mapping[str, int | None], splits: Sequence[str], aligned_splits: Sequence[str]
) -> Loaded:
    """Names of drawn pictures with their captions, or documents of phrases with their labels."""
    name = str(data.dataset_name)
    module, sizes, target_lang, needs = DRAWN[name]
    try:
        corpus = import_module(f"hf_rnn_seq2seq.data.{module}")
    except ModuleNotFoundError as error:
        raise DataError(f"dataset_name={name!r}: needs {needs}") from error

    version = corpus.generator_version()
    found: dict[str, AnyDataset] = {}
    for split in (split for split in sizes if split in splits):
        arguments = {"split": split, "seed": data.data_seed, "rows": limits[split] or sizes[split]}
        found[split] = generated(corpus.generate, arguments | {"version": version}, TEXT, split, streaming=False)
    facts = {"source_lang": None, "target_lang": target_lang, "license": corpus.LICENSE}
    facts["fingerprint"] = digest([name, data.data_seed, version, {split: limits[split] for split in found}])
    return found, facts


EMBEDDED = {"cldr": load_cldr, **dict.fromkeys(DRAWN, load_drawn)}
