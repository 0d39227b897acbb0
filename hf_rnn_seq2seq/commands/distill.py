"""Translate a training corpus by a teacher: `python scripts/distill.py TEACHER --output_file FILE.tsv`.

    python scripts/distill.py runs/teacher --num_beams 5 --output_file distilled.tsv
    accelerate launch scripts/train.py RECIPE.yaml --train_file distilled.tsv --output_dir runs/student

Knowledge distillation at sequence level (Kim and Rush 2016): the student learns the output of the teacher's beam
search, which is more regular than human translations. TEACHER is a directory that training wrote, or any
sequence-to-sequence model of the Hub; several directories are an ensemble of models with one vocabulary. Without data
options the corpus is the teacher's training split. --unlabeled_file FILE adds sources without targets, one a line.
--interpolate N takes, of the N best hypotheses, the one closest to the reference, where there is one.

The table keeps the order, the sources and the column names of the corpus, so that the same options read it. It has no
features: a teacher of features is given one combination with --source_prefix, and its student none. The output file
appears when it is complete; --resume continues an interrupted one. The languages of a multilingual teacher are those
that its saved tokenizer and generation config name.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("teachers", nargs="+", metavar="TEACHER", help="directory, or user/name on the Hub")
    parser.add_argument("--output_file", required=True, metavar="FILE.tsv", help="it appears when it is complete")
    parser.add_argument("--resume", action="store_true", help="continue the interrupted OUTPUT_FILE.part")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT_FILE if it exists")
    parser.add_argument(
        "--interpolate", type=command_line.at_least(2), metavar="N", help="of the N best, the closest to the reference"
    )
    parser.add_argument("--unlabeled_file", metavar="FILE", help="further sources, one a line (.jsonl, .gz)")
    parser.add_argument("--source_prefix", default="", help="text before every source, such as a task of T5")
    command_line.add_batch_options(parser)
    command_line.add_generation_options(parser)
    command_line.add_data_options(parser, training=True)
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    if not arguments.output_file.endswith(".tsv"):
        parser.error(f"--output_file {arguments.output_file!r}: must end in .tsv, so that train.py reads it as a table")
    return arguments


def identity(
    arguments: argparse.Namespace,
    fingerprint: list[str | None],
    teachers: Sequence["PreTrainedModel"],
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Any]:
    """Everything that the rows depend on; an interrupted output made with other values is not continued."""
    from hf_rnn_seq2seq.generation.lines import NOT_CONTENT
    from hf_rnn_seq2seq.run_directory import model_hash, tokenizer_hash

    given = {name: value for name, value in vars(arguments).items() if name not in NOT_CONTENT}
    given |= {"corpus": fingerprint, "tokenizer": tokenizer_hash(tokenizer)}
    return given | {"teachers": [model_hash(teacher) for teacher in teachers]}


def load_teacher(
    arguments: argparse.Namespace, counts: Counter[str]
) -> tuple[Callable[..., list[str]], list["PreTrainedModel"], "PreTrainedTokenizerBase"]:
    """(sources, references) -> targets, by the teacher or the ensemble; the models; their tokenizer.

    `counts` counts the sources that were truncated or had unknown tokens.
    """
    import torch

    from hf_rnn_seq2seq.run_directory import load_models
    from hf_rnn_seq2seq.training.distillation import distilled

    model, tokenizer, others = load_models(arguments.teachers, device=arguments.device, dtype=arguments.dtype)
    options = command_line.generation_options(arguments)
    options |= {name: getattr(arguments, name) for name in ("batch_size", "max_tokens", "max_source_length")}
    options["workers"] = torch.get_num_threads()
    options |= {"ensemble": others} if others else {}
    options |= {"interpolate": arguments.interpolate or 0, "source_prefix": arguments.source_prefix, "counts": counts}
    return partial(distilled, model, tokenizer, **options), [model, *others], tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from tqdm import tqdm

    from hf_rnn_seq2seq.data.arguments import DataArguments
    from hf_rnn_seq2seq.data.corpus import load_corpus
    from hf_rnn_seq2seq.generation.encoding import source_problems
    from hf_rnn_seq2seq.generation.lines import LineReader, LineWriter
    from hf_rnn_seq2seq.run_directory import members
    from hf_rnn_seq2seq.training.distillation import (
        column_names,
        column_places,
        corpus_options,
        with_unlabeled,
        write_distilled,
    )

    command_line.load_libraries()
    given = command_line.data_options(arguments, training=True)
    chosen = corpus_options(given, members(arguments.teachers[0])[0], arguments.source_prefix)
    corpus = load_corpus(DataArguments(**chosen), splits=("train",))
    if "train" not in corpus.splits:
        raise DataError(f"train split: the data has none, it has {', '.join(corpus.splits)}; choose another data set")
    rows, header = corpus.splits["train"], column_names(chosen, corpus.description)
    labeled, fingerprint = len(rows), [corpus.description.get("fingerprint")]
    if arguments.unlabeled_file is not None:
        reader = LineReader(arguments.unlabeled_file)
        rows = with_unlabeled(rows, reader, arguments.unlabeled_file)
        fingerprint.append(reader.fingerprint())
        for warning in reader.warnings():
            print(f"warning: {warning}", file=sys.stderr)
    counts: Counter[str] = Counter()
    teach, teachers, tokenizer = load_teacher(arguments, counts)
    writing = {"resume": arguments.resume, "overwrite": arguments.overwrite}
    writing["identity"] = identity(arguments, fingerprint, teachers, tokenizer)
    with (
        LineWriter(arguments.output_file, **writing) as writer,
        tqdm(total=len(rows), unit=" rows", desc="distilling", disable=arguments.disable_tqdm or None) as bar,
    ):
        for done in write_distilled(writer, header, column_places(chosen, header), rows, teach, arguments.window):
            bar.update(done - bar.n)
    for problem in source_problems(counts):
        print(f"warning: {problem}", file=sys.stderr)
    further = f" and {len(rows) - labeled} unlabeled sources" if len(rows) > labeled else ""
    print(f"{arguments.output_file}: {labeled} rows{further}; {corpus.left_out('train')}", file=sys.stderr)
    return 0
