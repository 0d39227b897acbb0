"""Scores given translations: the same as `hf-rnn score`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.score import main

if __name__ == "__main__":
    command_line.run(main)
