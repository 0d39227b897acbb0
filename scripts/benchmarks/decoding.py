"""Speed and results of decoding: `generate()` and `model.search` on the same sentences.

The report has the speed of each variant, the number of sentences whose tokens differ from those of `generate()` (0 for
an exact variant), and BLEU if references are given.
"""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks.measure import clock, random_batch, take_turns
from benchmarks.training import build_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.evaluation.results import format_table
from hf_rnn_seq2seq.evaluation.scores import score
from hf_rnn_seq2seq.generation.batches import length_batches, until_end
from hf_rnn_seq2seq.generation.encoding import encode_sources
from hf_rnn_seq2seq.generation.lines import LineReader
from hf_rnn_seq2seq.generation.shortlist import Shortlist
from hf_rnn_seq2seq.run_directory import load_checkpoint

Batch = tuple[Sequence[int], Tensor, Tensor]  # indices of the sentences, ids and mask (batch, source)


@dataclass
class Sentences:
    """The sentences to decode, in batches in the order of the input, and in batches sorted by length."""

    plain: list[Batch]
    by_length: list[Batch]
    texts: Sequence[str] = ()
    references: Sequence[str] = ()
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = sum(len(rows) for rows, _, _ in self.plain)


@dataclass
class Decoding:
    """One way to decode all sentences; a call stores the hypotheses and returns the length of the longest."""

    decode: Callable[..., Tensor]
    batches: list[Batch]
    options: Mapping[str, Any]
    device: str = "cpu"
    hypotheses: dict[int, list[int]] = field(default_factory=dict)

    def __call__(self) -> float:
        longest = 0
        for rows, *inputs in self.batches:
            ids, mask = (tensor.to(self.device) for tensor in inputs)
            sequences = self.decode(input_ids=ids, attention_mask=mask, **self.options)[:, 1:]
            longest = max(longest, sequences.shape[1])
            self.hypotheses.update(zip(rows, sequences.tolist(), strict=True))
        return float(longest)


def run(arguments: Namespace) -> list[dict[str, Any]]:
    """Measures the variants with each batch size and prints a table for each."""
    tokenizer, shortlist, texts, ends = None, None, [], ()
    if arguments.model is None:
        model = build_model(arguments).eval().to(arguments.device)
    else:
        model, tokenizer = load_checkpoint(arguments.model, device=arguments.device)
        files = filter(None, (arguments.input, arguments.references))
        texts = [list(LineReader(path))[: arguments.sentences] for path in files]
        shortlist = Shortlist.load(arguments.shortlist, tokenizer) if arguments.shortlist else None
        ends = (model.config.eos_token_id,)
    report = []
    for size in arguments.batch_sizes or [arguments.batch_size]:
        arguments.batch_size = size
        if tokenizer is None:
            sentences = random_sentences(arguments)
        else:
            sentences = read_sentences(model, tokenizer, texts[0], size, *texts[1:])
        variants = decoding_variants(model, sentences, arguments, shortlist)
        measured = take_turns(variants, arguments.rounds, arguments.device)
        rows = compare_decoding(variants, measured, sentences, tokenizer, ends, arguments.device)
        print(f"{sentences.count} sentences, batches of {size}, threads: {arguments.threads}")
        print_decoding(rows)
        report += [{"batch_size": size, **row} for row in rows]
    return report


def random_sentences(arguments: Namespace) -> Sentences:
    """One batch of random ids."""
    lengths = arguments.source_length, arguments.target_length
    source, _ = random_batch(arguments.batch_size, *lengths, [arguments.vocab_size] * 2, full=arguments.full_rows)
    batches: list[Batch] = [(range(len(source)), source, (source != 0).long())]
    return Sentences(batches, batches)


def read_sentences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    references: Sequence[str] = (),
) -> Sentences:
    """Batches of the texts that are not empty.

    Raises:
        ValueError: the number of references differs from that of the texts.
    """
    if references and len(references) != len(texts):
        raise ValueError(f"{len(references)} references for {len(texts)} sentences; the numbers must be equal")
    rows = encode_sources(tokenizer, texts).ids
    filled = [number for number, row in enumerate(rows) if row]
    pad = model.config.pad_token_id

    def padded(chosen: Sequence[int]) -> Batch:
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[n]) for n in chosen], True, pad)
        return chosen, ids, (ids != pad).long()

    plain = [padded(filled[start : start + batch_size]) for start in range(0, len(filled), batch_size)]
    by_length = length_batches([len(row) for row in rows], batch_size, max_tokens=10**9)
    return Sentences(plain, [padded(chosen) for chosen in by_length], texts, references)


