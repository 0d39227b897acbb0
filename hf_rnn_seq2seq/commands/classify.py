"""Name the class of a text, and show what decided: `python scripts/classify.py runs/documents "text"`.

    python scripts/classify.py runs/documents "3 days ago" --output_file words.html

The class of each text and its probability are printed; without texts, lines are read from standard input. --output_file
shades the words of each text by the weight of the attention; a model of documents also gets a bar beside each sentence.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", metavar="DIR", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts; `\\n` in one is a line break")
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", help="page to write: .html")
    parser.add_argument("--all", action="store_true", help="print the probability of every class")
    parser.add_argument("--batch_size", type=command_line.at_least(1), default=32, help="texts (default: 32)")
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.output_file and Path(arguments.output_file).suffix != ".html":
        parser.error(f"--output_file {arguments.output_file}: must end in .html")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    from hf_rnn_seq2seq.errors import DataError
    from hf_rnn_seq2seq.files import check_output_file, write_atomically
    from hf_rnn_seq2seq.generation.classify import classify
    from hf_rnn_seq2seq.generation.lines import LineReader
    from hf_rnn_seq2seq.run_directory import load_as
    from hf_rnn_seq2seq.visualization.shaded_text import shaded_page

    if arguments.output_file:
        check_output_file(arguments.output_file, "output_file")
    reader = LineReader()
    texts = [text.replace("\\n", "\n") for text in arguments.texts or reader]
    for warning in reader.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    if empty := [number for number, text in enumerate(texts or [""], start=1) if not text.strip()]:
        name = "TEXT" if arguments.texts or not texts else f"line {empty[0]}"
        raise DataError(f"{name}: is empty; give at least one word")
    model, tokenizer = load_as(
        "SequenceClassification", arguments.model, device=arguments.device, dtype=arguments.dtype
    )
    found = classify(model, tokenizer, texts, arguments.batch_size)
    for result in found:
        ordered = sorted(result.probabilities.items(), key=lambda pair: -pair[1])
        print("\t".join(f"{name} {share:.4f}" for name, share in ordered[: None if arguments.all else 1]))
    if arguments.output_file:
        write_atomically(arguments.output_file, shaded_page(found))
    return 0
