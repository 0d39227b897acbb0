"""Names the class of a text and shades the words that decided: the same as `hf-rnn classify`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.classify import main

if __name__ == "__main__":
    command_line.run(main)
