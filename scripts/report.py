"""Writes a test set as a page: the same as `hf-rnn report`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.report import main

if __name__ == "__main__":
    command_line.run(main)
