"""Score given translations: `python scripts/score.py runs/demo pairs.tsv > scores.tsv`.

The input holds a source and its translation on each line, separated by a tab (`-` is standard input); or --targets
names a second file with the translations. A line of output has the log-probability (natural, summed over the target's
tokens with its end), the number of tokens, and the perplexity; --output_format jsonl adds each token's share. The mean
loss per token and the perplexity of the whole file, the model's own on these pairs, go to standard error.

There is a line of output for each line of input, always: an empty one (null in JSON lines) where a side is empty. What
cannot be read whole is counted as translate.py counts it.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument("sources", help="source<TAB>translation lines, or sources with --targets; - for standard input")
    parser.add_argument("--targets", metavar="FILE", help="the translations, one a line; may be .gz")
    parser.add_argument("--output_format", choices=("text", "jsonl"), default="text")
    parser.add_argument("--batch_size", type=command_line.at_least(1), default=64, help="pairs (default: 64)")
    parser.add_argument("--window", type=command_line.at_least(1), default=2048, help="pairs sorted and held at a time")
    command_line.add_model_options(parser)
    return parser.parse_args(argv)


def pairs(arguments: argparse.Namespace, readers: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """(source, translation) line by line; a line without a tab has an empty translation."""
    if len(readers) == 1:
        for number, line in enumerate(readers[0], start=1):
            source, tab, target = line.partition("\t")
            if number == 1 and source.strip() and not tab:
                raise ValueError(f"{arguments.sources}: line 1 has no tab between source and translation")
            yield source, target
        return
    for number, pair in enumerate(zip_longest(*readers), start=1):
        if None in pair:
            shorter = arguments.sources if pair[0] is None else arguments.targets
            raise ValueError(f"{shorter}: ends before line {number}, where the other file goes on")
        yield pair


def open_readers(arguments: argparse.Namespace) -> list[Any]:
    """One reader of pairs, or one of each side; files of different length are refused before any work."""
    from hf_rnn_seq2seq.generation.lines import LineReader

    sources = None if arguments.sources == "-" else arguments.sources
    if arguments.targets is None:
        return [LineReader(sources, pairs=True)]
    readers = [LineReader(sources), LineReader(arguments.targets)]
    counts = [reader.count() for reader in readers]
    if None not in counts and counts[0] != counts[1]:
        shorter = readers[counts.index(min(counts))].path
        raise ValueError(f"{shorter}: ends before line {min(counts) + 1}, where the other file goes on")
    return readers


def as_line(score: Any, output_format: str) -> str:
    """A line of output; `score` is None for a pair with an empty side."""
    if output_format == "text":
        return "" if score is None else f"{score.log_probability:.6f}\t{score.tokens}\t{score.perplexity:.4f}"
    if score is None:
        return json.dumps({"log_probability": None, "tokens": 0, "perplexity": None, "per_token": []})
    row = {"log_probability": score.log_probability, "tokens": score.tokens, "perplexity": score.perplexity}
    return json.dumps(row | {"per_token": list(score.per_token)})


def score_window(
    arguments: argparse.Namespace, model: Any, tokenizer: Any, window: Sequence[tuple[str, str]], counts: Counter[str]
) -> list[Any]:
    """The score of each pair, None where a side is empty; `counts` gets those of the sources that were read."""
    from hf_rnn_seq2seq.generation.encoding import encode_sources
    from hf_rnn_seq2seq.generation.scoring import score_texts

    full = [all(text.strip() for text in pair) for pair in window]
    filled = [pair for pair, usable in zip(window, full, strict=True) if usable]
    encoded = encode_sources(tokenizer, [source for source, _ in filled])
    counts.update(encoded.counts())
    targets = [target for _, target in filled]
    scores = iter(score_texts(model, tokenizer, encoded, targets, batch_size=arguments.batch_size))
    return [next(scores) if usable else None for usable in full]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    readers = open_readers(arguments)
    command_line.quiet_libraries()
    from hf_rnn_seq2seq.errors import StreamError
    from hf_rnn_seq2seq.generation.encoding import source_problems
    from hf_rnn_seq2seq.generation.lines import LineWriter, windows
    from hf_rnn_seq2seq.generation.scoring import Score, summarize
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    model, tokenizer = load_checkpoint(arguments.model, device=arguments.device, dtype=arguments.dtype)
    total: list[Any] = []
    counts: Counter[str] = Counter()
    empty: list[int] = []
    with LineWriter() as writer:
        try:
            for window in windows(pairs(arguments, readers), arguments.window):
                scores = score_window(arguments, model, tokenizer, window, counts)
                empty += [number for number, score in enumerate(scores, start=writer.written + 1) if score is None]
                writer.write([as_line(score, arguments.output_format) for score in scores])
                # One entry a window: memory stays flat.
                found = [score for score in scores if score is not None]
                total.append(Score(sum(s.log_probability for s in found), sum(s.tokens for s in found), ()))
        except StreamError as error:
            raise StreamError(f"{error}. {writer.written} lines were written") from None
    notes = source_problems(counts) + [note for reader in readers for note in reader.warnings()]
    if empty:
        notes.append(f"{len(empty)} line(s) have an empty side and no score (first: line {empty[0]})")
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    scored, summary = writer.written - len(empty), summarize(total)
    of = f"{scored} of {writer.written} lines"
    if not scored:
        print(f"no score: {of} hold a source and a translation", file=sys.stderr)
        return 0
    print(
        f"loss {summary['loss']:.6f}  perplexity {summary['perplexity']:.4f}  {summary['tokens']} tokens  {of}",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    command_line.run(main)
