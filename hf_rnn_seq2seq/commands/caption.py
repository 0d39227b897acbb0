"""Describe a picture and draw where each word looked: `python scripts/caption.py runs/shapes picture.png`.

    python scripts/caption.py runs/shapes picture.png --output_file where.png

The caption is printed. --output_file draws one tile for each word: the picture, lit where the attention of the word is.
Several pictures are described one line each; drawing takes one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", metavar="DIR", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="files that Pillow reads")
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", help="picture to write: .png, .svg or .pdf")
    parser.add_argument("--batch_size", type=command_line.at_least(1), default=32, help="pictures (default: 32)")
    command_line.add_generation_options(parser)
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.output_file and len(arguments.pictures) > 1:
        parser.error("--output_file draws one picture; give one")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.output_file:
        from hf_rnn_seq2seq.visualization.figure import check_output

        check_output(arguments.output_file, "output_file")
    command_line.load_libraries()
    from hf_rnn_seq2seq.data.images import Pictures, PixelReader
    from hf_rnn_seq2seq.data.pieces import target_pieces
    from hf_rnn_seq2seq.errors import DataError
    from hf_rnn_seq2seq.generation.attention import merge_words
    from hf_rnn_seq2seq.generation.encoding import PictureSources
    from hf_rnn_seq2seq.generation.translate import translate_n_best
    from hf_rnn_seq2seq.run_directory import load_checkpoint, read_image_processor
    from hf_rnn_seq2seq.visualization.caption_tiles import caption_tiles

    wanted = bool(arguments.output_file)
    pictures = Pictures(Path.cwd())
    if missing := [name for name in arguments.pictures if not Path(name).is_file()]:
        raise DataError(f"picture {missing[0]!r}: no such file")
    model, tokenizer = load_checkpoint(
        arguments.model, device=arguments.device, dtype=arguments.dtype, attention=wanted, reads="pictures"
    )
    read = PixelReader(pictures, read_image_processor(arguments.model))
    found = translate_n_best(
        model,
        tokenizer,
        PictureSources.of(model, arguments.pictures, read),
        attention=wanted,
        batch_size=arguments.batch_size,
        progress=False,
        **command_line.generation_options(arguments),
    )
    for (caption,) in found:
        print(caption.text)
    if wanted:
        ((caption,),) = found
        pieces = target_pieces(tokenizer, caption.token_ids)
        regions = [""] * caption.attention.shape[-1]
        columns = [[region] for region in range(len(regions))]
        special = {*tokenizer.all_special_tokens}
        weights, _, words = merge_words(caption.attention.mean(0), regions, pieces, special, columns)
        kept = [number for number, word in enumerate(words) if word.strip() and word not in special]
        picture = pictures.open(arguments.pictures[0])
        caption_tiles(picture, [words[number] for number in kept], weights[kept], output=arguments.output_file)
    return 0
