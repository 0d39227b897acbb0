"""Translates a stream of lines: one output line for each input line, window by window, in text or JSON."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.lexicon import LEXICONS, Entry, format_entries, looked_up, parse_entry
from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.files import content_hash
from hf_rnn_seq2seq.generation.attention import word_pairs
from hf_rnn_seq2seq.generation.encoding import Encoded, encode_sources
from hf_rnn_seq2seq.generation.lines import NOT_CONTENT, DatasetReader, LineReader, LineWriter, windows
from hf_rnn_seq2seq.generation.translate import Hypothesis, number_of_beams, translate, translate_n_best
from hf_rnn_seq2seq.generation.unknown_words import replace_unknown
from hf_rnn_seq2seq.run_directory import model_hash, tokenizer_hash


@dataclass(frozen=True)
class Request:
    """What is written for each line.

    Args:
        options: options of `translate`: generation, search and batches.
        n_best: hypotheses of a line.
        scores: add the log-probability of each hypothesis.
        alignments: add (source word, target word) pairs: where each word attends most.
        replace_unknown: replace unknown words by the aligned source word, or by its entry in `dictionary`.
        dictionary: source word to target word.
        mass: keep the best hypotheses until their probabilities sum to this; None for all.
        lexicon: pronunciations of words that the model is not asked for.
        output_format: a name in `FORMATS`, or a lexicon format, which writes a line for each hypothesis.
        max_source_length: tokens that a line is cut at.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    n_best: int = 1
    scores: bool = False
    alignments: bool = False
    replace_unknown: bool = False
    dictionary: Mapping[str, str] | None = None
    mass: float | None = None
    lexicon: Mapping[str, Sequence[Entry]] = field(default_factory=dict)
    output_format: str = "text"
    max_source_length: int | None = None

    def hypotheses(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: Encoded
    ) -> list[list[Hypothesis]]:
        """The hypotheses of each source; they have a text only, unless more is requested."""
        by_probability = self.mass is not None or self.output_format in LEXICONS
        attention = self.alignments or self.replace_unknown
        if not (self.n_best > 1 or self.scores or by_probability or attention):
            return [[Hypothesis(text)] for text in translate(model, tokenizer, encoded, **self.options)]
        # The search orders beams by their scores, which count their length: the most probable may be any of them.
        asked = max(self.n_best, number_of_beams(model, self.options)) if by_probability else self.n_best
        found = translate_n_best(model, tokenizer, encoded, n_best=asked, attention=attention, **self.options)
        if by_probability:
            found = [most_probable(row)[: self.n_best] for row in found]
        return found if self.mass is None else [list(self._probable(row)) for row in found]

    def _probable(self, hypotheses: Sequence[Hypothesis]) -> Iterator[Hypothesis]:
        covered = 0.0
        for hypothesis in hypotheses:
            if covered < self.mass:
                yield hypothesis
            covered += math.exp(hypothesis.log_probability or 0.0)

    def known(self, source: str) -> list[Hypothesis]:
        """The lexicon's pronunciations of a source, the most probable first."""
        found = sorted(looked_up(self.lexicon, source.strip()), key=lambda pair: -pair[1])
        chosen = [Hypothesis(phones, log_probability=math.log(max(share, 1e-9))) for phones, share in found]
        return (list(self._probable(chosen)) if self.mass is not None else chosen)[: self.n_best]

    def fields(self, tokenizer: PreTrainedTokenizerBase, source: str, hypothesis: Hypothesis) -> dict[str, Any]:
        """What a formatter writes of one hypothesis: `text`, and `log_probability` and `alignment` on request."""
        fields: dict[str, Any] = {"text": hypothesis.text}
        if self.replace_unknown and hypothesis.attention is not None:
            weights = hypothesis.attention.mean(0)
            fields["text"] = replace_unknown(tokenizer, source, hypothesis.token_ids, weights, self.dictionary)
        if self.scores or self.output_format in LEXICONS:
            fields["log_probability"] = hypothesis.log_probability
        if self.alignments:
            fields["alignment"] = word_pairs(tokenizer, source, hypothesis) if hypothesis.attention is not None else []
        return fields


