"""Shows where a model fails: the same as `hf-rnn errors`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.error_analysis import main

if __name__ == "__main__":
    command_line.run(main)
