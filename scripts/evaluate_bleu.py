"""Translate a test set and score it: `python scripts/evaluate_bleu.py runs/demo [runs/other ...]`.

Without data options the test set is the run's own, by the options in its recipe.yaml; its scores, signatures and sample
translations are then merged into DIR/summary.json. Scores on other data are printed (and written by --json) only. A
directory that is not a run needs data options: --dataset_name or --test_file.

Where the data says which words stand for each other (cldr, or --alignment_column), the result also says how many of
them attend most to the word they come from.

BLEU, chrF and the others are sacrebleu's, by metrics of the `evaluate` library that need no network (--scores).
--metric NAME_OR_PATH adds any metric that `evaluate.load` can load. Several directories are compared on one test set;
--paired bs tests their differences against the first (paired bootstrap; ar: approximate randomisation).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.evaluation.metrics import METRICS


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="DIR", help="directories that training wrote")
    parser.add_argument(
        "--scores", nargs="+", metavar="NAME", choices=tuple(METRICS), help=f"any of {', '.join(METRICS)}"
    )
    parser.add_argument("--metric", action="append", default=[], help="name or path for evaluate.load; may be repeated")
    parser.add_argument("--bootstrap", type=command_line.at_least(2), metavar="N", help="95 %% intervals, N resamples")
    parser.add_argument("--paired", choices=("bs", "ar"), help="significance of the differences to the first system")
    parser.add_argument("--paired_samples", type=command_line.at_least(1), default=0, help="(default: sacrebleu's)")
    parser.add_argument("--json", metavar="FILE", help="write all results")
    parser.add_argument("--translations", metavar="FILE", help="write source, reference and translations as JSON lines")
    parser.add_argument("--plot_by_length", metavar="FILE", help="draw BLEU by source length (.png, .svg, .pdf)")
    parser.add_argument(
        "--summary", action=argparse.BooleanOptionalAction, help="describe the run (default: with one DIR)"
    )
    parser.add_argument("--alignment_column", metavar="NAME", help="column with word alignments, for the attention")
    parser.add_argument("--batch_size", type=command_line.at_least(1), default=64, help="sentences (default: 64)")
    parser.add_argument("--max_source_length", type=command_line.at_least(2), help="tokens a source is cut at")
    command_line.add_search_option(parser)
    command_line.add_generation_options(parser)
    command_line.add_data_options(parser)
    command_line.add_model_options(parser)
    arguments = command_line.parse_systems(parser, argv)
    if arguments.paired and len(arguments.models) < 2:
        parser.error("--paired compares systems; give at least 2 directories")
    return arguments


def check_before_work(arguments: argparse.Namespace) -> None:
    """What can be wrong is found before minutes of translation."""
    from hf_rnn_seq2seq.evaluation.metrics import load_metric
    from hf_rnn_seq2seq.evaluation.significance import PAIRED_METRICS, external_metric
    from hf_rnn_seq2seq.visualization.figure import check_output

    for name in arguments.scores or ():
        load_metric(name)
    if arguments.paired and (wrong := sorted(set(arguments.scores or ()) - set(PAIRED_METRICS))):
        raise ValueError(f"--paired: no paired test of {', '.join(wrong)}; choose from {', '.join(PAIRED_METRICS)}")
    if arguments.plot_by_length:
        check_output(arguments.plot_by_length)
    for path in filter(None, (arguments.json, arguments.translations)):
        if not Path(path).resolve().parent.is_dir():
            raise ValueError(f"{path!r}: its folder does not exist")
    for name in arguments.metric:
        external_metric(name)


def evaluate_all(arguments: argparse.Namespace) -> list[Any]:
    from hf_rnn_seq2seq.evaluation import results as reporting
    from hf_rnn_seq2seq.evaluation.metrics import why_blind
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    chosen = command_line.data_options(arguments) | {"alignment_column": arguments.alignment_column}
    systems: list[Any] = []
    for directory in arguments.models:
        model, tokenizer = load_checkpoint(directory, device=arguments.device, dtype=arguments.dtype)
        test_set = reporting.read_test_set(directory, chosen, arguments.split)
        if systems and test_set.references != systems[0].test_set.references:
            raise ValueError(f"{directory}: its test set is not that of {arguments.models[0]}; name one for both")
        options = command_line.generation_options(arguments)
        options |= {"batch_size": arguments.batch_size, "max_source_length": arguments.max_source_length}
        options["search"] = command_line.find_search(arguments.search, model)
        name = directory.rstrip("/")
        name += " (again)" if name in [system.name for system in systems] else ""
        system = reporting.translate_test_set(name, directory, test_set, model, tokenizer, **options)
        metrics = arguments.scores or reporting.default_metrics(test_set)
        if not systems:
            for blind in filter(None, (why_blind(metric, test_set.references) for metric in metrics)):
                print(f"warning: {blind}", file=sys.stderr)
        reporting.score_system(system, metrics, arguments.bootstrap or 0)
        reporting.measure_attention(system, model, tokenizer, arguments.batch_size)
        systems.append(system)
    return systems


def print_details(arguments: argparse.Namespace, systems: list[Any]) -> dict[str, Any]:
    """Tables and signatures; returns what --json writes beside the systems."""
    from hf_rnn_seq2seq.evaluation import results as reporting
    from hf_rnn_seq2seq.evaluation import significance as comparison

    print(reporting.score_table(systems))
    scores = systems[0].scores
    for key in (key for key in scores if key.endswith("_signature")):
        print(f"{key.removesuffix('_signature')}: {scores[key]}")
    more: dict[str, Any] = {}
    references = systems[0].test_set.references
    for name in arguments.metric:
        more.setdefault("metric", {})[name] = {
            system.name: comparison.external_score(name, system.hypotheses, references) for system in systems
        }
        for system_name, numbers in more["metric"][name].items():
            print(f"{name}: {system_name}: " + ", ".join(f"{key} {value:.4f}" for key, value in numbers.items()))
    if arguments.paired:
        hypotheses = {system.name: system.hypotheses for system in systems}
        rows = comparison.paired_test(
            hypotheses,
            references,
            arguments.scores or ("bleu", "chrf"),
            test=arguments.paired,
            n_samples=arguments.paired_samples,
        )
        more["paired"] = [vars(row) for row in rows]
        cells = [["system", "metric", "score", "95 % interval", "p"]]
        for row in rows:
            interval = f"{row.mean:.2f} ± {row.interval:.2f}" if row.mean is not None else "-"
            p_value = "baseline" if row.p_value is None else f"{row.p_value:.4f}" + (" *" if row.p_value < 0.05 else "")
            cells.append([row.system, row.metric, f"{row.score:.2f}", interval, p_value])
        print("\n" + reporting.aligned(cells) + f"\n{rows[0].metric}: {rows[0].signature}")
    return more


def write_results(arguments: argparse.Namespace, systems: list[Any], more: dict[str, Any]) -> None:
    from hf_rnn_seq2seq.evaluation import results as reporting
    from hf_rnn_seq2seq.evaluation import significance as comparison
    from hf_rnn_seq2seq.files import write_atomically
    from hf_rnn_seq2seq.run_directory import update_summary
    from hf_rnn_seq2seq.visualization.learning_curve import plot_score_by_length

    for system in systems:
        if system.test_set.own:
            update_summary(system.directory, reporting.summary_facts(system))
    if arguments.json:
        results = [{"system": system.name} | reporting.summary_facts(system) for system in systems]
        write_atomically(arguments.json, json.dumps({"systems": results} | more, indent=2, ensure_ascii=False) + "\n")
    test_set = systems[0].test_set
    if arguments.translations:
        columns = zip(test_set.sources, test_set.references, *(system.hypotheses for system in systems), strict=True)
        rows = [
            {"source": source, "reference": reference}
            | {"translations": dict(zip([system.name for system in systems], texts, strict=True))}
            for source, reference, *texts in columns
        ]
        write_atomically(arguments.translations, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if arguments.plot_by_length:
        bins = {
            system.name: comparison.score_by_length(test_set.sources, system.hypotheses, test_set.references)
            for system in systems
        }
        plot_score_by_length(bins, arguments.plot_by_length)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.quiet_libraries()
    from hf_rnn_seq2seq.evaluation import results as reporting
    from hf_rnn_seq2seq.run_directory import read_summary

    for directory in arguments.models:
        read_summary(directory)
    check_before_work(arguments)
    systems = evaluate_all(arguments)
    more = print_details(arguments, systems)
    write_results(arguments, systems, more)
    if arguments.summary or (arguments.summary is None and len(systems) == 1):
        for system in systems:
            summary = read_summary(system.directory) | reporting.summary_facts(system)
            config = json.loads((Path(system.directory) / "config.json").read_text(encoding="utf-8"))
            print("\n" + reporting.run_summary(system.directory, summary, config))
    return 0


if __name__ == "__main__":
    command_line.run(main)
