"""Draws a beam search: the same as `hf-rnn plot beam_tree`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.plot_beam_tree import main

if __name__ == "__main__":
    command_line.run(main)
