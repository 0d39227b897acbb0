"""Trains a tokenizer alone: the same as `hf-rnn tokenizer`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.train_tokenizer import main

if __name__ == "__main__":
    command_line.run(main)
