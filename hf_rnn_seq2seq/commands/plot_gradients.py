"""Draw how gradients vanish, with gates and without: `python scripts/plot_gradients.py --output_file vanish.png`.

Without models: |d loss / d state| by distance in recurrent layers with random weights (tanh, GRU, LSTM), and with the
gate that keeps the old state opened (--gate_bias), as training may open it.
With models, `python scripts/plot_gradients.py runs/demo [runs/other ...] --output_file vanish.png`: |d loss / d word
vector| by distance from the end of the source, for the loss on the first word, on sentences of the test set.
"""

import argparse
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line

# name -> cell type, and whether the gate that keeps the old state is opened
CELLS = {
    "tanh, no gates": ("rnn_tanh", False),
    "GRU": ("gru", False),
    "LSTM": ("lstm", False),
    "GRU, gate open": ("gru", True),
    "LSTM, gate open": ("lstm", True),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("models", nargs="*", metavar="DIR", help="directories that training wrote (default: none)")
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", required=True, help="picture to write: .png, .svg or .pdf")
    parser.add_argument("--steps", type=command_line.at_least(2), default=60, help="positions (default: 60)")
    parser.add_argument(
        "--hidden_size", type=command_line.at_least(1), default=256, help="without models (default: 256)"
    )
    parser.add_argument(
        "--gate_bias", type=command_line.finite(), default=4.0, help="added to the bias of open gates (default: 4)"
    )
    parser.add_argument(
        "--seed", type=command_line.at_least(0, 2**32 - 1), default=0, help="of the random layers and their input"
    )
    parser.add_argument("--title", default="", help="text above the chart")
    command_line.add_data_options(parser)
    command_line.add_model_options(parser)
    return parser.parse_args(argv)


def random_curves(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Gradients in layers with random weights, on random words."""
    import torch

    from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqModel
    from hf_rnn_seq2seq.visualization.gradients import open_gates, recurrent_kernel, state_gradients

    curves = {}
    for name, (cell, is_open) in CELLS.items():
        torch.manual_seed(arguments.seed)
        size = arguments.hidden_size
        config = RnnSeq2SeqConfig(
            vocab_size=1000, cell_type=cell, embedding_size=size, hidden_size=size, bidirectional="none"
        )
        encoder = RnnSeq2SeqModel(config).get_encoder()
        if is_open:
            open_gates(recurrent_kernel(encoder), arguments.gate_bias)
        words = torch.randint(4, config.vocab_size, (32, arguments.steps))
        norms = state_gradients(recurrent_kernel(encoder), encoder.embed_tokens(words).detach(), seed=arguments.seed)
        curves[name] = norms.flip(0).tolist()
    return curves


def model_curves(arguments: argparse.Namespace) -> dict[str, list[float]]:
    from hf_rnn_seq2seq.evaluation.test_set import read_test_set
    from hf_rnn_seq2seq.run_directory import load_checkpoint
    from hf_rnn_seq2seq.visualization.gradients import word_gradients

    data_options = command_line.data_options(arguments)
    curves = {}
    for directory in arguments.models:
        test_set = read_test_set(directory, data_options, arguments.split)
        model, tokenizer = load_checkpoint(directory, device=arguments.device, dtype=arguments.dtype)
        pairs = (test_set.sources[:200], test_set.references[:200])
        curves[directory.rstrip("/")] = word_gradients(model, tokenizer, *pairs, longest=arguments.steps)
    return curves


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.visualization.figure import check_output

    check_output(arguments.output_file, "output_file")
    command_line.load_libraries()
    from hf_rnn_seq2seq.visualization.gradients import plot_gradients

    if arguments.models:
        curves, backwards = model_curves(arguments), "words before the end of the source"
    else:
        curves, backwards = random_curves(arguments), "positions back in time"
    plot_gradients(curves, arguments.output_file, title=arguments.title, backwards=backwards)
    for name, curve in curves.items():
        print(f"{name}: {curve[-1] / curve[0]:.2e} of the gradient remains after {len(curve) - 1} positions")
    return 0
