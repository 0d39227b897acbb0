"""Trains several systems with one budget and compares them: the same as `hf-rnn compare`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.compare import main

if __name__ == "__main__":
    command_line.run(main)
