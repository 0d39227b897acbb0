"""Learns a shortlist: `python scripts/learn_shortlist.py runs/demo pairs.tsv --output_file words.json`.

A shortlist has the target words that match each source word. The pairs, source<TAB>target on each line (best: the
training text), are read with the checkpoint's tokenizer; `translate.py --shortlist words.json` then chooses among the
listed words only. Words that are not listed cannot be generated; measure the cost with
`benchmark.py decode --model runs/demo --input FILE --references FILE --shortlist words.json`.
"""

import argparse
import sys
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import InputError, reading


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", help="directory that training wrote, or user/name on the Hub; its tokenizer is used")
    parser.add_argument("pairs", metavar="FILE", help="source<TAB>target lines; may be .gz")
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", required=True, metavar="FILE", help="JSON to write")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT_FILE if it exists")
    parser.add_argument("--per_word", type=command_line.at_least(1), default=30, help="target words of a source word")
    parser.add_argument(
        "--frequent", type=command_line.at_least(0), default=200, help="commonest words, always allowed"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.files import check_output_file
    from hf_rnn_seq2seq.generation.lines import LineReader

    check_output_file(arguments.output_file, "output_file", overwrite=arguments.overwrite)
    reader = LineReader(arguments.pairs, pairs=True)
    rows = [line.partition("\t") for line in reader]
    wide = next((number for number, row in enumerate(rows, start=1) if "\t" in row[2]), None)
    for problem in reader.warnings():
        print(f"warning: {problem}", file=sys.stderr)
    kept = ["".join(row) for row in rows if row[1] and row[0].strip() and row[2].strip()]
    if not kept:
        raise InputError(f"pairs {arguments.pairs!r}: none of {len(rows)} lines is source, tab, target")
    command_line.load_libraries()
    from hf_rnn_seq2seq.data.tokenizer import feature_token_ids
    from hf_rnn_seq2seq.generation.encoding import encode_targets
    from hf_rnn_seq2seq.generation.shortlist import Shortlist
    from hf_rnn_seq2seq.run_directory import read_tokenizer, require_kind, vocabulary_hash

    require_kind(arguments.model, "Seq2SeqLM")
    with reading(f"the tokenizer of {arguments.model!r}"):
        tokenizer = read_tokenizer(arguments.model)
    # Features and a tab may stand before a source; then the last tab ends it.
    split = str.rpartition if feature_token_ids(tokenizer) else str.partition
    if split is str.partition and wide:
        raise InputError(f"pairs {arguments.pairs!r}: line {wide} has further columns; give source, tab, target alone")
    sources, _, targets = map(list, zip(*(split(line, "\t") for line in kept), strict=True))
    source_ids = tokenizer(sources, verbose=False)["input_ids"]
    target_ids = encode_targets(tokenizer, targets)
    limits = {"per_word": arguments.per_word, "frequent": arguments.frequent}
    shortlist = Shortlist.learn(source_ids, target_ids, vocabulary=vocabulary_hash(tokenizer), **limits)
    shortlist.save(arguments.output_file)
    words = sum(len(shortlist.words(row)) for row in source_ids) / len(source_ids)
    print(f"{arguments.output_file}: {len(kept)} pairs of {len(rows)} lines, {words:.0f} words a sentence on average")
    return 0
