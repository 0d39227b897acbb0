"""Shades a text by the bits that a language model needs for it: the same as `hf-rnn plot surprise`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.plot_surprise import main

if __name__ == "__main__":
    command_line.run(main)