def most_probable(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """The most probable first; one of each text has the probability of all that differ in their tokens alone."""
    found: dict[str, Hypothesis] = {}
    for one in sorted(hypotheses, key=lambda each: -(each.log_probability or 0.0)):
        other = found.setdefault(one.text, one)
        if other is not one and None not in (one.log_probability, other.log_probability):
            total = float(np.logaddexp(one.log_probability, other.log_probability))
            found[one.text] = replace(other, log_probability=total)
    return sorted(found.values(), key=lambda each: -(each.log_probability or 0.0))


def json_line(source: str, hypotheses: Sequence[Mapping[str, Any]]) -> str:
    """A JSON object: the source, and the fields of each hypothesis."""
    return json.dumps({"source": source, "translations": hypotheses}, ensure_ascii=False)


def text_line(source: str, hypotheses: Sequence[Mapping[str, Any]]) -> str:
    """The fields of all hypotheses, separated by tabs; an empty line if there are none."""
    columns = []
    for fields in hypotheses:
        columns.append(fields["text"].replace("\t", " "))
        if "log_probability" in fields:
            columns.append(f"{fields['log_probability']:.4f}")
        if "alignment" in fields:
            columns.append(" ".join(f"{source}-{target}" for source, target in fields["alignment"]))
    return "\t".join(columns)


def require_entry(kind: str, source: str, phones: str = "a", where: str = "") -> None:
    """Raises DataError if a lexicon's line of a word and its phones would mean something else, as `a(2)  b` would."""
    word = source.rpartition("\t")[2].strip()
    if not word:
        return
    if kind.startswith("kaldi") and len(word.split()) > 1:
        raise DataError(
            f"{where}output_format={kind!r}: ends a word at a space, and {word!r} has one; choose mfa or ipa"
        )
    (line,) = format_entries(word, [(phones, 1.0)], kind)
    entry = parse_entry(line, kind)
    if entry is None or entry[:2] != (word, " ".join(phones.split())):
        raise DataError(
            f"{where}output_format={kind!r}: the line of {word!r} would mean something else; choose mfa or ipa"
        )


def lexicon_lines(kind: str, source: str, hypotheses: Sequence[Mapping[str, Any]]) -> str:
    """Lines of a lexicon, one for each text that is not empty, without the features before the word; none for no word.

    Raises:
        DataError: see `require_entry`.
    """
    word = source.rpartition("\t")[2].strip()
    found: dict[str, float] = {}
    for fields in hypotheses:
        if text := fields["text"].strip():
            require_entry(kind, source, text)
            found[text] = found.get(text, 0.0) + math.exp(fields["log_probability"] or 0.0)
    return "\n".join(format_entries(word, list(found.items()), kind)) if word else ""


FORMATS: dict[str, Callable[[str, Sequence[Mapping[str, Any]]], str]] = {"text": text_line, "jsonl": json_line}


def translate_lines(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reader: LineReader | DatasetReader,
    writer: LineWriter,
    request: Request,
    *,
    window: int = 2048,
    progress: bool = True,
) -> Counter[str]:
    """Reads, translates and writes `window` lines at a time, so that memory does not grow; returns `Encoded.counts`.

    Lines that `writer.done` counts are skipped. From a terminal, each line is translated at once.

    Raises:
        DataError: the input is damaged, or the output cannot be written; the message counts the lines written.
    """
    from tqdm import tqdm

    kind = request.output_format
    format_line = partial(lexicon_lines, kind) if kind in LEXICONS else FORMATS[kind]
    total, counts = reader.count(), Counter()
    if total is not None and writer.done > total:
        raise DataError(f"{writer.path}.part has {writer.done} lines, the input {total}: not its output")
    if reader.path is None and sys.stdin is not None and sys.stdin.isatty():
        window = 1
    with tqdm(
        total=total, initial=writer.done, unit=" lines", desc="translating", disable=None if progress else True
    ) as bar:
        try:
            read = writer.done
            for sources in windows(islice(reader, writer.done, None), window):
                if kind in LEXICONS:  # before the work, not after it
                    for number, source in enumerate(sources, start=read + 1):
                        require_entry(kind, source, where=f"line {number}: ")
                read += len(sources)
                known = [request.known(source) for source in sources] if request.lexicon else [[]] * len(sources)
                asked = ["" if found else source for source, found in zip(sources, known, strict=True)]
                encoded = encode_sources(tokenizer, asked, request.max_source_length)
                counts += encoded.counts()
                lines = []
                guesses = request.hypotheses(model, tokenizer, encoded)
                for source, found, guessed, length in zip(sources, known, guesses, encoded.lengths, strict=True):
                    hypotheses = found or (guessed if length else [])  # a source without text has none
                    fields = [request.fields(tokenizer, source, hypothesis) for hypothesis in hypotheses]
                    line = format_line(source, fields)
                    lines += [part for part in line.split("\n") if part] if kind in LEXICONS else [line]
                writer.write(lines)
                bar.update(len(sources))
        except DataError as error:
            raise DataError(f"{error}. {writer.done + writer.written} lines were written") from None
    return counts


def identity(
    options: Mapping[str, Any],
    reader: LineReader | DatasetReader,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ensemble: Sequence[PreTrainedModel] = (),
) -> dict[str, Any]:
    """What the lines depend on: `options` by name, files and models by their content (see `LineWriter`)."""
    options = {name: value for name, value in options.items() if name not in NOT_CONTENT}
    files = {
        name: content_hash([Path(path)])
        for name in ("shortlist", "replace_unknown", "lexicon")
        if (path := options[name])
    }
    return {
        **options,
        **files,
        "input": reader.fingerprint(),
        "model": model_hash(model),
        "tokenizer": tokenizer_hash(tokenizer),
        "ensemble": [model_hash(member) for member in ensemble],
    }
