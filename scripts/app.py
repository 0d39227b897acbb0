"""Translates in the browser: the same as `hf-rnn app`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.app import main

if __name__ == "__main__":
    command_line.run(main)
