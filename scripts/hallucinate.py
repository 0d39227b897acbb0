"""Adds made-up rows to a table of words and forms: the same as `hf-rnn hallucinate`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.hallucinate import main

if __name__ == "__main__":
    command_line.run(main)
