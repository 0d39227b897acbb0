"""Lists the recipes and experiments by name, or prints one: `hf-rnn recipes [NAME]`.

`hf-rnn train NAME --output_dir DIR` trains a recipe, `hf-rnn compare NAME ...` an experiment. To change one, print it
to a file of your own.
"""

from collections.abc import Sequence

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.option_parser import named_files


def first_comment(text: str) -> str:
    """The first line of a YAML file, if it is a comment."""
    line = text.partition("\n")[0]
    return line.lstrip("# ") if line.startswith("#") else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.Parser(__doc__)
    parser.add_argument("name", nargs="?", help="prints this recipe or experiment")
    arguments = parser.parse_args(argv)
    files = named_files()
    if arguments.name is None:
        for name, path in files.items():
            print(f"{name:<28} {path.parent.name.removesuffix('s'):<11} {first_comment(path.read_text('utf-8'))}")
        return 0
    if arguments.name not in files:
        parser.error(f"name={arguments.name!r}: no such recipe; `hf-rnn recipes` lists them")
    print(files[arguments.name].read_text(encoding="utf-8"), end="")
    return 0
