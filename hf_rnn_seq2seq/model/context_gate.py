"""The gate that balances what a decoder has read of the source against what it has written (Tu 2017, section 3).

t_i = f(a (W e(y_{i-1}) + U t_{i-1}) + b C s_i), with z_i = sigmoid(W_z e(y_{i-1}) + U_z t_{i-1} + C_z s_i) and

    source  a = 1, b = z      target  a = z, b = 1      both  a = 1 - z, b = z

f is the cell where the context enters it (`before_cell`, as in the paper), and the readout where it comes after the cell;
t is then the state that the readout reads.
"""

import torch
from torch import Tensor, nn

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig


class ContextGate(nn.Module):
    """Factors of the target's and of the source's part of a product with `units` outputs, or with blocks of so many."""

    def __init__(self, config: RnnSeq2SeqConfig, units: int) -> None:
        super().__init__()
        self.kind = config.context_gate
        self.word = nn.Linear(config.embedding_size, units)
        self.state = nn.Linear(config.hidden_size, units, bias=False)
        self.context = nn.Linear(config.context_width, units, bias=False)

    def forward(self, word: Tensor, state: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (batch, ..., width) -> the two factors (batch, ..., units)."""
        gate = torch.sigmoid(self.word(word) + self.state(state) + self.context(context))
        if self.kind == "both":
            return 1 - gate, gate
        return (torch.ones_like(gate), gate) if self.kind == "source" else (gate, torch.ones_like(gate))


def gates_cell(config: RnnSeq2SeqConfig) -> bool:
    """Whether the gate stands where the context enters the cell."""
    return config.context_gate != "none" and config.attention_order == "before_cell"


def gates_readout(config: RnnSeq2SeqConfig) -> bool:
    """Whether the gate stands where the context enters the readout."""
    return config.context_gate != "none" and config.attention_order == "after_cell"


__all__ = ["ContextGate", "gates_cell", "gates_readout"]
