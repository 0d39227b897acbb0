"""Say where a model fails: `python scripts/error_analysis.py runs/demo [runs/other ...] --worst 10`.

Prints a table of systems (sentences with untranslated and repeated words, too short, too long, empty; entropy of the
attention and how much of the source it covers) and the worst sentences of each. --output writes every sentence as JSON
lines. The test set is the run's own unless data options name another; scripts/report.py shows the same in a browser.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.systems_parser(__doc__)
    parser.add_argument("--worst", type=command_line.at_least(0), default=5, help="sentences to print (default: 5)")
    parser.add_argument("--by", choices=("chrf", "bleu"), default="chrf", help="what is worst (default: chrf)")
    parser.add_argument("--output", metavar="FILE", help="write every sentence with its measures as JSON lines")
    return command_line.parse_systems(parser, argv)


def show(system: Any, test_set: Any, numbers: Sequence[int]) -> None:
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
            ("reference", test_set.references[number]),
            ("untranslated", ", ".join(report.untranslated)),
            ("repeated", ", ".join(report.repeated)),
            ("unread", ", ".join(report.unread)),
        ):
            if text or label == "translation":
                print(f"  {label:<13} {text}")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.quiet_libraries()
    from hf_rnn_seq2seq.evaluation import error_analysis
    from hf_rnn_seq2seq.evaluation import results as reporting
    from hf_rnn_seq2seq.files import write_atomically

    if arguments.output and not Path(arguments.output).resolve().parent.is_dir():
        raise ValueError(f"--output {arguments.output!r}: its folder does not exist")
    chosen, options = command_line.data_options(arguments), command_line.analysis_options(arguments)
    test_set, systems = error_analysis.analyze_systems(arguments.models, chosen, **options)
    print(reporting.format_table(error_analysis.summary_table({system.name: system.reports for system in systems})))
    for note in reporting.notes(test_set, systems):
        print(note)
    for system in systems:
        if arguments.worst:
            show(system, test_set, error_analysis.worst(system.reports, arguments.worst, by=arguments.by))
    if arguments.output:
        rows = []
        for system in systems:
            truncated, unknown = {*system.encoded.truncated}, {*system.encoded.unknown}
            texts = zip(test_set.sources, test_set.references, system.hypotheses, system.reports, strict=True)
            for number, (source, reference, found, report) in enumerate(texts):
                row = {"system": system.name, "sentence": number, "source": source, "reference": reference}
                row |= {"truncated": number in truncated, "unknown": number in unknown}
                rows.append(row | {"translation": found.text} | error_analysis.as_dict(report))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_atomically(arguments.output, text)
    return 0


if __name__ == "__main__":
    command_line.run(main)
