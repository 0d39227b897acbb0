"""Translate a set of sentences with any sequence-to-sequence model, and score the result.

Nothing here knows a model class: `model` is any `PreTrainedModel` that has `generate()`, and `search` any callable that
takes what `generate()` takes and returns the sequences.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import EvaluationError
from hf_rnn_seq2seq.evaluation.metrics import load_metric
from hf_rnn_seq2seq.generation.attention import hypothesis_attention, stack_layer, stands_alone, word_pairs
from hf_rnn_seq2seq.generation.side_by_side import side_by_side
from hf_rnn_seq2seq.model.precision import why_not_finite

logger = logging.getLogger(__name__)

MAX_TOKENS = 16384  # positions of a padded batch, beams included
FEW_ROWS = 4  # of a batch: so few keep Python busier than the processor
NO_LIMIT = 1_000_000_000  # transformers writes 1e30 into model_max_length for "no limit"


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one sentence."""

    text: str
    token_ids: tuple[int, ...] = ()  # generated tokens, end of sentence included, without the prompt
    source_ids: tuple[int, ...] = ()
    log_probability: float | None = None  # natural logarithm, summed over token_ids
    attention: Tensor | None = None  # (heads, target, source)


@dataclass(frozen=True)
class Encoded:
    """Sources as the model reads them, and the positions of those that it does not read as they were written."""

    ids: list[list[int]]
    truncated: list[int]  # longer than the limit: the end was cut off
    unknown: list[int]  # every token is the unknown one: nothing of the text reaches the model

    def counts(self) -> Counter[str]:
        """`sources`, `truncated` and `unknown` as numbers; those of several batches may be added."""
        return Counter(sources=len(self.ids), truncated=len(self.truncated), unknown=len(self.unknown))


def source_problems(counts: Mapping[str, int]) -> list[str]:
    """What the reader of a result must know of its sources, one clause each; empty when all were read whole.

    `counts` are those of `Encoded.counts`.
    """
    clauses = {
        "truncated": "are longer than the limit and were cut",
        "unknown": "hold nothing but unknown tokens",
    }
    return [
        f"{counts[name]} of {counts['sources']} sources {clause}" for name, clause in clauses.items() if counts[name]
    ]


def encode_sources(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], max_source_length: int | None = None
) -> Encoded:
    """Token ids of every source, and which of them could not be read whole.

    A source of more than `max_source_length` tokens (default: the tokenizer's `model_max_length`) keeps its beginning
    and its closing special token. A source of nothing but white space gives an empty list.
    """
    if max_source_length is not None and max_source_length < 2:
        raise EvaluationError(f"max_source_length is {max_source_length}; allowed: at least 2 tokens")
    own_limit = tokenizer.model_max_length
    limit = max_source_length or (own_limit if own_limit and own_limit < NO_LIMIT else None)
    filled = [index for index, source in enumerate(sources) if source.strip()]
    encoded: list[list[int]] = [[] for _ in sources]
    truncated, unknown = [], []
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    if filled:
        rows = tokenizer([sources[index] for index in filled], verbose=False)["input_ids"]
        for index, row in zip(filled, rows, strict=True):
            if limit is not None and len(row) > limit:
                closing = row[-1:] if row[-1] in tokenizer.all_special_ids else []
                row = row[: limit - len(closing)] + closing
                truncated.append(index)
            encoded[index] = row
            if {*row} - special == {tokenizer.unk_token_id}:
                unknown.append(index)
    return Encoded(encoded, truncated, unknown)


def encoded_sources(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[str] | Encoded, max_source_length: int | None = None
) -> Encoded:
    """Texts encoded, and a warning of those that could not be read whole.

    What was encoded before comes back as it is: its problems are the caller's to report.
    """
    if isinstance(sources, Encoded):
        return sources
    encoded = encode_sources(tokenizer, sources, max_source_length)
    for problem in source_problems(encoded.counts()):
        logger.warning(problem)
    return encoded


