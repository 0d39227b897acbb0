"""Average the weights of checkpoints of one run: `python scripts/average_checkpoints.py DIR DIR ... --output_dir DIR`.

Configuration and tokenizer are those of the first directory. The directories are such as training or save_pretrained
writes; a run's own are OUTPUT_DIR and those in OUTPUT_DIR/checkpoints that hold a model.
"""

import argparse
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="checkpoints of one architecture")
    parser.rename("--output", "--output_dir")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="directory to write; must not exist")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    command_line.load_libraries()
    from hf_rnn_seq2seq.training.averaging import average_checkpoints

    average_checkpoints(arguments.directories, arguments.output_dir)
    print(f"{arguments.output_dir}: the mean of {len(arguments.directories)} checkpoints")
    return 0
