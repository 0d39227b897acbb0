"""Knowledge distillation at sequence level: a corpus whose targets a teacher has written (Kim and Rush 2016).

Section 3.2: the target of each source is the teacher's best hypothesis under beam search. Section 3.3, interpolation:
of its n best, the one closest to the reference by sentence BLEU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.corpus import columns_of_run
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.evaluation.sentence_scores import sentence_metric
from hf_rnn_seq2seq.generation.encoding import encode_sources
from hf_rnn_seq2seq.generation.lines import LineWriter
from hf_rnn_seq2seq.generation.translate import translate, translate_n_best
from hf_rnn_seq2seq.run_directory import ROW_FORMAT, data_options, require_kind


def closest(hypotheses: Sequence[str], reference: str, similarity: Callable[[str, str], float]) -> str:
    """The hypothesis most similar to the reference; at a tie the first, which has the higher score."""
    return max(hypotheses, key=lambda hypothesis: similarity(hypothesis, reference))


def distilled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    references: Sequence[str],
    *,
    interpolate: int = 0,
    source_prefix: str = "",
    max_source_length: int | None = None,
    counts: Counter[str] | None = None,
    **options: Any,
) -> list[str]:
    """The translation of each source by the teacher.

    Args:
        model, tokenizer: the teacher, any sequence-to-sequence model with `generate()`.
        references: read with `interpolate` only.
        interpolate: how many of the teacher's best hypotheses to choose from by the reference; 0 takes the best one.
        source_prefix: text before each source.
        max_source_length: longer sources are truncated to this number of tokens.
        counts: `Encoded.counts` is added to it: sources that were truncated or had unknown tokens.
        options: of `generation.translate.translate`.

    Raises:
        ArgumentError: `interpolate` is more than the number of beams.
    """
    encoded = encode_sources(tokenizer, [source_prefix + source for source in sources], max_source_length)
    if counts is not None:
        counts.update(encoded.counts())
    if not interpolate:
        return translate(model, tokenizer, encoded, progress=False, **options)
    n_best = translate_n_best(model, tokenizer, encoded, n_best=interpolate, progress=False, **options)
    similarity = sentence_metric("bleu")
    return [
        closest([hypothesis.text for hypothesis in hypotheses], reference, similarity)
        for hypotheses, reference in zip(n_best, references, strict=True)
    ]


def corpus_options(given: Mapping[str, Any], teacher: str, source_prefix: str = "") -> dict[str, Any]:
    """The options that load the training split: those of the `given` data options, else of the teacher's run.

    A file with the columns of the teacher's run needs no names of them.

    Raises:
        ArgumentError: no corpus is given, and the teacher has no recipe; or it reads features, and the `source_prefix`
            gives none.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    require_kind(teacher, "Seq2SeqLM")
    recorded = data_options(teacher)
    if (features := recorded.get("feature_column")) is not None and "\t" not in source_prefix:
        raise ArgumentError(
            f"{teacher}: has feature_column={features!r}, and a distilled table has two columns; give the features of "
            "all sources and a tab as --source_prefix"
        )
    form = {name: recorded[name] for name in ROW_FORMAT if name in recorded and name != "feature_column"}
    if not given["dataset_name"] and not given["train_file"]:
        if not recorded:
            raise ArgumentError(
                f"{teacher}: has no recipe.yaml that says what it was trained on; give --dataset_name or --train_file"
            )
        return {name: value for name, value in recorded.items() if name in given} | form | chosen
    if not given["train_file"]:
        return chosen
    return form | columns_of_run(form | chosen, recorded, "train") | chosen


def column_names(options: Mapping[str, Any], description: Mapping[str, Any]) -> tuple[str, str] | None:
    """The header of the distilled table: the column names in the `options` that read the corpus; None for no header.

    The same options then read the table, and the other splits, when a student is trained. `description` is that of the
    corpus.
    """
    if not options.get("header", True) or options.get("file_format"):
        return None
    source, target = (
        options.get(f"{side}_column") or options.get(f"{side}_lang") or description.get(f"{side}_lang") or side
        for side in ("source", "target")
    )
    return str(source), str(target)


def column_places(options: Mapping[str, Any], header: tuple[str, str] | None) -> tuple[int, int]:
    """The columns of source and target in the distilled table: without header those that the `options` number."""
    if header is not None:
        return 0, 1
    return int(options.get("source_column") or 0), int(options.get("target_column") or 1)


def with_unlabeled(rows: Dataset, lines: Iterable[str], name: str) -> Dataset:
    """The `rows`, and after them a row without a target for each further source among the `lines` of the file `name`.

    Blank lines, and lines that are a source already, are left out.

    Raises:
        DataError: a line with a tab, which would be a column of the distilled table; or no further source.
    """
    known = set(rows["source"])
    further: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if "\t" in line:
            raise DataError(
                f"unlabeled_file={name!r}: line {number} has a tab; give one source a line, without targets"
            )
        if line.strip() and line not in known:
            further[line] = None
    if not further:
        raise DataError(f"unlabeled_file={name!r}: holds no source that the corpus lacks; leave it out")
    columns = {"source": list(further), "target": [""] * len(further)}
    return concatenate_datasets([rows.select_columns(list(columns)), Dataset.from_dict(columns)])


def write_distilled(
    writer: LineWriter,
    header: tuple[str, str] | None,
    places: tuple[int, int],
    rows: Dataset,
    teach: Callable[[list[str], list[str]], list[str]],
    window: int,
) -> Iterator[int]:
    """Writes the table of sources and distilled targets (TSV), row by row in the order of the corpus.

    Args:
        writer: the output; rows that it has already are not repeated.
        header: of `column_names`.
        places: of `column_places`; other columns up to them are empty.
        rows: a table with the columns `source` and `target`.
        teach: (sources, references) -> targets.
        window: rows that are translated together.

    Yields:
        how many rows are done, after each window.
    """
    # Written together with the first rows, so that nothing is left behind if these cannot be made.
    begin = ["\t".join(header)] if header is not None and not writer.done else []
    done = max(writer.done - (header is not None), 0)
    for batch in rows.select(range(done, len(rows))).iter(window):
        targets = teach(batch["source"], batch["target"])
        writer.write([*begin, *_table_lines(zip(batch["source"], targets, strict=True), places)])
        begin = []
        done += len(targets)
        yield done


def _table_lines(pairs: Iterable[tuple[str, str]], places: tuple[int, int]) -> list[str]:
    lines = []
    for pair in pairs:
        fields = [""] * (max(places) + 1)
        for place, text in zip(places, pair, strict=True):
            fields[place] = text.replace("\t", " ")
        lines.append("\t".join(fields))
    return lines
