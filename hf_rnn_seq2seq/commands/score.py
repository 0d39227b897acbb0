"""Scores given translations: `python scripts/score.py runs/demo pairs.tsv > scores.tsv`.

Each input line has a source and its translation, separated by a tab (`-` is standard input); or --targets names a
second file with the translations. An output line has the log-probability (natural, summed over the target's tokens with
its end), the number of tokens, and the perplexity; --output_format jsonl adds the log-probability of each token. The
mean loss per token and the perplexity of the whole file, which are the model's own, are printed on standard error.

There is one output line for each input line: an empty one (null in JSON lines) if a side is empty. Sources and lines
that cannot be read completely are counted as in translate.py.
"""

import argparse
import sys
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument("sources", help="source<TAB>translation lines, or sources with --targets; - for standard input")
    parser.add_argument("--targets", metavar="FILE", help="the translations, one per line; may be .gz")
    parser.add_argument("--output_format", choices=("text", "jsonl"), default="text", help="of the output lines")
    parser.add_argument("--batch_size", type=command_line.at_least(1), default=64, help="pairs (default: 64)")
    parser.add_argument("--window", type=command_line.at_least(1), default=2048, help="pairs read and sorted at a time")
    command_line.add_model_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    from hf_rnn_seq2seq.data.tokenizer import feature_token_ids
    from hf_rnn_seq2seq.generation.lines import LineWriter
    from hf_rnn_seq2seq.generation.score_lines import PairReader, score_lines
    from hf_rnn_seq2seq.generation.scoring import summarize
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    pairs = PairReader(None if arguments.sources == "-" else arguments.sources, arguments.targets)
    model, tokenizer = load_checkpoint(arguments.model, device=arguments.device, dtype=arguments.dtype)
    pairs.features = bool(feature_token_ids(tokenizer))
    options = {name: getattr(arguments, name) for name in ("output_format", "window", "batch_size")}
    with LineWriter() as writer:
        totals = score_lines(model, tokenizer, pairs, writer, **options)
    for note in (*totals.notes(), *pairs.warnings()):
        print(f"warning: {note}", file=sys.stderr)
    scored = totals.lines - len(totals.empty)
    share = f"{scored} of {totals.lines} lines"
    if not scored:
        print(f"no score: {share} hold a source and a translation", file=sys.stderr)
        return 0
    summary = summarize(totals.scores)
    loss = f"loss {summary['loss']:.6f}  perplexity {summary['perplexity']:.4f}"
    print(f"{loss}  {summary['tokens']} tokens  {share}", file=sys.stderr)
    return 0
