"""Translate line by line: `python scripts/translate.py runs/demo < in.txt > out.txt`.

One output line for each input line, always. Without options a line is what `model.generate()` gives under the
checkpoint's generation config.

  An empty line, or one of white space only, gives an empty line.
  A line of more than --max_source_length tokens (default: the tokenizer's limit) is cut there; a warning says how many.
  A line that is not UTF-8 is translated with U+FFFD in place of the bytes that cannot be read; a warning counts them.
  A damaged .gz file ends with an error after the lines before the damage; it says how many were written.
  In JSON lines a row without the text field gives an empty line; a warning counts them.

  A row of a data set (--dataset NAME --split SPLIT) is a line; one without text gives an empty line, and is counted.

Columns are separated by tabs: translation, then the log-probability with --scores, then the word alignment with
--alignments (`source-target` pairs counted from 0); --n_best N repeats them for N hypotheses, best first.
--output_format jsonl writes an object a line instead.

--window lines are held and sorted by length at a time, so memory does not grow with the input:
`yes "3 days ago" | head -200000 > in.txt; python scripts/translate.py runs/demo --input in.txt --output_file out.txt`
ends with the most memory it has used: with the demo's model and two threads 542 MiB on 60,000 generated phrases, 544 on
250,000, 543 on 500,000.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument("--input", help="file in place of standard input: text or .jsonl, also .gz")
    parser.add_argument("--dataset", metavar="NAME", help="data set in place of lines: cldr, a saved folder, the Hub's")
    parser.add_argument("--dataset_config_name", help="its configuration; for cldr a pair of locales such as en-fr")
    parser.add_argument("--split", default="test", help="of --dataset (default: test)")
    parser.add_argument("--source_lang", help="key of the `translation` column of --dataset")
    parser.add_argument("--source_column", help="field of .jsonl input, column of --dataset (default: source)")
    parser.add_argument("--output_file", help="file in place of standard output; it appears when it is complete")
    parser.add_argument("--resume", action="store_true", help="continue the interrupted OUTPUT_FILE.part")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT_FILE if it exists")
    parser.add_argument("--output_format", choices=("text", "jsonl"), default="text")
    parser.add_argument("--n_best", type=command_line.at_least(1), default=1, help="hypotheses a line")
    parser.add_argument("--scores", action="store_true", help="add the log-probability of each sentence")
    parser.add_argument("--alignments", action="store_true", help="add the word each word attends to most")
    command_line.add_search_option(parser)
    add_decoding_options(parser)
    parser.add_argument("--batch_size", type=command_line.at_least(1), default=64, help="sentences (default: 64)")
    parser.add_argument("--max_tokens", type=command_line.at_least(1), default=16384, help="padded tokens of a batch")
    parser.add_argument("--max_source_length", type=command_line.at_least(2), help="tokens a line is cut at")
    parser.add_argument("--window", type=command_line.at_least(1), default=2048, help="lines sorted and held at a time")
    parser.add_argument("--no_progress", action="store_true", help="no progress bar on standard error")
    command_line.add_generation_options(parser)
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.search and (arguments.n_best > 1 or arguments.scores or arguments.alignments):
        parser.error("--search returns sequences alone; it does not go with --n_best, --scores or --alignments")
    if arguments.search and (chosen := [name for name in DECODING if getattr(arguments, name) is not None]):
        parser.error(f"--search: does not go with --{chosen[0]}, an option of the model's own search")
    if arguments.dataset and arguments.input:
        parser.error("--dataset and --input: give one of them")
    if (arguments.resume or arguments.overwrite) and not arguments.output_file:
        parser.error("--resume and --overwrite need --output_file")
    if arguments.resume and not (arguments.input or arguments.dataset):
        parser.error("--resume: needs --input or --dataset; what standard input held before cannot be compared")
    return arguments


# Options of the model's own search.
DECODING = ("gnmt_alpha", "coverage_penalty", "stop_at_top", "weight_type", "shortlist", "ensemble", "replace_unknown")


def add_decoding_options(parser: command_line.Parser) -> None:
    group = parser.add_argument_group("what the model's own search adds to generation")
    group.add_argument("--gnmt_alpha", type=command_line.finite(0), metavar="A", help="length normalisation of GNMT")
    group.add_argument(
        "--coverage_penalty", type=command_line.finite(0), metavar="B", help="GNMT's reward for covering the source"
    )
    group.add_argument(
        "--stop_at_top", action="store_true", default=None, help="end a sentence when its likeliest continuation does"
    )
    group.add_argument("--weight_type", choices=("float32", "bfloat16", "int8"), help="weights while decoding")
    group.add_argument("--shortlist", metavar="FILE", help="target words by source words, from learn_shortlist.py")
    group.add_argument("--ensemble", nargs="+", metavar="DIR", help="models that decode together with the first")
    group.add_argument(
        "--replace_unknown",
        nargs="?",
        const="",
        metavar="DICTIONARY",
        help="put the aligned source word, or its entry in the file, in place of unknown words",
    )


def decoding_options(arguments: argparse.Namespace, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The options of the model's own search that were given, the models and the shortlist among them loaded.

    Raises:
        ValueError: the model has no such search, or a member of the ensemble another vocabulary.
    """
    names = ("gnmt_alpha", "coverage_penalty", "stop_at_top", "weight_type")
    options = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    given = [name for name in DECODING if getattr(arguments, name) is not None and name != "replace_unknown"]
    if given and not hasattr(model, "search"):
        raise ValueError(f"--{given[0]}: a {type(model).__name__} has no search of its own")
    if arguments.ensemble:
        from hf_rnn_seq2seq.run_directory import load_ensemble

        where = {"device": arguments.device, "dtype": arguments.dtype}
        options["ensemble"] = load_ensemble(arguments.ensemble, arguments.model, model, tokenizer, **where)
    if arguments.shortlist:
        from hf_rnn_seq2seq.generation.shortlist import Shortlist

        options["search"] = Shortlist.load(arguments.shortlist, tokenizer).search(model)
    return options


