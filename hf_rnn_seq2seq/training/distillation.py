"""Knowledge distillation at sequence level: a corpus whose targets a teacher has written (Kim and Rush 2016).

Section 3.2: the target of each source is the teacher's best hypothesis under beam search. Section 3.3, interpolation:
of its n best, the one closest to the reference by sentence BLEU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from hf_rnn_seq2seq.evaluation.sentence_scores import sentence_metric
from hf_rnn_seq2seq.generation.encoding import encode_sources
from hf_rnn_seq2seq.generation.lines import LineWriter
from hf_rnn_seq2seq.generation.translate import translate, translate_n_best


def closest(hypotheses: Sequence[str], reference: str, similarity: Callable[[str, str], float]) -> str:
    """The hypothesis most similar to the reference; of equals the first, which the teacher likes better."""
    return max(hypotheses, key=lambda hypothesis: similarity(hypothesis, reference))


def distilled(
    model: Any,
    tokenizer: Any,
    sources: Sequence[str],
    references: Sequence[str],
    *,
    interpolate: int = 0,
    source_prefix: str = "",
    max_source_length: int | None = None,
    counts: Counter[str] | None = None,
    **options: Any,
) -> list[str]:
    """What the teacher says for each source.

    Args:
        model, tokenizer: the teacher, any sequence-to-sequence model with `generate()`.
        references: read with `interpolate` only.
        interpolate: how many of the teacher's best hypotheses to choose from by the reference; 0 takes the best one.
        source_prefix: what the teacher reads before each source.
        max_source_length: tokens a source is cut at.
        counts: gets those of `Encoded.counts` added: sources that the teacher could not read whole.
        options: of `evaluation.translate`.

    Raises:
        EvaluationError: `interpolate` is more than the number of beams.
    """
    encoded = encode_sources(tokenizer, [source_prefix + source for source in sources], max_source_length)
    if counts is not None:
        counts.update(encoded.counts())
    if not interpolate:
        return translate(model, tokenizer, encoded, progress=False, **options)
    found = translate_n_best(model, tokenizer, encoded, n_best=interpolate, progress=False, **options)
    similarity = sentence_metric("bleu")
    return [
        closest([hypothesis.text for hypothesis in hypotheses], reference, similarity)
        for hypotheses, reference in zip(found, references, strict=True)
    ]


def column_names(options: Mapping[str, Any], description: Mapping[str, Any]) -> tuple[str, str]:
    """The header of the distilled table: what the `options` that read the corpus call its columns.

    So the same options read the table, and the other splits, when a student is trained. `description` is the corpus's.
    """
    names = [
        options.get(f"{side}_column") or options.get(f"{side}_lang") or description.get(f"{side}_lang")
        for side in ("source", "target")
    ]
    if any(name is None or str(name).isdecimal() for name in names):
        return "source", "target"
    return str(names[0]), str(names[1])


def write_distilled(
    writer: LineWriter,
    header: tuple[str, str],
    rows: Any,
    teach: Callable[[list[str], list[str]], list[str]],
    window: int,
) -> Iterator[int]:
    """Writes the table of sources and distilled targets (TSV), row by row in the order of the corpus.

    Args:
        writer: where to; what it holds already is not done again.
        rows: columns `source` and `target`, memory-mapped.
        teach: (sources, references) -> targets.
        window: rows held at a time.

    Yields:
        how many rows are done, after each window.
    """
    if not writer.done:
        writer.write(["\t".join(header)])
    done = max(writer.done - 1, 0)
    for batch in rows.select(range(done, len(rows))).iter(window):
        targets = teach(batch["source"], batch["target"])
        writer.write(_table_lines(zip(batch["source"], targets, strict=True)))
        done += len(targets)
        yield done


def _table_lines(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return ["\t".join(text.replace("\t", " ") for text in pair) for pair in pairs]


__all__ = ["closest", "column_names", "distilled", "write_distilled"]
