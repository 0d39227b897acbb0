"""Add rows with random stems to a table of words and forms: `python scripts/hallucinate.py T.tsv --output_file U.tsv`.

    python scripts/hallucinate.py kat_large.train --rows 10000 --output_file kat_more.tsv
    accelerate launch scripts/train.py scripts/recipes/inflection.yaml --train_file kat_more.tsv --output_dir runs/kat

For inflection with few examples (Anastasopoulos and Neubig 2019): letters that a word and its form share are replaced
by random ones, the same in both, so that a model learns to keep letters that it has not seen there. The new rows follow
those of the table; every other column, such as features, is kept.
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
    parser.add_argument("--rows", type=command_line.at_least(1), default=10_000, help="new rows")
    parser.add_argument("--seed", type=command_line.at_least(0), default=0, help="of what is drawn")
    parser.add_argument("--source_column", default="0", help="a name of the header, or without header a number")
    parser.add_argument("--target_column", default="1", help="likewise")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.data.hallucination import hallucinate
    from hf_rnn_seq2seq.data.readers import read_lines
    from hf_rnn_seq2seq.files import check_output_file, write_atomically

    path = Path(arguments.table)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    check_output_file(arguments.output_file, "output_file")
    if Path(arguments.output_file).exists() and not arguments.overwrite:
        raise ArgumentError(f"output_file={arguments.output_file!r}: exists; choose another name, or --overwrite")
    table = [line.split("\t") for line in read_lines(path)]
    columns = [arguments.source_column, arguments.target_column]
    names = [str(number) for number in range(len(table[0]) if table else 0)]
    header = [] if all(map(str.isdecimal, columns)) else table[:1]
    names = header[0] if header else names
    for option, column in zip(("source_column", "target_column"), columns, strict=True):
        if column not in names:
            raise ArgumentError(f"{option}={column!r}: {path} has the columns {', '.join(names) or 'of no row'}")
    source, target = map(names.index, columns)
    if source == target:
        raise ArgumentError(f"target_column={columns[1]!r}: is the source column too; name two different ones")
    rows = [row for row in table[len(header) :] if len(row) == len(names)]
    left_out = len(table) - len(header) - len(rows)
    pairs = [(row[source], row[target]) for row in rows]
    new = []
    try:
        for number, *texts in hallucinate(pairs, arguments.rows, arguments.seed):
            new.append(list(rows[number]))
            new[-1][source], new[-1][target] = texts
    except DataError as error:
        raise DataError(f"{path}: {error}; choose others with --source_column and --target_column") from None
    text = "".join("\t".join(row) + "\n" for row in [*table, *new]).encode()
    write_atomically(
        arguments.output_file, gzip.compress(text, mtime=0) if arguments.output_file.endswith(".gz") else text
    )
    unused = f"; {left_out} rows without {len(names)} columns gave none" if left_out else ""
    print(f"{arguments.output_file}: {len(table) - len(header)} rows of {path}, and {len(new)} new ones{unused}")
    return 0
