"""Translates line by line: `python scripts/translate.py runs/demo < in.txt > out.txt`.

There is one output line for each input line. Without options a line is what `model.generate()` gives under the
checkpoint's generation config.

  An empty line, or one of white space only, gives an empty line.
  A line of more than --max_source_length tokens (default: the tokenizer's limit) is cut; a warning counts such lines.
  A line that is not UTF-8 is translated with U+FFFD in place of the bytes that cannot be read; a warning counts them.
  A damaged .gz file ends with an error after the lines before the damage; the error counts the lines written.
  In JSON lines a row without the text field gives an empty line; a warning counts them. A row may hold the field in
  its `translation`, whose keys are languages (--source_lang).
  With --dataset_name NAME --split SPLIT each row of a data set is a line; a row without text gives an empty line.

Columns are separated by tabs: translation, then the log-probability with --scores, then the word alignment with
--alignments (`source-target` pairs counted from 0); --n_best N repeats them for N hypotheses, best first.
--output_format jsonl writes one JSON object per line.

For pronunciations: the model is not asked for words that --lexicon FILE contains. --mass 0.9 prints hypotheses until
their probabilities sum to 0.9 (at most --num_beams of them). --output_format cmudict, or another format of --lexicon,
writes a lexicon with a line for each hypothesis. Both take hypotheses in the order of their probability; without them
the order is that of the search, which weighs the length (--length_penalty).

--window lines are read and sorted by length at a time, so memory does not grow with the input:
`python scripts/translate.py runs/demo --input_file in.txt.gz --output_file out.txt`
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.data.lexicon import LEXICONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_rnn_seq2seq.generation.lines import DatasetReader, LineReader
    from hf_rnn_seq2seq.generation.translate_lines import Request

# Options of the model's own search.
VALUES = ("gnmt_alpha", "coverage_penalty", "stop_at_top", "weight_type")
SEARCH_OPTIONS = (*VALUES, "shortlist", "ensemble", "replace_unknown")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", help="directory that training wrote (also with --num_seeds), or user/name on the Hub")
    parser.rename("--input", "--input_file")
    parser.rename("--dataset", "--dataset_name")
    parser.add_argument("--text", help="one line in place of standard input")
    parser.add_argument("--input_file", metavar="FILE", help="file in place of it: text or .jsonl, also .gz")
    parser.add_argument("--dataset_name", metavar="NAME", help="data set in place of lines, as in training")
    parser.add_argument("--dataset_config_name", help="its configuration; for cldr a pair of locales such as en-fr")
    parser.add_argument("--split", help="of --dataset_name (default: test)")
    parser.add_argument("--source_lang", help="key of `translation`, a column of --dataset_name or a field of .jsonl")
    parser.add_argument("--source_column", help="field of .jsonl input, column of --dataset_name (default: source)")
    parser.add_argument("--output_file", help="file in place of standard output; it appears when it is complete")
    parser.add_argument("--resume", action="store_true", help="continue the interrupted OUTPUT_FILE.part")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT_FILE if it exists")
    parser.add_argument(
        "--output_format", choices=("text", "jsonl", *LEXICONS), default="text", help="of the output lines"
    )
    parser.add_argument("--n_best", type=command_line.at_least(1), help="hypotheses a line (default: 1)")
    parser.add_argument(
        "--mass",
        type=command_line.finite(above=0, largest=1),
        metavar="P",
        help="hypotheses until their probabilities sum to P",
    )
    parser.add_argument("--lexicon", metavar="FILE", help="pronunciations to print in place of the model's")
    parser.add_argument("--lexicon_format", choices=LEXICONS, help="of --lexicon (default: cmudict)")
    parser.add_argument("--scores", action="store_true", help="add the log-probability of each sentence")
    parser.add_argument("--alignments", action="store_true", help="add the word each word attends to most")
    command_line.add_search_option(parser)
    add_search_options(parser)
    command_line.add_batch_options(parser)
    command_line.add_generation_options(parser)
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    several = arguments.mass is not None or (arguments.n_best or 1) > 1
    if arguments.search and (several or arguments.scores or arguments.alignments):
        parser.error("--search returns sequences alone; it does not go with --n_best, --scores or --alignments")
    if arguments.search and (chosen := [name for name in SEARCH_OPTIONS if getattr(arguments, name) is not None]):
        parser.error(f"--search: does not go with --{chosen[0]}, an option of the model's own search")
    if sum(value is not None for value in (arguments.text, arguments.input_file, arguments.dataset_name)) > 1:
        parser.error("--text, --input_file and --dataset_name: give one of them")
    if arguments.lexicon_format and not arguments.lexicon:
        parser.error(f"--lexicon_format {arguments.lexicon_format}: needs --lexicon; leave it out")
    if (arguments.resume or arguments.overwrite) and not arguments.output_file:
        parser.error("--resume and --overwrite need --output_file")
    if arguments.output_format in LEXICONS and (arguments.scores or arguments.alignments):
        parser.error(
            f"--output_format {arguments.output_format}: has no place for --scores and --alignments; leave them out"
        )
    if arguments.resume and arguments.output_format in LEXICONS:
        parser.error(
            "--resume: a lexicon has several lines for one word, so what is done cannot be counted; leave it out"
        )
    if arguments.resume and not (arguments.input_file or arguments.dataset_name):
        parser.error(
            "--resume: needs --input_file or --dataset_name; standard input cannot be compared with what it was"
        )
    return arguments


def add_search_options(parser: command_line.Parser) -> None:
    group = parser.add_argument_group("what the model's own search adds to generation")
    group.add_argument("--gnmt_alpha", type=command_line.finite(0), metavar="A", help="length normalization of GNMT")
    group.add_argument(
        "--coverage_penalty", type=command_line.finite(0), metavar="B", help="GNMT's reward for covering the source"
    )
    group.add_argument(
        "--stop_at_top", action="store_true", default=None, help="end a sentence when its likeliest continuation does"
    )
    group.add_argument("--weight_type", choices=("float32", "bfloat16", "int8"), help="weights while decoding")
    group.add_argument(
        "--shortlist",
        metavar="FILE",
        help="target words by source words, from learn_shortlist.py; probabilities are then among these words",
    )
    group.add_argument("--ensemble", nargs="+", metavar="DIR", help="models that decode together with the first")
    group.add_argument(
        "--replace_unknown",
        nargs="?",
        const="",
        metavar="DICTIONARY",
        help="put the aligned source word, or its entry in the file, in place of unknown words",
    )


def search_options(
    arguments: argparse.Namespace, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", others: list[Any]
) -> dict[str, Any]:
    """The options of the model's own search that were given, with the shortlist loaded and the `others` to decode with.

    Raises:
        ValueError: the model has no search of its own, or --search names another one for an ensemble.
    """
    from hf_rnn_seq2seq.generation.shortlist import Shortlist

    options = {name: getattr(arguments, name) for name in VALUES if getattr(arguments, name) is not None}
    given = [name for name in SEARCH_OPTIONS if getattr(arguments, name) is not None and name != "replace_unknown"]
    if given and not hasattr(model, "search"):
        raise ValueError(f"--{given[0]}: a {type(model).__name__} has no search of its own")
    if arguments.search:
        options["search"] = command_line.find_search(arguments.search, model)
    if others:
        if arguments.search:
            raise ValueError("--search: an ensemble decodes with the models' own search; leave it out")
        options["ensemble"] = others
    if arguments.shortlist:
        options["search"] = Shortlist.load(arguments.shortlist, tokenizer).search(model)
    return options


def open_reader(arguments: argparse.Namespace) -> "LineReader | DatasetReader":
    """The lines to translate: of the data set, the file, --text, or standard input.

    Raises:
        ValueError: an option says where in a data set the texts are, and there is none.
    """
    from hf_rnn_seq2seq.generation.lines import DatasetReader, LineReader

    if arguments.dataset_name is not None:
        place = (arguments.dataset_config_name, arguments.split or "test")
        return DatasetReader(arguments.dataset_name, *place, arguments.source_column, arguments.source_lang)
    if arguments.text is not None:
        if "\n" in arguments.text:
            raise ValueError(f"text={arguments.text!r}: is one line; give several as standard input or --input_file")
        sys.stdin = io.TextIOWrapper(io.BytesIO(arguments.text.encode() + b"\n"))
    reader = LineReader(arguments.input_file, arguments.source_column or arguments.source_lang or "source")
    refuse_given(arguments, ("dataset_config_name", "split"), "needs --dataset_name; leave it out")
    if not reader.is_json:
        refuse_given(arguments, ("source_lang", "source_column"), "a line of text has no fields; leave it out")
    return reader


def refuse_given(arguments: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Raises ValueError for the first of the options that was given."""
    for name in names:
        if (value := getattr(arguments, name)) is not None:
            raise ValueError(f"{name}={value!r}: {why}")


