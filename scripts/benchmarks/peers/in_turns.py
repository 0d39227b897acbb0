"""Speed beside OpenNMT-py, Eole and, with the run of a Transformer, CTranslate2: all in turns in one run.

python scripts/benchmarks/peers/in_turns.py runs/luong --transformer runs/marian
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(place) for place in (SCRIPTS.parent, SCRIPTS) if str(place) not in sys.path]

from benchmarks.peers import ctranslate2_transformer, eole_rnn, opennmt_rnn  # noqa: E402  the checkout's
from benchmarks.toolkits import add_options, measure  # noqa: E402  the checkout's

from hf_rnn_seq2seq import command_line  # noqa: E402  the checkout's


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add_options(parser)
    parser.add_argument("--transformer", metavar="DIR", help="the run of a Transformer, for CTranslate2")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    peers, given = [opennmt_rnn.PEER, eole_rnn.PEER], {}
    if arguments.transformer:
        peers.append(ctranslate2_transformer.PEER)
        given["transformer"] = str(Path(arguments.transformer).resolve())
    return measure(arguments, peers, **given)


if __name__ == "__main__":
    command_line.run(main)
