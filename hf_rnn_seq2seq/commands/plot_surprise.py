"""Shade a text by the bits that a model needs for it: `scripts/plot_surprise.py RUN "text" --output_file s.html`.

    python scripts/plot_surprise.py runs/text "The value of the argument" --output_file runs/text/surprise.html

The darker a character, the less the model expected it after all characters before it. Without a text, standard input is
read. The page (.html) shows the bits of each token under the pointer; .png, .svg and .pdf are pictures. The bits of the
whole text are printed.
"""

import argparse
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", metavar="DIR", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the text; `\\n` in it is a line break")
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", required=True, help="page or picture: .html, .png, .svg or .pdf")
    command_line.add_model_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    from hf_rnn_seq2seq.generation.lines import read_standard_input
    from hf_rnn_seq2seq.run_directory import load_as
    from hf_rnn_seq2seq.visualization.surprise import check_surprise_output, draw_surprise, surprise_of

    check_surprise_output(arguments.output_file, "output_file")
    text = read_standard_input() if arguments.text is None else arguments.text.replace("\\n", "\n")
    model, tokenizer = load_as("CausalLM", arguments.model, device=arguments.device, dtype=arguments.dtype)
    tokens = surprise_of(model, tokenizer, text)
    draw_surprise(tokens, arguments.output_file)
    bits = sum(value for _, value in tokens)
    print(f"{bits:.2f} bits for {len(text)} characters, {bits / len(text):.3f} a character")
    return 0