def make_request(arguments: argparse.Namespace, options: dict[str, Any], model: "PreTrainedModel") -> "Request":
    """What is written for each line; `options` are those of generation and search.

    Raises:
        ValueError: --mass needs several beams.
    """
    import torch

    from hf_rnn_seq2seq.data.lexicon import read_lexicon
    from hf_rnn_seq2seq.data.readers import read_lines
    from hf_rnn_seq2seq.generation.translate import number_of_beams
    from hf_rnn_seq2seq.generation.translate_lines import Request
    from hf_rnn_seq2seq.generation.unknown_words import read_dictionary

    beams = number_of_beams(model, options)
    if arguments.mass is not None and beams < 2:
        raise ValueError(f"mass={arguments.mass}: one beam has one hypothesis; choose --num_beams of at least 2")
    dictionary, lexicon, known = arguments.replace_unknown, arguments.lexicon, {}
    if lexicon:
        kind = arguments.lexicon_format or "cmudict"
        known = read_lexicon(read_lines(Path(lexicon)), kind)
        if not known:
            raise ValueError(
                f"lexicon={lexicon!r}: holds no pronunciation in the format {kind}; choose another --lexicon_format"
            )
    limits = {"batch_size": arguments.batch_size, "max_tokens": arguments.max_tokens}
    return Request(
        options | limits | {"workers": torch.get_num_threads(), "progress": False},
        n_best=arguments.n_best or (beams if arguments.mass is not None else 1),
        replace_unknown=dictionary is not None,
        dictionary=read_dictionary(dictionary) if dictionary else None,
        lexicon=known,
        **{
            name: getattr(arguments, name)
            for name in ("mass", "scores", "alignments", "output_format", "max_source_length")
        },
    )


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    import torch

    from hf_rnn_seq2seq.data.tokenizer import feature_token_ids
    from hf_rnn_seq2seq.generation.encoding import source_problems
    from hf_rnn_seq2seq.generation.lines import LineWriter
    from hf_rnn_seq2seq.generation.translate_lines import identity, translate_lines
    from hf_rnn_seq2seq.run_directory import load_models
    from hf_rnn_seq2seq.training.environment import peak_memory_mb

    command_line.load_libraries()
    reader = open_reader(arguments)
    names = [arguments.model, *(arguments.ensemble or ())]
    attention = arguments.alignments or arguments.replace_unknown is not None
    where = {"device": arguments.device, "dtype": arguments.dtype}
    model, tokenizer, others = load_models(names, attention=attention, **where)
    options = command_line.generation_options(arguments) | search_options(arguments, model, tokenizer, others)
    if arguments.lexicon and feature_token_ids(tokenizer):
        raise ValueError("--lexicon: has no features, and the model reads some before each word; leave it out")
    request = make_request(arguments, options, model)
    resuming: dict[str, Any] = {}
    if arguments.output_file:
        facts = identity(vars(arguments), reader, model, tokenizer, options.get("ensemble", ()))
        resuming = {"resume": arguments.resume, "overwrite": arguments.overwrite, "identity": facts}
    progress = not arguments.disable_tqdm
    with LineWriter(arguments.output_file, **resuming) as writer:
        counts = translate_lines(model, tokenizer, reader, writer, request, window=arguments.window, progress=progress)
    for problem in (*source_problems(counts), *reader.warnings()):
        print(f"warning: {problem}", file=sys.stderr)
    if progress:
        lines, memory = writer.done + writer.written, peak_memory_mb(torch.device("cpu"))
        print(f"{lines} lines; memory: {memory:.0f} MiB at most", file=sys.stderr)
    return 0
