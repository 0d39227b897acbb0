"""Draw one sentence's beam search: `python scripts/plot_beam_tree.py runs/demo "3 days ago" --output tree.png`.

Every prefix that a beam held is a node; finished hypotheses are in colour with their log-probabilities, what was given
up is grey, and the width of a line is the probability of the word it leads to.
"""

import argparse
from collections.abc import Sequence

from hf_rnn_seq2seq import command_line


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    parser.add_argument("model", metavar="DIR", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument("sentence", help="the source")
    parser.add_argument("--output", required=True, help="picture to write: .png, .svg or .pdf")
    parser.add_argument("--title", help="text above the tree (default: the sentence)")
    command_line.add_generation_options(parser)
    command_line.add_model_options(parser)
    arguments = parser.parse_args(argv)
    if not arguments.sentence.strip():
        parser.error("sentence is empty; there is nothing to translate")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    from hf_rnn_seq2seq.figures import check_output

    check_output(arguments.output)
    command_line.quiet_libraries()
    from hf_rnn_seq2seq.beam_tree import beam_tree, plot_beam_tree
    from hf_rnn_seq2seq.run_directory import load_checkpoint

    model, tokenizer = load_checkpoint(arguments.model, device=arguments.device, dtype=arguments.dtype)
    options = {"num_beams": 4} | command_line.generation_options(arguments)
    root = beam_tree(model, tokenizer, arguments.sentence, **options)
    plot_beam_tree(root, arguments.output, title=arguments.sentence if arguments.title is None else arguments.title)
    finished = sorted((node for node in root.walk() if node.rank), key=lambda node: node.rank)
    for node in finished:
        print(f"{node.log_probability:.4f}\t{tokenizer.decode(node.token_ids, skip_special_tokens=True)}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
