"""Writes a text by hand: the same as `hf-rnn write`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.write import main

if __name__ == "__main__":
    command_line.run(main)