def length_batches(lengths: Sequence[int], batch_size: int, max_tokens: int, beams: int = 1) -> list[list[int]]:
    """Positions in batches of similar length, longest first; empty rows belong to no batch.

    A batch has at most `batch_size` rows and `max_tokens` padded positions, counting each row once for every beam; a
    row longer than that forms a batch alone. Longest first: what does not fit in memory fails at once.
    """
    if batch_size < 1 or max_tokens < 1:
        raise EvaluationError(f"batch_size is {batch_size}, max_tokens is {max_tokens}; both must be at least 1")
    batches: list[list[int]] = []
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (-lengths[i], i))
    for index in order:
        full = not batches or len(batches[-1]) == batch_size
        if full or (len(batches[-1]) + 1) * lengths[batches[-1][0]] * beams > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def _progress(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="translating", unit=" sentences", disable=not progress, leave=False)


def _pad(rows: Sequence[Sequence[int]], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def _batch_outputs(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    search: Callable[..., Any] | None,
    batch_size: int,
    max_tokens: int,
    progress: bool,
    generation: Mapping[str, Any],
) -> Iterable[tuple[list[int], Any]]:
    """Yield (positions, what the search returned) batch by batch, the model in evaluation mode meanwhile."""
    beams = generation.get("num_beams") or model.generation_config.num_beams or 1
    batches = length_batches([len(row) for row in sources], batch_size, max_tokens, beams)
    pad_token_id = model.config.pad_token_id or 0
    # A model that has a search of its own finds what generate() finds, sooner.
    own = getattr(model, "search", None)
    search = search or own or model.generate

    def decode(batch: Sequence[int]) -> Any:
        return search(**_pad([sources[index] for index in batch], pad_token_id, model.device), **generation)

    was_training = model.training
    model.eval()
    try:
        # The search of a model may be run by several threads. Of what else is given nothing is known, and samples would
        # be drawn in the order in which threads happen to run.
        covers = getattr(model, "search_covers", None)
        covered = search == own and covers is not None and covers(**generation)
        together = side_by_side if covered and model.device.type == "cpu" and batch_size > FEW_ROWS else map
        with _progress(sum(map(len, batches)), progress) as bar, torch.no_grad():
            for batch, output in zip(batches, together(decode, batches), strict=True):
                yield batch, output
                bar.update(len(batch))
    finally:
        model.train(was_training)


def translate_ids(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    search: Callable[..., Tensor] | None = None,
    batch_size: int = 64,
    max_tokens: int = MAX_TOKENS,
    progress: bool = True,
    **generation: Any,
) -> list[list[int]]:
    """Best hypothesis of each source as the model's own ids (start and padding included), in the order of `sources`.

    `generation` overrides the model's generation config. An empty source gives an empty list without asking the model.
    """
    results: list[list[int]] = [[] for _ in sources]
    for batch, output in _batch_outputs(model, sources, search, batch_size, max_tokens, progress, generation):
        sequences = output if isinstance(output, Tensor) else output.sequences
        copies = len(sequences) // len(batch)  # num_return_sequences
        for row, index in enumerate(batch):
            results[index] = sequences[row * copies].tolist()
    return results


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded,
    *,
    search: Callable[..., Tensor] | None = None,
    batch_size: int = 64,
    max_tokens: int = MAX_TOKENS,
    max_source_length: int | None = None,
    progress: bool = True,
    **generation: Any,
) -> list[str]:
    """Translate texts; the result has the order of `sources`, and "" for a source without text.

    Without `generation` options the result is `model.generate()`'s under the checkpoint's generation config. A model
    that has a method `search` is asked through it; `search=model.generate` insists on the other.
    Sources longer than `max_source_length` tokens are cut (see `encode_sources`) and counted in a warning. Who counts
    for himself encodes first and hands over what `encode_sources` gave.
    """
    encoded = encoded_sources(tokenizer, sources, max_source_length).ids
    rows = translate_ids(
        model, encoded, search=search, batch_size=batch_size, max_tokens=max_tokens, progress=progress, **generation
    )
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [text if row else "" for text, row in zip(texts, encoded, strict=True)]


