"""Translates lines: the same as `hf-rnn translate`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.translate import main

if __name__ == "__main__":
    command_line.run(main)
