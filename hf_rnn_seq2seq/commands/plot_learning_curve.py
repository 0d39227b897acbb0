"""Draw learning curves of runs: `python scripts/plot_learning_curve.py runs/demo [runs/other] --output_file curve.png`.

One chart for each quantity in the logs (loss, perplexity, BLEU, learning rate, tokens per second), one line per run.
"""

import argparse
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or their train_log.jsonl")
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", required=True, help="picture to write: .png, .svg or .pdf")
    parser.add_argument("--title", default="", help="text above the charts")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.visualization.figure import check_output
    from hf_rnn_seq2seq.visualization.learning_curve import plot_learning_curve

    check_output(arguments.output_file, "output_file")
    plot_learning_curve(arguments.runs, arguments.output_file, title=arguments.title)
    return 0
