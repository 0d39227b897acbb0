"""Uploads a run to the Hub: the same as `hf-rnn push`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.push import main

if __name__ == "__main__":
    command_line.run(main)