def rich_lines(
    arguments: argparse.Namespace, model: Any, tokenizer: Any, window: list[str], encoded: Any, options: Any
) -> list[str]:
    """Output lines with more than the translation in them."""
    from hf_rnn_seq2seq.generation.attention import word_pairs
    from hf_rnn_seq2seq.generation.translate import translate_n_best
    from hf_rnn_seq2seq.generation.unknown_words import read_dictionary, replace_unknown

    attention = arguments.alignments or arguments.replace_unknown is not None
    found = translate_n_best(model, tokenizer, encoded, n_best=arguments.n_best, attention=attention, **options)
    dictionary = read_dictionary(arguments.replace_unknown) if arguments.replace_unknown else None
    lines = []
    for source, hypotheses in zip(window, found, strict=True):
        rows: list[dict[str, Any]] = []
        for hypothesis in hypotheses:
            row: dict[str, Any] = {"text": hypothesis.text}
            if arguments.replace_unknown is not None and hypothesis.attention is not None:
                weights = hypothesis.attention.mean(0)
                row["text"] = replace_unknown(tokenizer, source, hypothesis.token_ids, weights, dictionary)
            if arguments.scores:
                row["log_probability"] = hypothesis.log_probability
            if arguments.alignments:
                aligned = hypothesis.attention is not None
                row["alignment"] = word_pairs(tokenizer, source, hypothesis) if aligned else []
            rows.append(row)
        lines.append(_as_json(source, rows) if arguments.output_format == "jsonl" else _as_text(source, rows))
    return lines


def _as_json(source: str, rows: list[dict[str, Any]]) -> str:
    return json.dumps({"source": source, "translations": rows if source.strip() else []}, ensure_ascii=False)


def _as_text(source: str, rows: list[dict[str, Any]]) -> str:
    if not source.strip():
        return ""
    columns = []
    for row in rows:
        columns.append(row["text"].replace("\t", " "))
        if "log_probability" in row:
            columns.append(f"{row['log_probability']:.4f}")
        if "alignment" in row:
            columns.append(" ".join(f"{source}-{target}" for source, target in row["alignment"]))
    return "\t".join(columns)


