"""Translates a training corpus by a teacher: the same as `hf-rnn distill`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.distill import main

if __name__ == "__main__":
    command_line.run(main)
