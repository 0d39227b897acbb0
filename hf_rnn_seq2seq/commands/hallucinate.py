"""Add made-up rows to a table of words and forms: `python scripts/hallucinate.py T.tsv --output_file U.tsv`.

    python scripts/hallucinate.py kat_large.train --feature_column 2 --rows 3000 --output_file kat_more.tsv
    accelerate launch scripts/train.py scripts/recipes/inflection.yaml --train_file kat_more.tsv --output_dir runs/kat

For inflection with few examples (Anastasopoulos and Neubig 2019): letters that a word and its form share are replaced
by random ones, the same in both, so that a model learns to keep letters that it has not seen there. Every other column,
such as features, is kept.

With --feature_column, for combinations of features that the table lacks (after Andreas 2020): where two rows of a word
differ in one feature, what that feature changes of the form is applied to other words, as far as it would have written
the known forms. Words and letters stay as they are.

The new rows follow those of the table.
"""

import argparse
import gzip
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError, DataError


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("table", metavar="FILE.tsv", help="may be .gz")
    parser.add_argument("--output_file", required=True, metavar="FILE.tsv", help="table to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT_FILE if it exists")
    parser.add_argument("--rows", type=command_line.at_least(1), default=10_000, help="new rows, at most")
    parser.add_argument("--seed", type=command_line.at_least(0), default=0, help="of what is drawn")
    parser.add_argument("--source_column", default="0", help="a name of the header, or without header a number")
    parser.add_argument("--target_column", default="1", help="likewise")
    parser.add_argument("--feature_column", help="likewise: make new combinations of the features there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.data.hallucination import hallucinate
    from hf_rnn_seq2seq.data.readers import read_lines
    from hf_rnn_seq2seq.data.recombination import recombine
    from hf_rnn_seq2seq.files import check_output_file, write_atomically

    path = Path(arguments.table)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    check_output_file(arguments.output_file, "output_file", overwrite=arguments.overwrite)
    table = [line.split("\t") for line in read_lines(path)]
    if not table:
        raise DataError(f"{path}: is empty; give a table of words and forms")
    chosen = {f"{name}_column": getattr(arguments, f"{name}_column") for name in ("source", "target", "feature")}
    chosen = {option: column for option, column in chosen.items() if column is not None}
    columns = list(chosen.values())
    names = [str(number) for number in range(len(table[0]))]
    header = [] if all(map(str.isdecimal, columns)) else table[:1]
    names = header[0] if header else names
    for number, (option, column) in enumerate(chosen.items()):
        if column not in names:
            raise ArgumentError(f"{option}={column!r}: {path} has the columns {', '.join(names)}")
        if column in columns[:number]:
            other = [*chosen][columns.index(column)].replace("_", " ")
            raise ArgumentError(f"{option}={column!r}: is the {other} too; name two different ones")
    source, target, *feature = map(names.index, columns)
    rows = [row for row in table[len(header) :] if len(row) == len(names)]
    left_out = len(table) - len(header) - len(rows)
    texts = [tuple(row[place] for place in (source, target, *feature)) for row in rows]
    make, written = (recombine, (target, *feature)) if feature else (hallucinate, (source, target))
    new = []
    try:
        for number, *found in make(texts, arguments.rows, arguments.seed):
            new.append(list(rows[number]))
            for place, text in zip(written, found, strict=True):
                new[-1][place] = text
    except DataError as error:
        raise DataError(f"{path}: {error}; choose others with --{', --'.join(chosen)}") from None
    text = "".join("\t".join(row) + "\n" for row in [*table, *new]).encode()
    write_atomically(
        arguments.output_file, gzip.compress(text, mtime=0) if arguments.output_file.endswith(".gz") else text
    )
    unused = f"; {left_out} rows without {len(names)} columns gave none" if left_out else ""
    print(f"{arguments.output_file}: {len(table) - len(header)} rows of {path}, and {len(new)} new ones{unused}")
    return 0
