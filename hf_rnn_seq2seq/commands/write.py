"""Write a text by hand: `python scripts/write.py runs/handwriting "networks" --bias 0.5 --output_file hand.svg`.

    python scripts/write.py runs/handwriting "networks" --prime mine.jsonl --output_file hand.png --window map.png

--bias makes the writing more regular (0: as in life). --prime continues in the hand of the first row of a file of
strokes (data/README.md has the format). A network that reads no text writes what it likes. --window draws at which
character the network was at each point, --density where it expected the pen. Several texts are drawn on one sheet, and
so are the words of a text if the network's alphabet has no space.
"""

import argparse
import sys
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", metavar="DIR", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="what to write; of a network that reads no text nothing"
    )
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", required=True, help="the line: .svg, .png or .pdf")
    parser.add_argument(
        "--bias", type=command_line.finite(0.0), default=0.5, help="regularity, 0 or more (default: 0.5)"
    )
    parser.add_argument("--prime", metavar="FILE", help="JSON lines of strokes; the first row is continued")
    parser.add_argument("--max_points", type=command_line.at_least(1), metavar="N", help="give up after so many points")
    parser.add_argument("--window", metavar="FILE", help="picture of the window over the text")
    parser.add_argument("--density", metavar="FILE", help="picture of the densities of the points")
    parser.add_argument("--seed", type=command_line.at_least(0), default=0, help="of the random numbers (default: 0)")
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.visualization.figure import check_output

    for option in ("output_file", "window", "density"):
        check_output(getattr(arguments, option), option)
    command_line.load_libraries()
    import torch

    from hf_rnn_seq2seq.evaluation.handwriting import load_writer
    from hf_rnn_seq2seq.visualization.pen_drawing import draw_density, draw_line, draw_sheet, draw_window

    model = load_writer(arguments.model, device=arguments.device, dtype=arguments.dtype)
    prime, strokes = None, []
    if arguments.prime:
        from hf_rnn_seq2seq.data.strokes import first_writing

        first = first_writing(arguments.prime)
        strokes = first.strokes
        prime = (strokes, first.text) if model.config.reads_text else strokes
    texts = arguments.texts
    if model.config.reads_text and " " not in model.config.alphabet:
        texts = [word for text in texts for word in text.split()] or texts
    if len(texts) > 1 and (arguments.window or arguments.density):
        name = "window" if arguments.window else "density"
        raise ArgumentError(f"{name}={getattr(arguments, name)!r}: shows one writing; give one text, or one word of it")
    written = model.write(
        texts if len(texts) > 1 else (texts or [None])[0],
        bias=arguments.bias,
        prime=prime,
        generator=torch.Generator(model.device).manual_seed(arguments.seed),
        max_points=arguments.max_points,
    )
    writings = written if isinstance(written, list) else [written]
    if len(writings) == 1:
        draw_line(writings[0], arguments.output_file, prime=strokes)
    else:
        draw_sheet(writings, arguments.output_file)
    if arguments.window:
        draw_window(writings[0], arguments.window)
    if arguments.density:
        draw_density(writings[0], model.config.offset_deviation, arguments.density)
    for writing in writings:
        if not writing.finished:
            limit = f"{len(writing.points) - 1} points"
            print(f"warning: {writing.text!r} is not finished after {limit}; see --max_points", file=sys.stderr)
    return 0
