"""Score given translations: `python scripts/score.py runs/demo pairs.tsv > scores.tsv`.

The input holds a source and its translation on each line, separated by a tab (`-` is standard input); or --targets
names a second file with the translations. A line of output has the log-probability (natural, summed over the target's
tokens with its end), the number of tokens, and the perplexity; --output_format jsonl adds each token's share. The mean
loss per token and the perplexity of the whole file, the model's own on these pairs, go to standard error.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
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


def pairs(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """(source, translation) line by line."""
    from hf_rnn_seq2seq.line_streams import LineReader

    reader = LineReader(None if arguments.sources == "-" else arguments.sources, pairs=arguments.targets is None)
    if arguments.targets is None:
        for number, line in enumerate(reader, start=1):
            source, tab, target = line.partition("\t")
            if not tab:
                raise ValueError(f"{arguments.sources}: line {number} has no tab between source and translation")
            yield source, target
        return
    for number, pair in enumerate(zip_longest(reader, LineReader(arguments.targets)), start=1):
        if None in pair:
            shorter = arguments.sources if pair[0] is None else arguments.targets
            raise ValueError(f"{shorter}: ends before line {number}, where the other file goes on")
        yield pair


def as_line(score: Any, output_format: str) -> str:
    if output_format == "text":
        return f"{score.log_probability:.6f}\t{score.tokens}\t{score.perplexity:.4f}"
    row = {"log_probability": score.log_probability, "tokens": score.tokens, "perplexity": score.perplexity}
    return json.dumps(row | {"per_token": list(score.per_token)})


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.line_streams import LineReader

    for path in filter(None, (arguments.sources if arguments.sources != "-" else None, arguments.targets)):
        LineReader(path, pairs=arguments.targets is None)
    command_line.quiet_libraries()
    from hf_rnn_seq2seq.run_directory import load_checkpoint
    from hf_rnn_seq2seq.scoring import Score, score_texts, summarise

    model, tokenizer = load_checkpoint(arguments.model, device=arguments.device, dtype=arguments.dtype)
    total: list[Any] = []
    lines = pairs(arguments)
    while window := list(islice(lines, arguments.window)):
        sources, targets = map(list, zip(*window, strict=True))
        scores = score_texts(model, tokenizer, sources, targets, batch_size=arguments.batch_size)
        for score in scores:
            print(as_line(score, arguments.output_format))
        # One entry a window: memory stays flat.
        total.append(Score(sum(s.log_probability for s in scores), sum(s.tokens for s in scores), ()))
    summary = summarise(total)
    print(
        f"loss {summary['loss']:.6f}  perplexity {summary['perplexity']:.4f}  {summary['tokens']} tokens",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    command_line.run(main)
