"""Translates sentences in batches, with any sequence-to-sequence model of transformers.

`model` is any `PreTrainedModel` with `generate()`. `search` is any callable with the arguments of `generate()` that
returns sequences; the default is the model's method `search` if it has one, else `generate`.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.generation.attention import hypothesis_attention
from hf_rnn_seq2seq.generation.batches import MAX_TOKENS, evaluation_mode, length_batches, produced_lengths
from hf_rnn_seq2seq.generation.encoding import Encoded, PictureSources, encoded_sources
from hf_rnn_seq2seq.model.beam_search import NO_HYPOTHESIS
from hf_rnn_seq2seq.model.fused_step import Steps, weights_stay
from hf_rnn_seq2seq.model.pretrained import why_not_finite
from hf_rnn_seq2seq.model.search_options import SearchOptions, generation_values

FEW_ROWS = 4  # batches of so few rows are limited by Python, which runs one thread at a time
MAX_WORKERS = 8  # each worker holds the intermediate results of a batch

Item, Result = TypeVar("Item"), TypeVar("Result")
Search = Callable[..., Any]  # returns sequences (rows, target), or an output with `sequences`


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one sentence."""

    text: str
    token_ids: tuple[int, ...] = ()  # generated tokens, end of sentence included, without the prompt
    source_ids: tuple[int, ...] = ()
    log_probability: float | None = None  # natural logarithm, summed over token_ids
    attention: Tensor | None = None  # (heads, target, source)


def translate_ids(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]] | Encoded | PictureSources,
    *,
    search: Search | None = None,
    batch_size: int = 64,
    max_tokens: int = MAX_TOKENS,
    workers: int = 1,
    progress: bool = True,
    **generation: Any,
) -> list[list[int]]:
    """The best hypothesis of each source as token ids (start and padding included), in the order of `sources`.

    Args:
        search: called in place of the model's own search.
        batch_size: sentences of a batch.
        max_tokens: padded tokens of a batch, beams included.
        workers: batches that are decoded at the same time; at most 8, which share torch's threads. Only the model's own
            search on a CPU runs in parallel, and only when it does not sample, so that results do not depend on
            `workers`.
        progress: show a progress bar.
        generation: options that override the model's generation config.

    Returns:
        one row per source; an empty source gives an empty row and is not decoded.
    """
    encoded = sources if isinstance(sources, Encoded | PictureSources) else Encoded(list(sources), [], [])
    results: list[list[int]] = [[] for _ in encoded.lengths]
    limits = {"batch_size": batch_size, "max_tokens": max_tokens, "workers": workers, "progress": progress}
    with closing(_decode_batches(model, encoded, search, generation, **limits)) as outputs:
        for batch, output in outputs:
            sequences = output if isinstance(output, Tensor) else output.sequences
            copies = len(sequences) // len(batch)  # num_return_sequences
            for row, index in enumerate(batch):
                results[index] = sequences[row * copies].tolist()
    return results


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded | PictureSources,
    *,
    max_source_length: int | None = None,
    **options: Any,
) -> list[str]:
    """Translates texts; the result has the order of `sources`, and "" for a source without text.

    Without `options` the result is `model.generate()`'s under the checkpoint's generation config; `options` are those
    of `translate_ids`. Sources of more than `max_source_length` tokens are cut (see `encode_sources`), and a warning
    counts them. Sources that are `Encoded` already cause no warning.
    """
    encoded = encoded_sources(tokenizer, sources, max_source_length)
    if _settings(model, options)["stop_strings"] is not None:
        options.setdefault("tokenizer", tokenizer)
    texts = tokenizer.batch_decode(translate_ids(model, encoded, **options), skip_special_tokens=True)
    return [text if length else "" for text, length in zip(texts, encoded.lengths, strict=True)]


