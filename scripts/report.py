"""A test set as one HTML page: `python scripts/report.py runs/demo [runs/other ...] --output report.html`.

The page needs no network. Hover over a word, or move to it with the keyboard, to see what the model attended to; sort
and filter by score, length and error; several systems stand side by side on the same sentences. The test set is the
run's own unless data options name another.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line

DATA = ("dataset_name", "dataset_config_name", "test_file", "source_lang", "target_lang", "source_column")
DATA += ("target_column", "max_predict_samples", "data_seed")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="DIR", help="directories that training wrote")
    parser.add_argument("--output", required=True, metavar="FILE", help="page to write: .html")
    parser.add_argument("--title", default="", help="heading of the page (default: the languages)")
    parser.add_argument("--tokens", action="store_true", help="attention between tokens, not between whole words")
    parser.add_argument("--batch_size", type=command_line.at_least(1), default=64, help="sentences (default: 64)")
    parser.add_argument("--no_progress", action="store_true", help="no progress bar")
    command_line.add_generation_options(parser)
    command_line.add_data_options(parser)
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    if Path(arguments.output).suffix.lower() not in (".html", ".htm"):
        parser.error(f"--output {arguments.output!r}: the suffix must be .html")
    if not Path(arguments.output).resolve().parent.is_dir():
        parser.error(f"--output {arguments.output!r}: its folder does not exist")
    if arguments.test_file and arguments.split != "test":
        parser.error(f"--test_file is the test split; it does not go with --split {arguments.split}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.quiet_libraries()
    from hf_rnn_seq2seq.error_analysis import analyse_systems
    from hf_rnn_seq2seq.html_report import render_report
    from hf_rnn_seq2seq.run_directory import write_atomically

    test_set, systems = analyse_systems(
        arguments.models,
        {name: getattr(arguments, name) for name in DATA},
        split=arguments.split,
        device=arguments.device,
        dtype=arguments.dtype,
        batch_size=arguments.batch_size,
        progress=not arguments.no_progress,
        **command_line.generation_options(arguments),
    )
    page = render_report(test_set, systems, title=arguments.title, words=not arguments.tokens)
    write_atomically(arguments.output, page)
    print(f"{arguments.output}: {len(test_set.sources):,} sentences, {len(page.encode()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    command_line.run(main)
