"""Draw one sentence's beam search: `python scripts/plot_beam_tree.py runs/demo "3 days ago" --output tree.png`.

Every prefix that a beam held is a node; finished hypotheses are in colour with their log-probabilities, what was given
up is grey, and the width of a line is the probability of the word it leads to.
"""

from collections.abc import Sequence

from hf_rnn_seq2seq import command_line


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.sentence_parser(__doc__, title="text above the tree (default: the sentence)")
    arguments = command_line.parse_sentence(parser, argv)
    from hf_rnn_seq2seq.visualization.figure import check_output

    check_output(arguments.output)
    command_line.quiet_libraries()
    from hf_rnn_seq2seq.run_directory import load_checkpoint
    from hf_rnn_seq2seq.visualization.beam_tree import beam_tree, plot_beam_tree

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
