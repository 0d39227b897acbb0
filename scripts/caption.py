"""Describes a picture and draws where each word looked: the same as `hf-rnn caption`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.caption import main

if __name__ == "__main__":
    command_line.run(main)