def identity(arguments: argparse.Namespace, reader: Any, model: Any, tokenizer: Any, options: Any) -> dict[str, Any]:
    """What the lines depend on, files by their content: a part made with other values is not continued."""
    from hf_rnn_seq2seq.data.token_columns import tokenizer_hash
    from hf_rnn_seq2seq.files import content_hash
    from hf_rnn_seq2seq.run_directory import model_hash

    silent = ("resume", "overwrite", "no_progress", "window", "batch_size", "max_tokens", "output_file", "device")
    given = {name: value for name, value in vars(arguments).items() if name not in silent}
    files = {name: content_hash([Path(given[name])]) for name in ("shortlist", "replace_unknown") if given[name]}
    return {
        **given,
        **files,
        "input": reader.fingerprint(),
        "model": model_hash(model),
        "tokenizer": tokenizer_hash(tokenizer),
        "ensemble": [model_hash(member) for member in options.get("ensemble", ())],
    }


def translate_lines(
    arguments: argparse.Namespace, reader: Any, writer: Any, model: Any, tokenizer: Any, decoding: dict[str, Any]
) -> Counter[str]:
    """Read, translate and write window by window, so that memory stays flat; returns counts of `Encoded`."""
    from tqdm import tqdm

    from hf_rnn_seq2seq.errors import StreamError
    from hf_rnn_seq2seq.generation.lines import windows
    from hf_rnn_seq2seq.generation.translate import encode_sources, translate

    options = command_line.generation_options(arguments) | decoding | {"progress": False}
    options |= {"batch_size": arguments.batch_size, "max_tokens": arguments.max_tokens}
    if arguments.search:
        options["search"] = command_line.find_search(arguments.search, model)
    rich = arguments.output_format == "jsonl" or arguments.n_best > 1 or arguments.scores or arguments.alignments
    rich = rich or arguments.replace_unknown is not None
    size = 1 if reader.path is None and sys.stdin.isatty() else arguments.window
    total, counts = reader.count(), Counter()
    if total is not None and writer.done > total:
        raise ValueError(f"{arguments.output_file}.part has {writer.done} lines, the input {total}: not its output")
    bar = tqdm(total=total, initial=writer.done, unit=" lines", desc="translating", disable=arguments.no_progress)
    with bar:
        try:
            for window in windows(islice(reader, writer.done, None), size):
                encoded = encode_sources(tokenizer, window, arguments.max_source_length)
                counts += encoded.counts()
                if rich:
                    writer.write(rich_lines(arguments, model, tokenizer, window, encoded, options))
                else:
                    writer.write(translate(model, tokenizer, encoded, **options))
                bar.update(len(window))
        except StreamError as error:
            raise StreamError(f"{error}. {writer.done + writer.written} lines were written") from None
    return counts


def open_reader(arguments: argparse.Namespace) -> Any:
    from hf_rnn_seq2seq.generation.lines import DatasetReader, LineReader

    if arguments.dataset is None:
        return LineReader(arguments.input, arguments.source_column or "source")
    name, column = arguments.dataset, arguments.source_column
    return DatasetReader(name, arguments.dataset_config_name, arguments.split, column, arguments.source_lang)


def peak_megabytes() -> float:
    """The most memory that this process has held at once."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.generation.lines import LineWriter
    from hf_rnn_seq2seq.generation.translate import source_problems

    command_line.quiet_libraries()
    reader = open_reader(arguments)
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    model, tokenizer = load_checkpoint(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        attention=arguments.alignments or arguments.replace_unknown is not None,
    )
    decoding, kept = decoding_options(arguments, model, tokenizer), {}
    if arguments.output_file:
        kept = {"resume": arguments.resume, "overwrite": arguments.overwrite}
        kept["identity"] = identity(arguments, reader, model, tokenizer, decoding)
    with LineWriter(arguments.output_file, **kept) as writer:
        counts = translate_lines(arguments, reader, writer, model, tokenizer, decoding)
    for problem in (*source_problems(counts), *reader.warnings()):
        print(f"warning: {problem}", file=sys.stderr)
    if not arguments.no_progress:
        print(f"memory: {peak_megabytes():.0f} MB at most", file=sys.stderr)
    return 0


if __name__ == "__main__":
    command_line.run(main)
