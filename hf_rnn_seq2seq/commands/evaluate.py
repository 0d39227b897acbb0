"""Translates a test set and scores it: `python scripts/evaluate_bleu.py runs/demo [runs/other ...]`.

Without data options the test set is the run's own, by the options in its recipe.yaml; its scores, signatures and sample
translations are then merged into DIR/summary.json. Scores on other data are only printed (and written by --json). A
directory that is not a run needs data options: --dataset_name or --test_file. Classifiers are scored by accuracy and
macro F1, beside a bag of words and bigrams that was trained on the same texts; language models by the bits that they
need for a character, with the state carried over the whole text.

If the data has word alignments (cldr, or --alignment_column), the share of aligned words that attend most to the word
they come from is printed too.

--scores chooses metrics that need no network; --metric NAME_OR_PATH adds any metric that `evaluate.load` can load.
Several directories are compared on one test set; --paired bs tests their differences to the first (paired bootstrap;
ar: approximate randomization).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.evaluation.scores import METRICS, OF_SACREBLEU

# Options that only translations have.
TRANSLATION_OPTIONS = ("scores", "metric", "bootstrap", "paired", "paired_samples", "translations", "plot_by_length")
TRANSLATION_OPTIONS += ("alignment_column", "max_source_length", "search", *command_line.GENERATION)
# Models that have figures of their own, by their kind.
APART = {"SequenceClassification": "classification", "CausalLM": "text", "Handwriting": "handwriting"}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("models", nargs="+", metavar="DIR", help="directories that training wrote")
    parser.add_argument(
        "--scores",
        nargs="+",
        metavar="NAME",
        choices=tuple(METRICS),
        help="(default: bleu and chrf, for languages such as Korean char_bleu too; exact_match and chrf, or the error "
        "rates, where these chose the run's best checkpoint)",
    )
    parser.add_argument("--metric", action="append", default=[], help="name or path for evaluate.load; may be repeated")
    parser.add_argument("--bootstrap", type=command_line.at_least(2), metavar="N", help="95 %% intervals, N resamples")
    parser.add_argument("--paired", choices=("bs", "ar"), help="significance of the differences to the first system")
    parser.add_argument("--paired_samples", type=command_line.at_least(1), help="(default: sacrebleu's)")
    parser.add_argument("--json", metavar="FILE", help="write all results")
    parser.add_argument("--translations", metavar="FILE", help="write source, reference and translations as JSON lines")
    parser.add_argument("--plot_by_length", metavar="FILE", help="draw BLEU by source length (.png, .svg, .pdf)")
    parser.add_argument(
        "--summary", action=argparse.BooleanOptionalAction, help="describe the run (default: with one DIR)"
    )
    parser.add_argument("--alignment_column", metavar="NAME", help="column with word alignments, for the attention")
    parser.add_argument(
        "--dynamic_learning_rate",
        type=command_line.finite(0.0),
        metavar="X",
        help="score a text a second time, by a model that learns what it has scored (Graves 2013, section 3)",
    )
    parser.add_argument("--batch_size", type=command_line.at_least(1), default=64, help="sentences (default: 64)")
    parser.add_argument("--max_source_length", type=command_line.at_least(2), help="tokens a source is cut at")
    command_line.add_search_option(parser)
    command_line.add_generation_options(parser)
    command_line.add_data_options(parser)
    command_line.add_model_options(parser)
    arguments = command_line.parse_systems(parser, argv)
    if arguments.paired and len(arguments.models) < 2:
        parser.error("--paired compares systems; give at least 2 directories")
    if arguments.paired_samples and not arguments.paired:
        parser.error(f"--paired_samples {arguments.paired_samples}: needs --paired; leave it out")
    return arguments


def check_before_work(arguments: argparse.Namespace) -> None:
    """Finds wrong options before minutes of translation."""
    from hf_rnn_seq2seq.evaluation.scores import external_metric
    from hf_rnn_seq2seq.files import check_output_file
    from hf_rnn_seq2seq.run_directory import read_summary
    from hf_rnn_seq2seq.visualization.figure import check_output

    for directory in arguments.models:
        read_summary(directory)
    if arguments.paired and (wrong := sorted(set(arguments.scores or ()) - set(OF_SACREBLEU))):
        raise ValueError(f"--paired: no paired test of {', '.join(wrong)}; choose from {', '.join(OF_SACREBLEU)}")
    check_output(arguments.plot_by_length, "plot_by_length")
    for option in ("json", "translations"):
        if path := getattr(arguments, option):
            check_output_file(path, option)
    for name in arguments.metric:
        external_metric(name)


def refuse_options_of_translations(arguments: argparse.Namespace, why: str) -> None:
    """Raises ValueError for the first option that only translations have."""
    for name in TRANSLATION_OPTIONS:
        if getattr(arguments, name) not in (None, []):
            raise ValueError(f"--{name}: {why}")


def write_json(path: str | None, facts: list[dict[str, Any]], details: Mapping[str, Any] = {}) -> None:
    """Writes what --json asks for: the facts of each system, and what is common to all."""
    from hf_rnn_seq2seq.files import write_atomically

    if path:
        write_atomically(path, json.dumps({"systems": facts, **details}, indent=2, ensure_ascii=False) + "\n")


def print_details(arguments: argparse.Namespace, systems: list[Any]) -> dict[str, Any]:
    """Prints tables and signatures; returns what --json writes in addition to the systems."""
    from hf_rnn_seq2seq.evaluation.results import format_table, score_table
    from hf_rnn_seq2seq.evaluation.scores import external_score
    from hf_rnn_seq2seq.evaluation.significance import paired_table, paired_test

    print(score_table(systems))
    for key, value in systems[0].scores.items():
        if key.endswith("_signature"):
            print(f"{key.removesuffix('_signature')}: {value}")
    details: dict[str, Any] = {}
    references = systems[0].test_set.scored
    for name in arguments.metric:
        scores = {system.name: external_score(name, system.hypotheses, references) for system in systems}
        details.setdefault("metric", {})[name] = scores
        for system_name, numbers in scores.items():
            print(f"{name}: {system_name}: " + ", ".join(f"{key} {value:.4f}" for key, value in numbers.items()))
    if arguments.paired:
        hypotheses = {system.name: system.hypotheses for system in systems}
        names, samples = arguments.scores or ("bleu", "chrf"), arguments.paired_samples or 0
        rows = paired_test(hypotheses, systems[0].test_set.references, names, test=arguments.paired, n_samples=samples)
        details["paired"] = [vars(row) for row in rows]
        print("\n" + format_table(paired_table(rows)) + f"\n{rows[0].metric}: {rows[0].signature}")
    return details


def write_results(arguments: argparse.Namespace, systems: list[Any], details: dict[str, Any]) -> None:
    from hf_rnn_seq2seq.evaluation.length_bins import score_by_length
    from hf_rnn_seq2seq.evaluation.results import SCORES, summary_facts, translation_rows
    from hf_rnn_seq2seq.files import write_atomically
    from hf_rnn_seq2seq.run_directory import update_summary
    from hf_rnn_seq2seq.visualization.learning_curve import plot_score_by_length

    for system in systems:
        if system.test_set.own:
            update_summary(system.directory, summary_facts(system), forget=SCORES)
    write_json(arguments.json, [{"system": system.name} | summary_facts(system) for system in systems], details)
    if arguments.translations:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in translation_rows(systems)]
        write_atomically(arguments.translations, "".join(lines))
    if arguments.plot_by_length:
        sources, references = systems[0].test_set.sources, systems[0].test_set.scored
        bins = {system.name: score_by_length(sources, system.hypotheses, references) for system in systems}
        plot_score_by_length(bins, arguments.plot_by_length)


def evaluate_others(arguments: argparse.Namespace, task: str) -> int:
    """Prints the figures of models that translate nothing."""
    from hf_rnn_seq2seq.run_directory import update_summary

    if task == "text":
        from hf_rnn_seq2seq.evaluation.held_out_text import evaluate_language_model as evaluate

        figures = "a language model has bits per character"
        named = ("split", "device", "dtype", "dynamic_learning_rate")
    else:
        from hf_rnn_seq2seq.evaluation.classification import evaluate_classifier as evaluate

        figures, named = "a classifier has accuracy and macro F1", ("split", "device", "dtype", "batch_size")
    refuse_options_of_translations(arguments, f"is for translations; {figures}")
    found = []
    for directory in arguments.models:
        options = {name: getattr(arguments, name) for name in named}
        found.append(evaluate(directory, command_line.data_options(arguments), **options))
        print("\n".join(found[-1].lines()), flush=True)
        if found[-1].own:
            update_summary(directory, found[-1].facts())
    write_json(arguments.json, [{"system": each.directory} | each.facts() for each in found])
    return 0


def evaluate_handwriting(arguments: argparse.Namespace) -> int:
    """Prints the nats of a test set's points, and how many texts the networks write to their end."""
    from hf_rnn_seq2seq.evaluation.handwriting import measure_handwriting
    from hf_rnn_seq2seq.evaluation.results import format_table
    from hf_rnn_seq2seq.run_directory import update_summary

    refuse_options_of_translations(
        arguments, "has no effect on handwriting, whose points are measured in nats; leave it out"
    )
    chosen = {key: value for key, value in command_line.data_options(arguments).items() if value is not None}
    names = ("split", "device", "dtype", "batch_size")
    options = {name: getattr(arguments, name) for name in names}
    facts, table = [], [("system", "nats a row", "nats a point", "rows", "points", "finished (%)")]
    for directory in arguments.models:
        result = measure_handwriting(directory, chosen, **options)
        numbers = result.numbers
        facts.append({"system": directory, "split": result.split, **numbers})
        finished = f"{numbers['finished']:.1f}" if "finished" in numbers else ""
        shown = (f"{numbers['nats_per_row']:.2f}", f"{numbers['nats_per_point']:.4f}", f"{numbers['rows']}")
        table.append((directory, *shown, f"{numbers['points']}", finished))
        if result.own:
            update_summary(directory, {"split": result.split, **numbers})
    print(format_table(table))
    write_json(arguments.json, facts)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    import torch

    from hf_rnn_seq2seq.evaluation.results import SCORES, evaluate_systems, run_summary, summary_facts
    from hf_rnn_seq2seq.evaluation.scores import why_blind
    from hf_rnn_seq2seq.evaluation.test_set import default_metrics
    from hf_rnn_seq2seq.run_directory import KINDS, members, model_kind, read_summary

    check_before_work(arguments)
    kinds = [model_kind(members(directory)[0]) for directory in arguments.models]
    task = APART.get(kinds[0])
    if other := next((place for place, one in enumerate(kinds) if one != kinds[0]), None):
        does = f"this model {KINDS[kinds[other]][0]}, the first {KINDS[kinds[0]][0]}"
        raise ValueError(f"{arguments.models[other]}: {does}; evaluate them apart")
    if arguments.dynamic_learning_rate is not None and task != "text":
        raise ValueError("--dynamic_learning_rate: is for language models (--task text); leave it out")
    if task == "handwriting":
        return evaluate_handwriting(arguments)
    if task is not None:
        return evaluate_others(arguments, task)
    names = ("split", "device", "dtype", "batch_size", "max_source_length")
    systems = evaluate_systems(
        arguments.models,
        command_line.data_options(arguments) | {"alignment_column": arguments.alignment_column},
        metrics=arguments.scores or (),
        n_bootstrap=arguments.bootstrap or 0,
        paired=arguments.paired is not None,
        find_search=partial(command_line.find_search, arguments.search),
        workers=torch.get_num_threads(),
        **{name: getattr(arguments, name) for name in names},
        **command_line.generation_options(arguments),
    )
    test_set = systems[0].test_set
    for metric in arguments.scores or default_metrics(test_set):
        if reason := why_blind(metric, test_set.scored):
            print(f"warning: {reason}", file=sys.stderr)
    write_results(arguments, systems, print_details(arguments, systems))
    if arguments.summary or (arguments.summary is None and len(systems) == 1):
        for system in systems:
            earlier = read_summary(system.directory).items()
            summary = {name: value for name, value in earlier if name not in SCORES} | summary_facts(system)
            config = json.loads((Path(members(system.directory)[0]) / "config.json").read_text(encoding="utf-8"))
            print("\n" + run_summary(system.directory, summary, config))
    return 0
