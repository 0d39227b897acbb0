"""Draws the attention of a sentence: the same as `hf-rnn plot attention`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.plot_attention import main

if __name__ == "__main__":
    command_line.run(main)
