"""The recurrent encoder, with all handling of padding and of reversed sources, and the base class of models that have one.

For any padding (left, right, or holes) the real words of each row are first moved to the front, so that a row of a batch
gives the same states as the row alone; then the states are moved back to the positions of their words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_rnn_encoder import EncoderFields
from .dropout import drop, drop_words
from .foreign_encoder import ForeignEncoder, read_encoder
from .recurrence import RecurrentLayer, TransitionCell, states_at


@dataclass
class RnnEncoderOutput(ModelOutput):
    """The output of the encoder; every tensor is batch first, so that beams can be expanded.

    Args:
        last_hidden_state: (batch, source, directions x hidden), zero at padding.
        hidden_states: word vectors (or the states of a foreign encoder; with `feature_token_ids` each beside the sum of the
            features) and each layer's states, with `output_hidden_states`.
        final_state: (batch, layers, directions, hidden), the state after each direction's last word; the second
            direction of a one-way layer is zero.
        final_cell: the same for the LSTM's cell, None for other cells.
        source_mask: bool (batch, source), True at real words that are no features.
        source_ids: (batch, source), the words read, with `copy_mechanism`.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    final_state: Tensor | None = None
    final_cell: Tensor | None = None
    source_mask: Tensor | None = None
    source_ids: Tensor | None = None

    def to_tuple(self) -> tuple[object, ...]:
        """All fields in order, None included, so that a position always means the same field."""
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @classmethod
    def from_tuple(cls, parts: Sequence[object]) -> "RnnEncoderOutput":
        """The inverse of `to_tuple`; of a tuple of another length (from another encoder) the first entry, the states."""
        return cls(*parts) if len(parts) == len(cls.__dataclass_fields__) else cls(parts[0])


class ReadingOrder:
    """The positions of each row's real words, and the order in which a direction reads them.

    Args:
        mask: bool (batch, source), True at real words.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.lengths = mask.sum(1)
        # A kernel cannot read an empty row: it reads one pad, and the states are set to zero afterwards.
        self.read_lengths = self.lengths.clamp(min=1)
        steps = torch.arange(mask.shape[1], device=mask.device)
        self.front = steps < self.lengths[:, None]
        # Real tokens go to the front of each row, padding to the end; with right padding nothing moves.
        self.place = torch.where(mask, mask.cumsum(1), self.lengths[:, None] + (~mask).cumsum(1)) - 1
        self.index = torch.zeros_like(self.place).scatter(1, self.place, steps.expand_as(self.place))
        self.reverse = torch.where(self.front, self.lengths[:, None] - 1 - steps, steps)

    def to_front(self, states: Tensor) -> Tensor:
        """(batch, source, width) with each row's words moved to the front."""
        return states_at(states, self.index)

    def back(self, states: Tensor) -> Tensor:
        """The inverse of `to_front`."""
        return states_at(states, self.place)

    def flip(self, states: Tensor) -> Tensor:
        """Front-aligned states with each row's words in the opposite order; its own inverse."""
        return states_at(states, self.reverse)


