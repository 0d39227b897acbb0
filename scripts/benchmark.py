"""Measure speed and memory: `python scripts/benchmark.py train`, `decode` or `growth`; `--json FILE` writes results.

`train` compares the training step of the model with that of a tutorial (a cell called at each position, the output
layer inside the loop, padding scored, the default Adam) with the same parameters; their losses must agree.
`growth` measures one size after another along each axis. `decode` compares `model.search` with `generate()`, greedy and
with beams: on the sentences of --input with --model, or with random weights that decode --target_length steps.
"different" counts the sentences whose tokens differ from those of `generate()`; --references adds BLEU.

Model A is a bidirectional LSTM 2x256 and an LSTM 512 with general attention and input feeding, vocabulary 8000; B has
two and four layers, one of them below the attention, and vocabulary 32,000. Options override their sizes. "of peak" is
relative to the speed of a large matrix product. Variants take turns, so that a slow moment of the machine affects all
of them; read the ratios, not the seconds. With `--device cuda` times are wall times and memory is that of the device.
"""

import json
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> Namespace:
    parser = command_line.Parser(__doc__)
    count = command_line.at_least(1)
    parser.add_argument("what", choices=("train", "growth", "decode"))
    parser.add_argument("--sizes", choices=("A", "B"), default="A", help="model and batch (default: A)")
    parser.add_argument("--cell_type", choices=("lstm", "gru"), default="lstm")
    parser.add_argument("--vocab_size", type=command_line.at_least(8))
    parser.add_argument("--embedding_size", type=count)
    parser.add_argument("--hidden_size", type=command_line.at_least(2))
    parser.add_argument("--batch_size", type=count, help="sentences (default: 64 for A)")
    parser.add_argument("--source_length", type=count, help="longest source in tokens (default: 14 for A)")
    parser.add_argument(
        "--target_length", type=count, help="longest target in tokens (default: 15 for A; with --model, its own limit)"
    )
    parser.add_argument("--full_rows", action="store_true", help="train: all sentences have the longest length")
    parser.add_argument("--no_memory", dest="memory", action="store_false", help="train: do not measure peak memory")
    parser.add_argument("--only", nargs="+", metavar="AXIS", help="growth: axes such as vocab_size (default: all)")
    parser.add_argument("--model", metavar="DIR", help="a checkpoint of your own; decode needs --input with it")
    parser.add_argument("--input", metavar="FILE", help="decode: source sentences, one per line; may be .gz")
    parser.add_argument("--references", metavar="FILE", help="decode: translations of --input, for BLEU")
    parser.add_argument("--shortlist", metavar="FILE", help="decode: add a variant with a list of learn_shortlist.py")
    parser.add_argument("--sentences", type=count, help="decode: use only the first sentences of --input")
    parser.add_argument("--batch_sizes", type=count, nargs="+", metavar="N", help="decode: several batch sizes")
    parser.add_argument("--num_beams", type=command_line.at_least(2), default=5, help="decode: beams (default: 5)")
    parser.add_argument("--rounds", type=count, default=7, help="measurements of each variant (default: 7)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of train and decode (default: cpu)")
    parser.add_argument("--threads", type=count, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE, one object per variant")
    arguments = parser.parse_args(argv)
    if arguments.what == "decode" and (arguments.model is None) != (arguments.input is None):
        parser.error("--model and --input: decode needs both or neither")
    if arguments.model is None and (arguments.references or arguments.shortlist):
        parser.error("--references and --shortlist need --model and --input")
    if arguments.device == "cuda":
        import torch

        if arguments.what == "growth":
            parser.error("--device cuda: growth measures processes on a CPU; must be cpu")
        if not torch.cuda.is_available():
            parser.error("--device cuda: torch finds no CUDA device; must be cpu")
    from benchmarks.training import GROWTH, fill_in_sizes

    unknown = set(arguments.only or ()) - set(GROWTH)
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: must be among {', '.join(GROWTH)}")
    fill_in_sizes(arguments)
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    command_line.load_libraries()
    import torch

    # `train` and `growth` measure in forked processes; a fork must come before torch starts several threads.
    torch.set_num_threads(arguments.threads if arguments.what == "decode" else 1)
    module = {"train": "training", "growth": "growth", "decode": "decoding"}[arguments.what]
    report = import_module(f"benchmarks.{module}").run(arguments)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command_line.run(main)
