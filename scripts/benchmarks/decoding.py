"""What decoding costs and what it finds: `generate()` and `model.search` on the same sentences, in one run.

Every variant decodes all sentences and returns its hypotheses, so that speed stands beside what it was bought with:
the number of sentences whose tokens are not those of `generate()` (0 for an exact variant), and BLEU where references
are given.
"""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from benchmarks.measure import clock
from torch import Tensor

Batch = tuple[Sequence[int], Tensor, Tensor]  # numbers of the sentences, ids and mask (batch, source)


@dataclass
class Sentences:
    """What is decoded: the same sentences in the order of the input, and sorted by length."""

    plain: list[Batch]
    by_length: list[Batch]
    texts: Sequence[str] = ()
    references: Sequence[str] = ()
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = sum(len(rows) for rows, _, _ in self.plain)


@dataclass
class Decoding:
    """One way to decode all sentences; a call returns the steps of the longest hypothesis and keeps what it found."""

    decode: Callable[..., Tensor]
    batches: list[Batch]
    options: Mapping[str, Any]
    device: str = "cpu"
    found: dict[int, list[int]] = field(default_factory=dict)

    def __call__(self) -> float:
        longest = 0
        for rows, *inputs in self.batches:
            ids, mask = (tensor.to(self.device) for tensor in inputs)
            sequences = self.decode(input_ids=ids, attention_mask=mask, **self.options)[:, 1:]
            longest = max(longest, sequences.shape[1])
            self.found.update(zip(rows, sequences.tolist(), strict=True))
        return float(longest)


def read_sentences(
    model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int, references: Sequence[str] = ()
) -> Sentences:
    """Batches of texts that hold words.

    Raises:
        ValueError: there are references, but not one for each text.
    """
    from hf_rnn_seq2seq.generation.translate import encode_sources, length_batches

    if references and len(references) != len(texts):
        raise ValueError(f"{len(references)} references for {len(texts)} sentences; need as many")
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
    model: Any, sentences: Sentences, arguments: Namespace, shortlist: Any = None
) -> dict[str, Decoding]:
    """`generate()`, also in batches sorted by length, and the search with each kind of weights and a shortlist."""
    device = arguments.device
    kinds = {"": {}, " bf16": {"weight_type": "bfloat16"}, " int8": {"weight_type": "int8"}}
    if device == "cuda":
        del kinds[" int8"]
    limits: dict[str, Any] = {"max_new_tokens": arguments.target_length} if arguments.target_length else {}
    if arguments.model is None:  # random weights: no sentence may end, so that every variant takes as many steps
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
    tokenizer: Any = None,
    ends: Sequence[int] = (),
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """A row for each variant: rates, ratios to `generate()` with as many beams, and what it found otherwise.

    Args:
        variants: after they have run.
        measured: `wall_s` and `cpu_s` of each, in seconds.
        sentences: what they decoded.
        tokenizer: reads what they found, where there are references.
        ends: ids that end a sentence.
        device: where they ran; off the CPU ratios compare wall time.
    """
    seconds = clock(device)
    report = []
    for name, row in measured.items():
        first = next(other for other in measured if name.startswith(other))
        reference = measured[first]
        found, wanted = (until_end(variants[one].found, ends) for one in (name, first))
        facts: dict[str, Any] = {
            "variant": name,
            "sentences_per_s": sentences.count / row["wall_s"],
            "ratio_to_reference": reference[seconds] / row[seconds],
            "wall_ratio": reference["wall_s"] / row["wall_s"],
            "different": sum(found[number] != wanted[number] for number in wanted),
            **row,
        }
        if sentences.references:
            facts["bleu"] = _bleu(found, sentences, tokenizer)
        report.append(facts)
    return report


def until_end(found: Mapping[int, list[int]], ends: Sequence[int]) -> dict[int, list[int]]:
    """Each row up to its first end of sentence, without what stands behind it."""
    cut = {}
    for number, row in found.items():
        stop = next((place + 1 for place, word in enumerate(row) if word in ends), len(row))
        cut[number] = row[:stop]
    return cut


def _bleu(found: Mapping[int, list[int]], sentences: Sentences, tokenizer: Any) -> float:
    from hf_rnn_seq2seq.generation.translate import score

    rows = [found.get(number, []) for number in range(len(sentences.references))]
    texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return score(texts, sentences.references, metrics=("bleu",))["bleu"]


def print_decoding(report: Sequence[Mapping[str, Any]]) -> None:
    """One line a variant."""
    with_bleu = "bleu" in report[0]
    head = f"{'variant':24}{'sentences/s':>12}{'CPU ms':>10}{'ratio':>8}{'wall':>8}{'different':>11}{'steps':>7}"
    print(head + f"{'BLEU':>8}" * with_bleu)
    for row in report:
        line = f"{row['variant']:24}{row['sentences_per_s']:12.1f}{row['cpu_s'] * 1e3:10.1f}"
        line += f"{row['ratio_to_reference']:8.2f}{row['wall_ratio']:8.2f}{row['different']:11}{row['value']:7.0f}"
        print(line + (f"{row['bleu']:8.2f}" if with_bleu else ""))


__all__ = [
    "Decoding",
    "Sentences",
    "compare_decoding",
    "decoding_variants",
    "print_decoding",
    "read_sentences",
    "until_end",
]
