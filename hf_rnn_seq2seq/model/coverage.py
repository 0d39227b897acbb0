"""What an additive attention remembers of the source words it has looked at, and how that enters its next scores.

Coverage is carried in the decoder's state, (batch, source, features), and its projection is added to the projected keys:
e = v . tanh(W_q t + W_k s + W_c C). Modules hold parameters only.

Axes: batch, source, features. The weights are those of one target position.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .departures import weights_say_all


class SumCoverage(nn.Module):
    """C_i = the sum of the weights of the positions before (See 2017, equations 10 and 11)."""

    features = 1

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.project = nn.Linear(self.features, config.attention_size, bias=False)

    def start(self, keys: Tensor) -> Tensor:
        """Nothing has been looked at: zeros (batch, source, features)."""
        return keys.new_zeros(*keys.shape[:2], self.project.in_features)

    def forward(self, covered: Tensor, weights: Tensor, query: Tensor, values: Tensor) -> Tensor:
        """The coverage after a position.

        Args:
            covered: before it.
            weights: (batch, source), where it looked.
            query: (batch, hidden), the state that asked.
            values: (batch, source, states), the encoder states.
        """
        return covered + weights.unsqueeze(-1)


class GruCoverage(SumCoverage):
    """C_ij = f(C_(i-1)j, a_ij, h_j, t_(i-1)), f the cell of a GRU (Tu 2016, section 3.1.2: neural coverage).

    t is the state that asked, h_j the encoder's state at source word j.
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        self.features = config.coverage_size
        super().__init__(config)
        self.read = nn.Linear(1 + config.encoder_output_size + config.hidden_size, 3 * self.features)
        self.recurrent = nn.Linear(self.features, 3 * self.features)

    def forward(self, covered: Tensor, weights: Tensor, query: Tensor, values: Tensor) -> Tensor:
        reset, update, new = self._seen(weights, query, values).chunk(3, -1)
        reset_h, update_h, new_h = self.recurrent(covered).chunk(3, -1)
        update = torch.sigmoid(update + update_h)
        new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        return (1 - update) * new + update * covered  # not lerp, which wants one type; autocast has two here

    def _seen(self, weights: Tensor, query: Tensor, values: Tensor) -> Tensor:
        if weights_say_all(self.read, (nn.Linear,)):
            asked = query.unsqueeze(1).expand(-1, values.shape[1], -1)
            return self.read(torch.cat([weights.unsqueeze(-1), values, asked], -1))
        # Cut in three, so that the query is not repeated for every source word.
        look, state, asked = self.read.weight.split([1, values.shape[-1], query.shape[-1]], 1)
        seen = F.linear(values, state, self.read.bias) + weights.unsqueeze(-1) * look[:, 0]
        return seen + F.linear(query, asked).unsqueeze(1)


def build_coverage(config: RnnSeq2SeqConfig) -> SumCoverage | None:
    """The coverage that `config` names; None where there is none."""
    return {"none": lambda _: None, "sum": SumCoverage, "gru": GruCoverage}[config.coverage](config)


__all__ = ["GruCoverage", "SumCoverage", "build_coverage"]
