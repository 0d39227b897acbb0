"""Draws learning curves: the same as `hf-rnn plot learning_curve`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.plot_learning_curve import main

if __name__ == "__main__":
    command_line.run(main)