def translate_n_best(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded,
    *,
    n_best: int = 1,
    attention: bool = False,
    layer: int = -1,
    batch_size: int = 64,
    max_tokens: int = MAX_TOKENS,
    max_source_length: int | None = None,
    progress: bool = True,
    search: Callable[..., Any] | None = None,
    **generation: Any,
) -> list[list[Hypothesis]]:
    """The `n_best` hypotheses of each source with log-probability and, on request, attention; best first.

    A source without text has one empty hypothesis. `search` stands in for the model's own and returns what that does.
    Sources are cut and counted as by `translate`.
    Raises EvaluationError when `n_best` exceeds the number of beams and the search does not sample.
    """
    beams = generation.get("num_beams") or model.generation_config.num_beams or 1
    samples = generation.get("do_sample", model.generation_config.do_sample)
    if n_best < 1 or (n_best > beams and not samples):
        raise EvaluationError(f"n_best is {n_best}; allowed: 1 to the number of beams ({beams})")
    encoded = encoded_sources(tokenizer, sources, max_source_length).ids
    generation |= {"num_return_sequences": n_best, "return_dict_in_generate": True}
    own, hypotheses = search, _generated_hypotheses
    if own is not None or _searches(model, attention, layer, generation):
        search, hypotheses = own or model.search, _searched_hypotheses
        generation["return_alignments"] = attention
    else:
        search = model.generate
        generation |= {"output_scores": True, "output_attentions": attention}
    results: list[list[Hypothesis]] = [[Hypothesis("")] for _ in encoded]
    for batch, output in _batch_outputs(model, encoded, search, batch_size, max_tokens, progress, generation):
        rows = hypotheses(model, output, [len(encoded[index]) for index in batch], layer)
        if any(math.isnan(total) for _, total, _ in rows):
            raise EvaluationError(why_not_finite([model]))
        for row, index in enumerate(batch):
            results[index] = [
                Hypothesis(
                    tokenizer.decode(ids, skip_special_tokens=True), tuple(ids), tuple(encoded[index]), total, weights
                )
                for ids, total, weights in rows[row * n_best : (row + 1) * n_best]
            ]
    return results


def _searches(model: PreTrainedModel, attention: bool, layer: int, generation: Mapping[str, Any]) -> bool:
    """Whether the model's own search finds these hypotheses; it averages attention over heads, of its one layer."""
    covers = getattr(model, "search_covers", None)
    heads = getattr(model.config, "num_attention_heads", 1)
    has_attention = getattr(model.config, "context", "attention") == "attention"
    shows = heads == 1 and has_attention and layer in (0, -1)
    return covers is not None and covers(**generation) and (shows or not attention)


_Row = tuple[list[int], float, Tensor | None]  # tokens, log-probability, attention (heads, target, source)


def _searched_hypotheses(model: PreTrainedModel, output: Any, source_lengths: Sequence[int], layer: int) -> list[_Row]:
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


