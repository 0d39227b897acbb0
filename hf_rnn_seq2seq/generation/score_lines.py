"""Scores a stream of pairs: one output line for each pair of lines, window by window, in text or JSON."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import splits_letters
from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.generation.encoding import encode_sources, has_words, source_problems
from hf_rnn_seq2seq.generation.lines import LineReader, LineWriter, windows
from hf_rnn_seq2seq.generation.scoring import Score, score_texts


class PairReader:
    """(source, translation) pairs of one file with tabs, or of two files; a line without a tab has no translation.

    Args:
        sources: file of sources, or of `source<TAB>translation` lines; None for standard input.
        targets: file of translations.

    Raises:
        DataError: a file does not exist, the files differ in length, the first line has no tab, or a line has further
            columns.
    """

    def __init__(self, sources: str | None, targets: str | None = None) -> None:
        self.features = False  # before a source, which a tab ends: the last tab then ends the source
        if targets is None:
            self.readers = [LineReader(sources, pairs=True)]
            return
        self.readers = [LineReader(sources), LineReader(targets)]
        counts = [reader.count() for reader in self.readers]
        if None not in counts and counts[0] != counts[1]:
            self._refuse(counts.index(min(counts)), min(counts) + 1)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if len(self.readers) == 1:
            for number, line in enumerate(self.readers[0], start=1):
                source, tab, target = (line.rpartition if self.features else line.partition)("\t")
                if number == 1 and source.strip() and not tab:
                    raise DataError(f"{self._name(0)}: line 1 has no tab between source and translation")
                if "\t" in target:
                    columns = f"line {number} has {line.count(chr(9)) + 1} columns"
                    raise DataError(f"{self._name(0)}: {columns}; give the source and the translation alone")
                yield source, target
            return
        for number, pair in enumerate(zip_longest(*self.readers), start=1):
            if None in pair:
                self._refuse(pair.index(None), number)
            yield pair

    def warnings(self) -> list[str]:
        """Warnings about lines that were not read completely."""
        return [warning for reader in self.readers for warning in reader.warnings()]

    def _name(self, side: int) -> str:
        return self.readers[side].path or "-"

    def _refuse(self, side: int, number: int) -> None:
        raise DataError(f"{self._name(side)}: ends before line {number}, where the other file goes on")


@dataclass
class Totals:
    """Sums over all pairs."""

    lines: int = 0
    empty: list[int] = field(default_factory=list)  # numbers of the lines with an empty side
    counts: Counter[str] = field(default_factory=Counter)  # of `Encoded.counts`
    scores: list[Score] = field(default_factory=list)  # one sum per window

    def notes(self) -> list[str]:
        """Warnings about pairs that were not read completely, or not scored."""
        notes = source_problems(self.counts)
        if self.empty:
            notes.append(f"{len(self.empty)} line(s) have an empty side and no score (first: line {self.empty[0]})")
        return notes


def text_line(score: Score | None) -> str:
    """Log-probability, tokens and perplexity, separated by tabs; an empty line for a pair with an empty side."""
    return "" if score is None else f"{score.log_probability:.6f}\t{score.tokens}\t{score.perplexity:.4f}"


def json_line(score: Score | None) -> str:
    """The same as a JSON object, with the log-probability of each token."""
    if score is None:
        return json.dumps({"log_probability": None, "tokens": 0, "perplexity": None, "per_token": []})
    row = {"log_probability": score.log_probability, "tokens": score.tokens, "perplexity": score.perplexity}
    return json.dumps(row | {"per_token": list(score.per_token)})


FORMATS: dict[str, Callable[[Score | None], str]] = {"text": text_line, "jsonl": json_line}


def score_lines(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: PairReader,
    writer: LineWriter,
    *,
    output_format: str = "text",
    window: int = 2048,
    batch_size: int = 64,
) -> Totals:
    """Reads, scores and writes `window` pairs at a time, so that memory does not grow.

    Raises:
        DataError: the input is damaged, or the output cannot be written; the message counts the lines written.
    """
    totals, letters = Totals(), splits_letters(tokenizer)
    try:
        for rows in windows(pairs, window):
            filled = [has_words(source, letters) and bool(target.strip()) for source, target in rows]
            kept = [row for row, usable in zip(rows, filled, strict=True) if usable]
            encoded = encode_sources(tokenizer, [source for source, _ in kept])
            targets = [target for _, target in kept]
            kept_scores = score_texts(model, tokenizer, encoded, targets, batch_size=batch_size)
            remaining = iter(kept_scores)
            scores = [next(remaining) if usable else None for usable in filled]
            writer.write([FORMATS[output_format](score) for score in scores])
            totals.empty += [totals.lines + n for n, usable in enumerate(filled, start=1) if not usable]
            totals.lines += len(rows)
            totals.counts += encoded.counts()
            totals.scores.append(_sum(kept_scores))
    except DataError as error:
        raise DataError(f"{error}. {writer.written} lines were written") from None
    return totals


def _sum(scores: Sequence[Score]) -> Score:
    return Score(sum(score.log_probability for score in scores), sum(score.tokens for score in scores), ())
