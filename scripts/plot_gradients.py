"""Draws how gradients vanish: the same as `hf-rnn plot gradients`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.plot_gradients import main

if __name__ == "__main__":
    command_line.run(main)