class RnnEncoderLayer(GradientCheckpointingLayer):
    """One encoder layer of one or two directions over front-aligned rows; `width` is that of the vectors of layer 1."""

    def __init__(self, config: EncoderFields, layer: int, width: int) -> None:
        super().__init__()
        below = width
        # Two stacks that alternate their direction (Zhou 2016; Miceli Barone 2017, section 2.2.1); each reads its own output.
        self.alternating = config.bidirectional == "alternating" and layer > 1
        self.swapped = self.alternating and layer % 2 == 0
        if layer > 1:
            below = config.encoder_hidden_size * (1 if self.alternating else config.encoder_directions(layer - 1))
        options = dict(
            cell_type=config.cell_type,
            input_size=below,
            hidden_size=config.encoder_hidden_size,
            gru_reset=config.gru_reset,
            layer_norm=config.layer_norm,
            transition_depth=config.encoder_transition_depth,
            recurrent_dropout=config.recurrent_dropout,
            weight_drop=config.weight_drop,
            zoneout=config.zoneout_rates,
        )
        self.residual = config.residual_start is not None and layer >= config.residual_start
        self.forward_layer = RecurrentLayer(**options)
        self.backward_layer = RecurrentLayer(**options) if config.encoder_directions(layer) == 2 else None

    def forward(
        self, inputs: Tensor, order: ReadingOrder, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(batch, source, width) in; states (batch, source, directions x hidden) and final states and cells out.

        Final states are (batch, 2, hidden).
        """
        ends = []
        if self.alternating:
            halves = inputs.chunk(2, -1)
            first, second = (order.flip(halves[0]), halves[1]) if self.swapped else (halves[0], order.flip(halves[1]))
        else:
            first, second = inputs, order.flip(inputs) if self.backward_layer is not None else None
        outputs, state = self.forward_layer(first, lengths=lengths)
        ends.append(state)
        if self.backward_layer is not None:
            backward, state = self.backward_layer(second, lengths=lengths)
            outputs, backward = (order.flip(outputs), backward) if self.swapped else (outputs, order.flip(backward))
            outputs = torch.cat([outputs, backward], -1)
            ends.append(state)
        else:
            ends.append(tuple(torch.zeros_like(tensor) for tensor in state))
        if self.residual:
            outputs = outputs + inputs
        final = [torch.stack(tensors, 1) for tensors in zip(*ends, strict=True)]
        return outputs, final[0], final[1] if len(final) == 2 else None


class RnnEncoder(nn.Module):
    """Word vectors, or the states of a foreign encoder, and a stack of recurrent layers.

    Args:
        width: of vectors that are always given, as `inputs_embeds`, in the place of words: there is no table of words then.
    """

    main_input_name = "input_ids"

    def __init__(self, config: EncoderFields, width: int | None = None) -> None:
        super().__init__()
        self.config, self.reads_words = config, width is None
        self.foreign = None
        if config.encoder is not None and self.reads_words:
            self.foreign = ForeignEncoder(config.encoder, config.freeze_encoder, config.encoder_levels)
            self.main_input_name = self.foreign.kind.input_name
        elif self.reads_words:
            self.embed_tokens = nn.Embedding(config.source_vocab_size, config.embedding_size, config.pad_token_id)
        width = config.source_width if width is None else width
        self.layers = nn.ModuleList(RnnEncoderLayer(config, layer + 1, width) for layer in range(config.encoder_layers))

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens if self.foreign is None else self.foreign.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        if self.foreign is None:
            self.embed_tokens = value
        else:
            self.foreign.model.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        pixel_values: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: object,
    ) -> RnnEncoderOutput | tuple:
        """Reads a batch of sources.

        Args:
            input_ids: (batch, source), or
            inputs_embeds: (batch, source, width) in the place of the word vectors: of a foreign encoder its states, for
                example computed once and stored; or
            pixel_values: (batch, channels, height, width), with a foreign encoder that reads pictures.
            attention_mask: (batch, source), nonzero at real words. None: every word that is not the pad token. Pictures
                have no padding: it is not read.
            output_hidden_states: also return word vectors and each layer's states.
            token_type_ids: as tokenizers such as BERT's give them for one text; not read.
            return_dict: False for a plain tuple.

        Raises:
            ValueError: not exactly one source given, or shapes that do not fit.
        """
        self._check_source(input_ids, inputs_embeds, pixel_values)
        if pixel_values is not None:
            inputs_embeds, attention_mask = self.foreign(pixel_values=pixel_values), None
        elif inputs_embeds is not None and self.foreign is not None:
            inputs_embeds = inputs_embeds.to(self.foreign.dtype)  # stored states may be in half precision
        mask = self.mask(input_ids, inputs_embeds, attention_mask)
        features = self._features(input_ids, mask)
        mask = mask if features is None else mask & ~features
        config, order = self.config, ReadingOrder(mask)
        # An exported graph must work for every batch, so it must not depend on the values of this one.
        ragged = torch.compiler.is_compiling() or not (mask.device.type == "cpu" and bool(mask.all()))
        if inputs_embeds is not None or self.foreign is None:
            states = self._embed(input_ids, inputs_embeds)
            if features is not None:
                total = states.masked_fill(~features.unsqueeze(-1), 0.0).sum(1, keepdim=True)
                states = torch.cat([states, total.expand_as(states)], -1)
            states = order.to_front(states) if ragged else states
        else:
            # Its positions count from the first word, wherever the padding is.
            ids = input_ids.gather(1, order.index) if ragged else input_ids
            states = self._embed(None, self.foreign(ids, order.front))
        if config.reverse_source:
            states = order.flip(states)
        lengths = order.read_lengths if ragged else None
        layer_states, finals, cells = [states], [], []
        for number, layer in enumerate(self.layers):
            if number:
                states = drop(states, config.dropout, self.training, config.variational_dropout)
            states, final, cell = layer(states, order, lengths)
            layer_states.append(states)
            finals.append(final)
            cells.append(cell)
        present = (order.lengths > 0).to(states.dtype)[:, None, None, None]
        output = RnnEncoderOutput(
            last_hidden_state=self._restore(states, order, ragged),
            hidden_states=(
                tuple(self._restore(each, order, ragged) for each in layer_states) if output_hidden_states else None
            ),
            final_state=torch.stack(finals, 1) * present if finals else None,
            final_cell=torch.stack(cells, 1) * present if cells and cells[0] is not None else None,
            source_mask=mask,
            source_ids=input_ids if config.keeps_source_ids else None,
        )
        return output if return_dict is not False else output.to_tuple()

    def _check_source(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None
    ) -> None:
        """Exactly one source is given, and the encoder reads it."""
        if sum(given is not None for given in (input_ids, inputs_embeds, pixel_values)) != 1:
            raise ValueError(f"give exactly one of {self.main_input_name} and inputs_embeds")
        other = "input_ids" if pixel_values is None else "pixel_values"
        if inputs_embeds is None and other != self.main_input_name:
            raise ValueError(f"{other}: this model's encoder reads {self.main_input_name}")

    def _features(self, input_ids: Tensor | None, mask: Tensor) -> Tensor | None:
        """bool (batch, source), True at the features of a source; None if the model sums none."""
        if not self.config.feature_token_ids:
            return None
        if input_ids is None:
            raise ValueError("inputs_embeds: feature_token_ids are found in input_ids; give these alone")
        known = torch.tensor(self.config.feature_token_ids, device=input_ids.device)
        return (input_ids.unsqueeze(-1) == known).any(-1) & mask  # ONNX has no isin

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Word vectors (batch, source, embedding) with the dropout of training."""
        config = self.config
        if not self.reads_words:
            return drop(inputs_embeds, config.dropout, self.training, config.variational_dropout)
        if config.drops_word_types and self.training and input_ids is None:
            raise ValueError(
                "inputs_embeds: word_dropout_unit='type' needs input_ids in training, to know which positions hold the "
                "same word"
            )
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        words = input_ids if config.drops_word_types else None
        embedded = drop_words(embedded, config.word_dropout, self.training, words)
        return drop(embedded, config.dropout, self.training, config.variational_dropout)

    def _restore(self, states: Tensor, order: ReadingOrder, ragged: bool) -> Tensor:
        """States (batch, source, width) at the positions of their words, zero at padding."""
        states = order.flip(states) if self.config.reverse_source else states
        if not ragged:
            return states
        return order.back(states.masked_fill(~order.front.unsqueeze(-1), 0.0))

    def mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None) -> Tensor:
        """bool (batch, source), True at the words of a source; the arguments are those of `forward`."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        # An exported graph must not depend on the shape of this batch.
        if not torch.compiler.is_compiling() and 0 in given.shape[:2]:
            name = "input_ids" if inputs_embeds is None else "inputs_embeds"
            raise ValueError(
                f"{name} of shape {tuple(given.shape)}: a batch needs at least one row and one token; leave empty "
                "sources out, their translation is empty"
            )
        if attention_mask is not None:
            if attention_mask.shape != given.shape[:2]:
                raise ValueError(
                    f"attention_mask of shape {tuple(attention_mask.shape)}: must be (batch, source) = "
                    f"{tuple(given.shape[:2])}"
                )
            return attention_mask.bool()
        if input_ids is not None and self.foreign is not None:
            return self.foreign.mask(input_ids)
        if input_ids is None or self.config.pad_token_id is None:
            return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        return input_ids != self.config.pad_token_id


class RnnPreTrainedModel(PreTrainedModel):
    """Base class of every model, with this encoder or without one: initialization, loading and device placement."""

    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RnnEncoderLayer"]
    _base_class = ""  # file and class, where `AutoModel` with trust_remote_code=True finds the base model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Uniform in plus or minus one over the square root of the fan-in, or in plus or minus `initializer_range`."""
        width = self.config.initializer_range
        if isinstance(module, nn.Linear):
            self._uniform(module, width or module.in_features**-0.5)
        elif isinstance(module, nn.RNNBase):
            self._uniform(module, width or module.hidden_size**-0.5)
        elif isinstance(module, nn.Embedding):
            # With a deviation of 0.1 the attention needs twice the updates to form; with one of 1, rare words keep their
            # initial noise.
            deviation = 0.2 if getattr(self.config, "tie_word_embeddings", False) else 0.3
            init.uniform_(module.weight, -width, width) if width else init.normal_(module.weight, 0.0, deviation)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, TransitionCell):
            init.zeros_(module.bias)

    @staticmethod
    def _uniform(module: nn.Module, width: float) -> None:
        for parameter in module.parameters(recurse=False):
            init.uniform_(parameter, -width, width)

    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> Self:
        """As in transformers.

        Raises:
            ValueError: `device_map` leaves weights on disk or in the memory of another device than the one that computes.
                transformers would load them whenever a module is called, but a recurrence reads its weights at every
                position without a call.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        if offloaded:
            raise ValueError(
                f"device_map={kwargs.get('device_map')!r}: leaves {offloaded[0]} (one of {len(offloaded)} weights) outside its "
                "device's memory; a recurrent model is loaded whole, on one device or over several with room for it"
            )
        if model._foreign is not None:
            model._foreign.choose_trained()
        return loaded

    @property
    def _foreign(self) -> ForeignEncoder | None:
        return getattr(getattr(self.base_model, "encoder", None), "foreign", None)

    def resize_token_embeddings(self, *args: object, **kwargs: object) -> nn.Embedding:
        """As in transformers; the configuration of a foreign encoder gets the new size too."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self._foreign is not None:
            for config in (self.config.encoder, self._foreign.model.config):
                config.vocab_size = embeddings.num_embeddings
        return embeddings

    @classmethod
    def from_encoder_pretrained(
        cls, name: str, *, preset: str | None = None, revision: str | None = None, **fields: object
    ) -> Self:
        """A new model over a pretrained encoder, whose weights are loaded; all others are drawn at random.

        `from_encoder_pretrained("google-bert/bert-base-uncased", vocab_size=8000, freeze_encoder=True)`

        Args:
            name: a folder, or a repository of the Hub, with a built-in model of transformers that reads token ids or pixels.
                Of an encoder-decoder, such as T5 or Marian, the encoder is taken.
            preset: of the configuration's `from_preset`, for example `bert_encoder`.
            revision: of a repository of the Hub.
            fields: of the configuration; the `vocab_size` of a model that writes is the target's.

        Returns:
            the model, in evaluation mode.

        Raises:
            ConfigError: the encoder's type is unknown, or the fields do not fit it.
            OSError: there is no such folder or repository.
        """
        fields["encoder"] = read_encoder(name, revision, fields.get("encoder_levels"))
        config = cls.config_class.from_preset(preset, **fields) if preset else cls.config_class(**fields)
        model = cls(config).eval()
        model.base_model.encoder.foreign.load(name, revision)
        return model

    def save_pretrained(self, save_directory: str, *args: object, **kwargs: object) -> None:
        """As in transformers; config.json also has the class for `AutoModel` with `trust_remote_code=True`."""
        if self._auto_class is not None:
            auto_map = getattr(self.config, "auto_map", None) or {}
            self.config.auto_map = {**auto_map, "AutoModel": self._base_class}
        super().save_pretrained(save_directory, *args, **kwargs)