def translate_n_best(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded | PictureSources,
    *,
    n_best: int = 1,
    attention: bool = False,
    layer: int = -1,
    search: Search | None = None,
    batch_size: int = 64,
    max_tokens: int = MAX_TOKENS,
    workers: int = 1,
    max_source_length: int | None = None,
    progress: bool = True,
    **generation: Any,
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each source, best first, with log-probability and, on request, attention.

    A source without text has one empty hypothesis; where fewer than `n_best` exist, the list is shorter. A given
    `search` must return what `model.search` returns. The other options are those of `translate`.

    Raises:
        ArgumentError: `n_best` exceeds the number of beams and the search does not sample, or a score is not finite.
    """
    settings, beams = _settings(model, generation), number_of_beams(model, generation)
    if n_best < 1 or (n_best > beams and not settings["do_sample"]):
        raise ArgumentError(f"n_best={n_best}: must be from 1 to num_beams={beams}; choose more beams")
    encoded = encoded_sources(tokenizer, sources, max_source_length)
    lengths = encoded.lengths
    generation |= {"num_return_sequences": n_best, "return_dict_in_generate": True}
    if settings["stop_strings"] is not None:
        generation.setdefault("tokenizer", tokenizer)
    own = _own_options(model, generation)
    if own and attention and layer not in (0, -1):
        raise ArgumentError(f"layer={layer}: a search with {own[0]} has attention in one layer only, which is 0")
    if (
        search is not None
        or own
        or _search_covers(model, generation)
        and (not attention or _search_attends(model, layer))
    ):
        search, read_rows = search or model.search, _searched_rows
        generation["return_alignments"] = attention
    else:
        search, read_rows = model.generate, partial(_generated_rows, settings=settings)
        generation |= {"output_logits": True, "output_attentions": attention}
    results: list[list[Hypothesis]] = [[Hypothesis("")] for _ in lengths]
    limits = {"batch_size": batch_size, "max_tokens": max_tokens, "workers": workers, "progress": progress}
    with closing(_decode_batches(model, encoded, search, generation, **limits)) as outputs:
        for batch, output in outputs:
            rows = read_rows(model, output, [lengths[index] for index in batch], layer)
            if any(math.isnan(log_probability) for _, log_probability, _ in rows):
                raise ArgumentError(why_not_finite([model]))
            for row, index in enumerate(batch):
                found = rows[row * n_best : (row + 1) * n_best]
                results[index] = [
                    Hypothesis(
                        tokenizer.decode(ids, skip_special_tokens=True), tuple(ids), encoded.source_ids(index), *facts
                    )
                    for ids, *facts in [found[0], *(one for one in found[1:] if one[1] > NO_HYPOTHESIS)]
                ]
    return results


def number_of_beams(model: PreTrainedModel, generation: Mapping[str, Any]) -> int:
    """The beams of a search with these options."""
    return _settings(model, generation)["num_beams"] or 1


def _settings(model: PreTrainedModel, generation: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of `generate()` in a call with these, whether it, its `generation_config` or the model's sets it."""
    return generation_values(model.generation_config, generation.get("generation_config"), dict(generation))


def _decode_batches(
    model: PreTrainedModel,
    sources: Encoded | PictureSources,
    search: Search | None,
    generation: Mapping[str, Any],
    *,
    batch_size: int,
    max_tokens: int,
    workers: int,
    progress: bool,
) -> Generator[tuple[list[int], Any], None, None]:
    """Yields (positions, what the search returned) for each batch; the model is in evaluation mode meanwhile."""
    from tqdm import tqdm

    if workers < 1:
        raise ArgumentError(f"workers is {workers}; must be at least 1")
    beams = number_of_beams(model, generation)
    batches = length_batches(sources.lengths, batch_size, max_tokens, beams)
    own_search = getattr(model, "search", None)
    search = search or own_search or model.generate

    steps: Steps = {}

    def decode(batch: Sequence[int]) -> Any:
        with weights_stay(steps):
            return search(**sources.inputs(model, batch), **generation)

    count = sum(map(len, batches))
    bar = tqdm(total=count, desc="translating", unit=" sentences", disable=None if progress else True, leave=False)
    with evaluation_mode(model), bar:
        # Threads may share the model's own search. Nothing is known of another one, and samples need a fixed order.
        shared = search == own_search and _search_covers(model, generation)
        if not shared or model.device.type != "cpu" or batch_size <= FEW_ROWS:
            workers = 1
        with closing(_map(decode, batches, workers)) as outputs:
            for batch, output in zip(batches, outputs, strict=True):
                yield batch, output
                bar.update(len(batch))


_THREADS = threading.Lock()  # held while the number of torch's threads is not what the user set


def _map(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Generator[Result, None, None]:
    """`work` of every item, in order, by `workers` threads that share torch's threads.

    A small model's operations are too short for several threads: with two threads, two batches at a time by one thread
    each take 0.8 to 0.9 of the time of one batch after the other. At most one item per worker is done ahead. While
    another call does this, items are worked on one by one.
    """
    workers = min(workers, MAX_WORKERS, len(items))
    if workers < 2 or not _THREADS.acquire(blocking=False):
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "translate", torch.set_num_threads, (max(threads // workers, 1),))
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # MKL has one number for all threads
        _THREADS.release()


def _search_covers(model: PreTrainedModel, generation: Mapping[str, Any]) -> bool:
    """Whether the model has a search of its own that follows these options."""
    covers = getattr(model, "search_covers", None)
    return covers is not None and covers(**generation)


def _own_options(model: PreTrainedModel, generation: Mapping[str, Any]) -> list[str]:
    """Names of the options that only the model's own search knows, if it has one."""
    if not hasattr(model, "search"):
        return []
    given = {"input_ids": True, **generation}
    return SearchOptions.resolve(model.generation_config, given.pop("generation_config", None), given).changed()


def _search_attends(model: PreTrainedModel, layer: int) -> bool:
    """Whether the model's own search returns the attention of this layer: it has one layer, and averages heads."""
    heads = getattr(model.config, "num_attention_heads", 1)
    has_attention = getattr(model.config, "context", "attention") == "attention"
    return heads == 1 and has_attention and layer in (0, -1)


_Row = tuple[list[int], float, Tensor | None]  # tokens, log-probability, attention (heads, target, source)


def _searched_rows(model: PreTrainedModel, output: Any, source_lengths: Sequence[int], layer: int) -> list[_Row]:
    """The hypotheses in an output of `model.search`."""
    prompt = output.sequences.shape[1] - int(output.lengths.max())
    copies = len(output.sequences) // len(source_lengths)
    rows: list[_Row] = []
    for position, length in enumerate(output.lengths.tolist()):
        weights = None
        if output.alignments is not None:
            weights = output.alignments[position, :length, : source_lengths[position // copies]].float().cpu()[None]
        ids = output.sequences[position, prompt : prompt + length].tolist()
        rows.append((ids, float(output.log_probabilities[position]), weights))
    return rows


def _generated_rows(
    model: PreTrainedModel,
    output: ModelOutput,
    source_lengths: Sequence[int],
    layer: int,
    *,
    settings: Mapping[str, Any],
) -> list[_Row]:
    """The hypotheses in an output of `model.generate`, with the model's log-probabilities, before any processor."""
    beam_indices = getattr(output, "beam_indices", None)
    # Beam search may take more steps than any returned hypothesis has.
    steps = len(output.logits) if beam_indices is None else beam_indices.shape[1]
    prompt = output.sequences.shape[1] - steps
    copies = len(output.sequences) // len(source_lengths)
    log_probabilities = model.compute_transition_scores(
        output.sequences, output.logits, beam_indices, normalize_logits=True
    )
    produced = output.sequences[:, prompt:]
    rows: list[_Row] = []
    for position, length in enumerate(produced_lengths(produced, settings).tolist()):
        ids = produced[position, :length].tolist()
        weights = None
        if output.cross_attentions is not None:
            weights = hypothesis_attention(output, position, len(ids), source_lengths[position // copies], layer)
        rows.append((ids, float(log_probabilities[position, : len(ids)].sum()), weights))
    return rows
