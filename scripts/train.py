"""Trains a translator: the same as `hf-rnn train`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.train import main

if __name__ == "__main__":
    command_line.run(main)
