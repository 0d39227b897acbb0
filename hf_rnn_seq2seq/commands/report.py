"""Write a test set as an HTML page: `python scripts/report.py runs/demo [runs/other ...] --output_file report.html`.

The page needs no network. Hover over a word, or move to it with the keyboard, to see its attention; sort and filter by
score, length and error; compare several systems on the same sentences. The test set is that of the run unless data
options name another.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.systems_parser(__doc__)
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", required=True, metavar="FILE", help="page to write: .html")
    parser.add_argument("--title", default="", help="heading of the page (default: the languages)")
    parser.add_argument("--tokens", action="store_true", help="attention between tokens, not between whole words")
    arguments = command_line.parse_systems(parser, argv)
    if Path(arguments.output_file).suffix.lower() not in (".html", ".htm"):
        parser.error(f"--output_file {arguments.output_file!r}: the suffix must be .html")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    from hf_rnn_seq2seq.evaluation.error_analysis import analyze_systems
    from hf_rnn_seq2seq.evaluation.results import notes
    from hf_rnn_seq2seq.files import check_output_file, write_atomically
    from hf_rnn_seq2seq.visualization.html_report import render_report

    check_output_file(arguments.output_file, "output_file")
    data_options, options = command_line.data_options(arguments), command_line.analysis_options(arguments)
    test_set, systems = analyze_systems(arguments.models, data_options, **options)
    page = render_report(test_set, systems, title=arguments.title, words=not arguments.tokens)
    write_atomically(arguments.output_file, page)
    print(f"{arguments.output_file}: {len(test_set.sources):,} sentences, {len(page.encode()) / 1e6:.1f} MB")
    for note in notes(test_set, systems):
        print(f"warning: {note}", file=sys.stderr)
    return 0