def _generated_hypotheses(model: PreTrainedModel, output: Any, source_lengths: Sequence[int], layer: int) -> list[_Row]:
    beam_indices = getattr(output, "beam_indices", None)
    # Beam search may take steps after the last one that any returned hypothesis needed.
    steps = len(output.scores) if beam_indices is None else beam_indices.shape[1]
    prompt = output.sequences.shape[1] - steps
    copies = len(output.sequences) // len(source_lengths)
    log_probabilities = _token_log_probabilities(model, output)
    rows: list[_Row] = []
    for position, sequence in enumerate(output.sequences[:, prompt:].tolist()):
        ids = _until_end(sequence, model.generation_config.eos_token_id)
        weights = None
        if output.cross_attentions is not None:
            weights = hypothesis_attention(output, position, len(ids), source_lengths[position // copies], layer)
        rows.append((ids, float(log_probabilities[position, : len(ids)].sum()), weights))
    return rows


def forced_hypothesis(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, translation: str, *, layer: int = -1
) -> Hypothesis:
    """A given translation as the model sees it: its tokens, log-probability and attention, by one forward pass.

    Raises EvaluationError when either side has no text.
    """
    return forced_hypotheses(model, tokenizer, [source], [translation], layer=layer)[0]


@torch.no_grad()
def forced_hypotheses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded,
    translations: Sequence[str],
    *,
    layer: int = -1,
    batch_size: int = 64,
) -> list[Hypothesis]:
    """The same of many pairs, in batches of similar length."""
    source_ids = encoded_sources(tokenizer, sources).ids
    encoding = tokenizer(text_target=list(translations), verbose=False)
    target_ids = encoding["labels"] if "labels" in encoding else encoding["input_ids"]
    if not all(source_ids) or not all(text.strip() for text in translations):
        raise EvaluationError("source and translation must both hold text")
    found: dict[int, Hypothesis] = {}
    was_training = model.training
    model.eval()
    try:
        for batch in length_batches([len(row) for row in source_ids], batch_size, MAX_TOKENS):
            inputs = _pad([source_ids[index] for index in batch], model.config.pad_token_id or 0, model.device)
            padded = _pad([target_ids[index] for index in batch], 0, model.device)
            real = padded["attention_mask"].bool()
            labels = padded["input_ids"].masked_fill(~real, -100)
            output = model(**inputs, labels=labels, output_attentions=True)
            weights = stack_layer(output.cross_attentions, layer).float().cpu()
            scores = output.logits.float().log_softmax(-1).gather(-1, padded["input_ids"].unsqueeze(-1)).squeeze(-1)
            totals = scores.masked_fill(~real, 0.0).sum(-1).tolist()
            for row, index in enumerate(batch):
                ids = tuple(target_ids[index]), tuple(source_ids[index])
                attention = weights[row, :, : len(ids[0]), : len(ids[1])]
                found[index] = Hypothesis(translations[index], *ids, totals[row], attention)
    finally:
        model.train(was_training)
    return [found[index] for index in range(len(translations))]


def attention_agreement(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    references: Sequence[str],
    alignments: Sequence[str | None],
    batch_size: int = 64,
) -> tuple[int, int]:
    """How many aligned words of the references attend most to a source word they stand for, and how many there are.

    The model is made to say the references; attention is averaged over heads and merged to words. `alignments` are in
    Pharaoh's format and count words between white space. A pair with a script that is written without spaces, whose
    tokens are not merged into such words, is left out.

    Raises:
        AttentionError: the model gives no attention weights.
        DataError: an alignment that cannot be read.
    """
    from hf_rnn_seq2seq.data.word_alignment import parse_pharaoh  # needs datasets, which translating does not

    rows = enumerate(zip(sources, references, alignments, strict=True))
    chosen = [index for index, columns in rows if all(text and text.strip() for text in columns)]
    encoded = encode_sources(tokenizer, [sources[index] for index in chosen])
    said = [references[index] for index in chosen]
    found = forced_hypotheses(model, tokenizer, encoded, said, batch_size=batch_size)
    agreed = aligned = 0
    for index, hypothesis in zip(chosen, found, strict=True):
        gold: dict[int, set[int]] = {}
        for source, target in parse_pharaoh(alignments[index] or "", f"alignment of row {index}"):
            gold.setdefault(target, set()).add(source)
        if any(map(stands_alone, sources[index] + references[index])):
            continue
        asked = {target: source for source, target in word_pairs(tokenizer, sources[index], hypothesis)}
        agreed += sum(asked.get(target) in places for target, places in gold.items())
        aligned += len(gold)
    return agreed, aligned


def _token_log_probabilities(model: PreTrainedModel, output: Any) -> Tensor:
    """(sequences, target): beam search keeps log-probabilities as its scores, the other modes keep logits."""
    beam_indices = getattr(output, "beam_indices", None)
    return model.compute_transition_scores(
        output.sequences, output.scores, beam_indices, normalize_logits=beam_indices is None
    )


def _until_end(ids: list[int], eos_token_id: int | list[int] | None) -> list[int]:
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    stop = next((position + 1 for position, token in enumerate(ids) if token in ends), len(ids))
    return ids[:stop]


def score(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] = ("bleu", "chrf"),
    *,
    n_bootstrap: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Corpus scores by name, 0 to 100, each with `<name>_signature`; `signature` is BLEU's.

    With `n_bootstrap` resamples also `<name>_interval`, half of the 95 % interval (of sacrebleu's metrics). `options`
    go to BLEU (`lowercase`, `tokenize`, ...). Raises EvaluationError when the sides differ in number or hold nothing.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise EvaluationError(
            f"{len(hypotheses)} hypotheses for {len(references)} references; need as many, at least 1"
        )
    result: dict[str, Any] = {}
    for name in metrics:
        metric, own = load_metric(name)
        if n_bootstrap and name not in ("gleu", "wer", "cer", "exact_match"):
            own["n_bootstrap"] = n_bootstrap
        found = metric.compute(
            predictions=list(hypotheses), references=list(references), **own, **(options if name == "bleu" else {})
        )
        result[name] = found["score"]
        result[f"{name}_signature"] = found["signature"]
        if "interval" in found:
            result[f"{name}_interval"] = found["interval"]
    if "bleu_signature" in result:
        result["signature"] = result["bleu_signature"]
    return result
