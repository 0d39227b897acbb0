"""From a source to the decoder's first state (the bridge), and to the fixed vector of `context="every_step"`."""

import torch
from torch import Tensor, nn

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .encoder import RnnEncoderOutput
from .dropout import State


class Bridge(nn.Module):
    """From the encoder's output to the decoder's starting states.

    Decoder layer l reads encoder layer l. With a deeper encoder the top layers are paired: layer l reads layer
    l + encoder_layers - decoder_layers. With a shallower encoder its top layer starts all decoder layers above.

    * `zero`: s_0 = 0.
    * `copy`: s_0 = the final state, both directions concatenated.
    * `mean`: s_0 = tanh(W mean(states) + b) (Nematus), one projection per layer and per state tensor.
    * `dense`: s_0 = tanh(W final + b) (Cho 2014, appendix A; Britz 2017); with `context_size`, W reads c instead.
    * `backward_tanh`: s_0 = tanh(W h_1 + b), h_1 the backward direction's state at the first word (Bahdanau 2014,
      appendix A.2.2, which has no bias).
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.config = config
        self.tensors = 2 if config.cell_type == "lstm" else 1
        self.summary = None
        if config.context_size is not None:
            self.summary = nn.Linear(config.encoder_output_size, config.context_size)
        self.projections = nn.ModuleList()
        if config.bridge in ("mean", "dense", "backward_tanh"):
            widths = [self._width(layer) for layer in range(config.decoder_layers)]
            self.projections.extend(
                nn.ModuleList(nn.Linear(width, config.hidden_size) for _ in range(self.tensors)) for width in widths
            )

    def _encoder_layer(self, layer: int) -> int:
        deeper = max(0, self.config.encoder_layers - self.config.decoder_layers)
        return min(layer + deeper, self.config.encoder_layers - 1)

    def _width(self, layer: int) -> int:
        config = self.config
        if config.bridge == "backward_tanh":
            return config.encoder_hidden_size
        if config.bridge == "mean":
            return config.encoder_output_size
        if self.summary is not None:
            return config.context_size
        return config.encoder_hidden_size * config.encoder_directions(self._encoder_layer(layer) + 1)

    def forward(self, source: RnnEncoderOutput) -> tuple[tuple[State, ...], Tensor | None]:
        """Starting states, each tensor (batch, hidden), and the fixed vector (batch, context) or None.

        Raises:
            ValueError: the bridge reads final states that `source` does not have.
        """
        summary = self._summary(source)
        return tuple(self._start(layer, source, summary) for layer in range(self.config.decoder_layers)), summary

    def _summary(self, source: RnnEncoderOutput) -> Tensor | None:
        if self.config.context != "every_step":
            return None
        final = self._final(source, "final_state", self.config.encoder_layers - 1)
        return final if self.summary is None else torch.tanh(self.summary(final))

    def _start(self, layer: int, source: RnnEncoderOutput, summary: Tensor | None) -> State:
        config = self.config
        if config.bridge == "zero":
            zeros = source.last_hidden_state.new_zeros(source.last_hidden_state.shape[0], config.hidden_size)
            return (zeros,) * self.tensors
        names = ("final_state", "final_cell")[: self.tensors]
        if config.bridge == "copy":
            return tuple(self._final(source, name, self._encoder_layer(layer)) for name in names)
        if config.bridge == "mean":
            real = source.source_mask.unsqueeze(-1).to(source.last_hidden_state.dtype)
            mean = (source.last_hidden_state * real).sum(1) / real.sum(1).clamp(min=1)
            read = [mean] * self.tensors
        elif config.bridge == "backward_tanh":
            size = config.encoder_hidden_size
            read = [self._final(source, name, config.encoder_layers - 1)[:, size:] for name in names]
        elif self.summary is not None:
            read = [summary] * self.tensors
        else:
            read = [self._final(source, name, self._encoder_layer(layer)) for name in names]
        return tuple(torch.tanh(project(states)) for project, states in zip(self.projections[layer], read, strict=True))

    def _final(self, source: RnnEncoderOutput, name: str, layer: int) -> Tensor:
        """(batch, directions x hidden), the state of encoder layer `layer` (from 0) after its last word."""
        final = getattr(source, name, None)
        if final is None:
            raise ValueError(
                f"encoder_outputs carry no {name}: bridge={self.config.bridge!r} with context={self.config.context!r} "
                "reads it; pass the output of model.get_encoder(), or configure bridge='mean' or 'zero'"
            )
        return final[:, layer, : self.config.encoder_directions(layer + 1)].flatten(1)
