"""Averages the weights of checkpoints: the same as `hf-rnn average`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.average import main

if __name__ == "__main__":
    command_line.run(main)