def decoding_variants(
    model: PreTrainedModel, sentences: Sentences, arguments: Namespace, shortlist: Shortlist | None = None
) -> dict[str, Decoding]:
    """`generate()`, in order and sorted by length, and the search with each type of weights and with a shortlist."""
    device = arguments.device
    kinds = {"": {}, " bf16": {"weight_type": "bfloat16"}, " int8": {"weight_type": "int8"}}
    if device == "cuda":
        del kinds[" int8"]
    limits: dict[str, Any] = {"max_new_tokens": arguments.target_length} if arguments.target_length else {}
    if arguments.model is None:  # random weights: without an end, all variants decode the same number of steps
        limits["eos_token_id"] = None
    variants = {}
    for name, beams in (("greedy", 1), (f"beam {arguments.num_beams}", arguments.num_beams)):
        options = limits | {"num_beams": beams}
        variants[name] = Decoding(model.generate, sentences.plain, options, device)
        if arguments.model is not None and arguments.batch_size > 1:
            variants[f"{name} sorted"] = Decoding(model.generate, sentences.by_length, options, device)
        for suffix, chosen in kinds.items():
            variants[f"{name} search{suffix}"] = Decoding(model.search, sentences.by_length, options | chosen, device)
        if shortlist is not None:
            variants[f"{name} search shortlist"] = Decoding(
                shortlist.search(model), sentences.by_length, options, device
            )
    return variants


def compare_decoding(
    variants: Mapping[str, Decoding],
    measured: Mapping[str, Mapping[str, float]],
    sentences: Sentences,
    tokenizer: PreTrainedTokenizerBase | None = None,
    ends: Sequence[int] = (),
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """A row for each variant: speed, ratios to `generate()` with the same number of beams, and differences.

    Args:
        variants: after their calls.
        measured: `wall_s` and `cpu_s` of each, in seconds.
        sentences: those that were decoded.
        tokenizer: decodes the hypotheses; required if there are references.
        ends: ids that end a sentence.
        device: on a CPU ratios compare CPU time, else wall time.
    """
    seconds = clock(device)
    report = []
    for name, row in measured.items():
        first = next(other for other in measured if name.startswith(other))
        reference = measured[first]
        hypotheses, expected = (
            {index: until_end(row, ends) for index, row in variants[one].hypotheses.items()} for one in (name, first)
        )
        facts: dict[str, Any] = {
            "variant": name,
            "sentences_per_s": sentences.count / row["wall_s"],
            "ratio_to_reference": reference[seconds] / row[seconds],
            "wall_ratio": reference["wall_s"] / row["wall_s"],
            "different": sum(hypotheses[index] != expected[index] for index in expected),
            **row,
        }
        if sentences.references:
            facts["bleu"] = _bleu(hypotheses, sentences, tokenizer)
        report.append(facts)
    return report


def _bleu(hypotheses: Mapping[int, list[int]], sentences: Sentences, tokenizer: PreTrainedTokenizerBase) -> float:
    rows = [hypotheses.get(index, []) for index in range(len(sentences.references))]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return score(texts, sentences.references, metrics=("bleu",))["bleu"]


def print_decoding(report: Sequence[Mapping[str, Any]]) -> None:
    """Prints one line per variant."""
    with_bleu = "bleu" in report[0]
    columns = ["variant", "sentences/s", "CPU ms", "ratio", "wall", "different", "steps"]
    rows = [columns + ["BLEU"] * with_bleu]
    for row in report:
        cells = [row["variant"], f"{row['sentences_per_s']:.1f}", f"{row['cpu_s'] * 1e3:.1f}"]
        cells += [f"{row['ratio_to_reference']:.2f}", f"{row['wall_ratio']:.2f}"]
        cells += [str(row["different"]), f"{row['value']:.0f}"]
        rows.append(cells + ([f"{row['bleu']:.2f}"] if with_bleu else []))
    print(format_table(rows))
