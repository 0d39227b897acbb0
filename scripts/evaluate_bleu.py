"""Translates a test set and scores it: the same as `hf-rnn evaluate`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.evaluate import main

if __name__ == "__main__":
    command_line.run(main)
