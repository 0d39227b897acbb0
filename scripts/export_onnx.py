"""Exports a model to ONNX, or for numpy alone: the same as `hf-rnn export`."""

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.commands.export import main

if __name__ == "__main__":
    command_line.run(main)
