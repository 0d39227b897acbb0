"""Learns a shortlist of target words: the same as `hf-rnn shortlist`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.learn_shortlist import main

if __name__ == "__main__":
    command_line.run(main)
