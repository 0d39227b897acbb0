"""Draw the beam search of a sentence: `python scripts/plot_beam_tree.py runs/demo "3 days ago" --output_file tree.png`.

Each prefix that was a beam is a node. Finished hypotheses are in color, with their log-probabilities; discarded
prefixes are gray. The width of a line shows the probability of the word at its end.
"""

from collections.abc import Sequence

from hf_rnn_seq2seq import command_line


def main(argv: Sequence[str] | None = None) -> int:
    parser = command_line.sentence_parser(__doc__, title="text above the tree (default: the sentence)")
    arguments = command_line.parse_sentence(parser, argv)
    from hf_rnn_seq2seq.visualization.figure import check_output

    check_output(arguments.output_file, "output_file")
    command_line.load_libraries()
    from hf_rnn_seq2seq.run_directory import load_checkpoint
    from hf_rnn_seq2seq.visualization.beam_tree import beam_tree, plot_beam_tree

    model, tokenizer = load_checkpoint(arguments.model, device=arguments.device, dtype=arguments.dtype)
    options = {"num_beams": 4} | command_line.generation_options(arguments)
    root = beam_tree(model, tokenizer, arguments.sentence, **options)
    plot_beam_tree(
        root, arguments.output_file, title=arguments.sentence if arguments.title is None else arguments.title
    )
    finished = sorted((node for node in root.walk() if node.rank), key=lambda node: node.rank)
    for node in finished:
        print(f"{node.log_probability:.4f}\t{tokenizer.decode(node.token_ids, skip_special_tokens=True)}")
    return 0
