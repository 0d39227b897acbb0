"""Shows where a model fails: `python scripts/error_analysis.py runs/demo [runs/other ...] --worst 10`.

Prints a table of systems (sentences with untranslated and repeated words, too short, too long, empty; entropy of the
attention and how much of the source it covers) and the worst sentences of each. --output_file writes every sentence as
JSON lines. The test set is the run's own unless data options name another; scripts/report.py shows the same as a page.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_rnn_seq2seq import command_line

if TYPE_CHECKING:
    from hf_rnn_seq2seq.evaluation.error_analysis import AnalyzedSystem
    from hf_rnn_seq2seq.evaluation.test_set import TestSet


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.systems_parser(__doc__)
    parser.add_argument("--worst", type=command_line.at_least(0), default=5, help="sentences to print (default: 5)")
    parser.add_argument("--by", choices=("chrf", "bleu"), default="chrf", help="what is worst (default: chrf)")
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", metavar="FILE", help="write every sentence with its measures as JSON lines")
    return command_line.parse_systems(parser, argv)


def print_sentences(system: "AnalyzedSystem", test_set: "TestSet", numbers: Sequence[int]) -> None:
    """Prints sentences by their numbers, with their measures."""
    print(f"\n{system.name}: the worst {len(numbers)}")
    for number in numbers:
        report = system.reports[number]
        facts = [f"chrF {report.chrf:.1f}", f"BLEU {report.bleu:.1f}", *report.errors]
        if report.entropy is not None:
            facts.append(f"entropy {report.entropy:.2f}, coverage {report.coverage or 0:.2f}")
        print(f"\n  {number + 1}: {', '.join(facts)}")
        for label, text in (
            ("source", test_set.sources[number]),
            ("translation", system.hypotheses[number].text),
            ("reference", system.references[number]),
            ("untranslated", ", ".join(report.untranslated)),
            ("repeated", ", ".join(report.repeated)),
            ("unread", ", ".join(report.unread)),
        ):
            if text or label == "translation":
                print(f"  {label:<13} {text}")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    from hf_rnn_seq2seq.evaluation.error_analysis import analyze_systems, sentence_rows, summary_table, worst
    from hf_rnn_seq2seq.evaluation.results import format_table, notes
    from hf_rnn_seq2seq.files import check_output_file, write_atomically

    if arguments.output_file:
        check_output_file(arguments.output_file, "output_file")
    chosen, options = command_line.data_options(arguments), command_line.analysis_options(arguments)
    test_set, systems = analyze_systems(arguments.models, chosen, **options)
    print(format_table(summary_table({system.name: system.reports for system in systems})))
    for note in notes(test_set, systems):
        print(f"warning: {note}", file=sys.stderr)
    for system in systems:
        if arguments.worst:
            print_sentences(system, test_set, worst(system.reports, arguments.worst, by=arguments.by))
    if arguments.output_file:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sentence_rows(test_set, systems)]
        write_atomically(arguments.output_file, "".join(lines))
    return 0
