"""Coverage: an additive attention's memory of the source words it has read, which enters its next scores.

Coverage is part of the decoder's state, (batch, source, features), and its projection is added to the projected keys:
e = v . tanh(W_q t + W_k s + W_c C). Modules hold parameters only.

Axes: batch, source, features. The weights are those of one target position.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .departures import live_departure


class SumCoverage(nn.Module):
    """C_i = the sum of the weights of the positions before (See 2017, equations 10 and 11)."""

    features = 1

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.project = nn.Linear(self.features, config.attention_size, bias=False)

    def start(self, keys: Tensor) -> Tensor:
        """The coverage before the first position: zeros (batch, source, features)."""
        return keys.new_zeros(*keys.shape[:2], self.project.in_features)

    def forward(self, covered: Tensor, weights: Tensor, query: Tensor, values: Tensor) -> Tensor:
        """The coverage after a position.

        Args:
            covered: before it.
            weights: (batch, source), the attention weights.
            query: (batch, hidden), the decoder state.
            values: (batch, source, states), the encoder states.
        """
        return covered + weights.unsqueeze(-1)


class GruCoverage(SumCoverage):
    """C_ij = f(C_(i-1)j, a_ij, h_j, t_(i-1)), f the cell of a GRU (Tu 2016, section 3.1.2: neural coverage).

    t is the decoder state, h_j the encoder's state at source word j.
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        self.features = config.coverage_size
        super().__init__(config)
        self.read = nn.Linear(1 + config.encoder_output_size + config.hidden_size, 3 * self.features)
        self.recurrent = nn.Linear(self.features, 3 * self.features)

    def forward(self, covered: Tensor, weights: Tensor, query: Tensor, values: Tensor) -> Tensor:
        reset, update, new = self._read_inputs(weights, query, values).chunk(3, -1)
        reset_h, update_h, new_h = self.recurrent(covered).chunk(3, -1)
        update = torch.sigmoid(update + update_h)
        new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        return (1 - update) * new + update * covered  # not lerp, which needs one type; autocast has two here

    def _read_inputs(self, weights: Tensor, query: Tensor, values: Tensor) -> Tensor:
        if live_departure(self.read, (nn.Linear,)):
            queries = query.unsqueeze(1).expand(-1, values.shape[1], -1)
            return self.read(torch.cat([weights.unsqueeze(-1), values, queries], -1))
        # Split in three, so that the query is not repeated for every source word.
        weight_part, state_part, query_part = self.read.weight.split([1, values.shape[-1], query.shape[-1]], 1)
        read = F.linear(values, state_part, self.read.bias) + weights.unsqueeze(-1) * weight_part[:, 0]
        return read + F.linear(query, query_part).unsqueeze(1)


def build_coverage(config: RnnSeq2SeqConfig) -> SumCoverage | None:
    """The coverage that `config` names; None without coverage."""
    return {"none": lambda _: None, "sum": SumCoverage, "gru": GruCoverage}[config.coverage](config)
