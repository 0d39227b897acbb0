"""The model without an output layer: encoder, bridge and decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqModelOutput
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .copying import Copying
from .decoder import RnnDecoder
from .decoder_state import DecoderState, DecoderTrace, Memory, RnnSeq2SeqCache, last_columns, usable_cache
from .dropout import State
from .encoder import RnnEncoder, RnnEncoderOutput
from .hard_attention import Alignment
from .loss import IGNORED_LABEL
from .pretrained import RnnSeq2SeqPreTrainedModel, VocabularyMixin


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


@dataclass
class RnnSeq2SeqModelOutput(Seq2SeqModelOutput):
    """As its base class, and what an output layer that reads more than one vector needs.

    Args:
        copying: gate, attention and source words of a model with `copy_mechanism`.
        alignment: the parts of the readouts, and the weights, of a model with hard attention.
        source_mask: bool (batch, source), False at padding, of a model with attention.
        read: (batch, heads, target, source), what a sampled attention read in training.
    """

    copying: Copying | None = None
    alignment: Alignment | None = None
    source_mask: Tensor | None = None
    read: Tensor | None = None


class RnnSeq2SeqModel(VocabularyMixin, RnnSeq2SeqPreTrainedModel):
    """Encoder, bridge and decoder without an output layer."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder = RnnEncoder(config)
        self.main_input_name = self.encoder.main_input_name
        self.bridge = Bridge(config)
        self.decoder = RnnDecoder(config)
        if config.share_encoder_decoder_embeddings:
            self._tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
        self.post_init()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.encoder

    def get_decoder(self) -> RnnDecoder:
        return self.decoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.set_input_embeddings(value)
        if self.config.share_encoder_decoder_embeddings:
            self.decoder.embed_tokens = value

    # Opaque to torch.compile, which would unroll the time loops: minutes of compilation, and no gain.
    @torch.compiler.disable
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        cache: RnnSeq2SeqCache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        pixel_values: Tensor | None = None,
        **kwargs: object,
    ) -> RnnSeq2SeqModelOutput:
        """Reads a source and the target words before each position.

        Args:
            input_ids: (batch, source), or `inputs_embeds` (batch, source, embedding; of a foreign encoder its states), or
                `encoder_outputs`, or
            pixel_values: (batch, channels, height, width), with an encoder that reads pictures.
            attention_mask: (batch, source), nonzero at real words; None means every word that is not the pad token.
            decoder_input_ids: (batch, target) or `decoder_inputs_embeds` (batch, target, embedding). None: the source
                shifted right by one, as in denoising models; needs vocabularies of one size.
            decoder_attention_mask: (batch, >= target), zero where a target position is padding; the last columns count.
            encoder_outputs: the result of `get_encoder()`, or of another encoder: a ModelOutput or a tuple whose first
                entry are states (batch, source, states).
            cache: the decoder's state from the positions before.
            use_cache: return the state after the last position.
            output_attentions: return the attention weights, (batch, heads, target, source).
            output_hidden_states: return word vectors and each layer's states.

        Returns:
            `last_hidden_state` is the readout (batch, target, readout), with hard attention the target's part of it.
            `cross_attentions` holds one entry, for the one attention of the model, and is None with another context. Of a
            monotonic alignment it is the softmax of the scores alone: what the words before say about the position needs
            the output layer.

        Raises:
            ValueError: inputs are missing, doubled, of other shapes, or a cache of another class or name is given.
        """
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        cache = usable_cache(cache, kwargs)
        source = None
        given = (input_ids, attention_mask, inputs_embeds, encoder_outputs, output_hidden_states, pixel_values)
        sources = (encoder_outputs, input_ids, inputs_embeds, pixel_values)
        if any(one is not None for one in sources) or not cache.is_initialized:
            source = self.encode(*given)
        if fresh := not cache.is_initialized:
            self.start_cache(cache, source)
        words = self.target_words(decoder_input_ids, decoder_inputs_embeds, input_ids)
        given = words if decoder_inputs_embeds is None else decoder_inputs_embeds
        sentences = len(cache.state.position)
        if given.shape[0] != sentences or not given.shape[1]:
            name = "decoder_input_ids" if decoder_inputs_embeds is None else "decoder_inputs_embeds"
            raise ValueError(
                f"{name} of shape {tuple(given.shape)}: must have a row for each of {sentences} sources, and a position"
            )
        embedded = self.decoder.embed(words) if decoder_inputs_embeds is None else decoder_inputs_embeds
        mask = None
        if decoder_attention_mask is not None:
            mask = last_columns("decoder_attention_mask", decoder_attention_mask, embedded)
            mask = None if bool(mask.all()) else mask  # a mask costs the fast paths
        before = cache.state
        trace = self.decoder(embedded, before, cache.memory, mask, cache.is_recording)
        cache.advance(trace.state, embedded.shape[1], trace.snapshots)
        attentions = output_attentions and trace.weights is not None
        alignment = self.alignment(trace, before if use_cache or not fresh else None, cache.memory, words, mask)
        return RnnSeq2SeqModelOutput(
            last_hidden_state=trace.readout,
            cache=cache if use_cache else None,
            decoder_hidden_states=trace.hidden_states if output_hidden_states else None,
            cross_attentions=(trace.weights if alignment is None else trace.weights.exp(),) if attentions else None,
            encoder_last_hidden_state=None if source is None else source.last_hidden_state,
            encoder_hidden_states=None if source is None else source.hidden_states,
            copying=self.copying(trace, cache.memory),
            alignment=alignment,
            source_mask=cache.memory.mask,
            read=trace.read,
        )

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        output_hidden_states: bool | None = None,
        pixel_values: Tensor | None = None,
    ) -> RnnEncoderOutput:
        """Runs the encoder unless `encoder_outputs` are given; arguments as `forward`."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, inputs_embeds, output_hidden_states, pixel_values=pixel_values
            )
        return self.encoder_output(encoder_outputs, attention_mask, input_ids)

    @staticmethod
    def copying(trace: DecoderTrace, memory: Memory) -> Copying | None:
        """The inputs of the copy distribution; None if the model has no `copy_mechanism`."""
        return None if trace.gate is None else Copying(trace.gate, trace.weights.mean(1), memory.source_ids)

    def alignment(
        self,
        trace: DecoderTrace,
        before: DecoderState | None,
        memory: Memory,
        words: Tensor,
        mask: Tensor | None = None,
    ) -> Alignment | None:
        """The inputs of the sum over source positions; None without hard attention.

        Args:
            trace: of the decoder.
            before: its state before; None: the start, and what the alignment carries is not wanted.
            memory: the source.
            words: (batch, target), the words read.
            mask: bool (batch, target), False at padding.
        """
        if not self.decoder.aligns_hard:
            return None
        parts = Alignment(trace.readout, memory.values, trace.weights[:, 0], memory.mask)
        if self.config.attention_alignment == "hard":
            return parts
        return parts._replace(words=words, before=None if before is None else before.attention, mask=mask)

    def start_cache(self, cache: RnnSeq2SeqCache, source: RnnEncoderOutput) -> None:
        """Fills an empty cache with the projected source and the decoder's first state."""
        layers, summary = self.bridge(source)
        memory = self.decoder.prepare_memory(source.last_hidden_state, source.source_mask, summary, source.source_ids)
        cache.start(self.decoder.start_state(layers, memory), memory)

    def encoder_output(
        self, source: ModelOutput | tuple | list, attention_mask: Tensor | None, input_ids: Tensor | None = None
    ) -> RnnEncoderOutput:
        """The output of any encoder as `RnnEncoderOutput`; a missing mask and missing source words are added."""
        if isinstance(source, (tuple, list)):
            source = RnnEncoderOutput.from_tuple(source)
        states = source.last_hidden_state
        mask = getattr(source, "source_mask", None)
        for name, given in (("source_mask", mask), ("attention_mask", attention_mask)):
            if given is not None and given.shape != states.shape[:2]:
                raise ValueError(
                    f"{name} of shape {tuple(given.shape)}: must be (batch, source) = {tuple(states.shape[:2])}"
                )
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        mask = mask if attention_mask is None else mask & attention_mask.bool()
        return RnnEncoderOutput(
            last_hidden_state=states,
            hidden_states=getattr(source, "hidden_states", None),
            final_state=getattr(source, "final_state", None),
            final_cell=getattr(source, "final_cell", None),
            source_mask=mask,
            source_ids=input_ids if getattr(source, "source_ids", None) is None else source.source_ids,
        )

    def target_words(self, ids: Tensor | None, embeds: Tensor | None, source_ids: Tensor | None) -> Tensor | None:
        """The words (batch, target) that the decoder reads; None with `embeds`."""
        if ids is not None and embeds is not None:
            raise ValueError("give only one of decoder_input_ids and decoder_inputs_embeds")
        if embeds is not None and self.config.attention_alignment == "monotonic":
            raise ValueError(
                "decoder_inputs_embeds: attention_alignment='monotonic' reads the words themselves; give decoder_input_ids"
            )
        if embeds is not None or ids is not None:
            return ids
        if self.config.encoder is not None:
            raise ValueError("give decoder_input_ids or labels: source ids are words of the encoder's own vocabulary")
        if source_ids is None:
            raise ValueError("give decoder_input_ids, decoder_inputs_embeds or input_ids")
        if self.config.source_vocab_size != self.config.vocab_size:
            raise ValueError(
                "give decoder_input_ids or labels: source ids cannot be reused as target ids, the vocabularies have "
                f"{self.config.source_vocab_size} and {self.config.vocab_size} words"
            )
        return shift_right(source_ids, self.config.pad_token_id, self.config.decoder_start_token_id)


def shift_right(ids: Tensor, pad_token_id: int | None, start_token_id: int | None) -> Tensor:
    """(batch, target) shifted right by one; the first column is the start token, ignored labels become padding.

    Raises:
        ValueError: the config names no start or pad token.
    """
    if start_token_id is None or pad_token_id is None:
        raise ValueError(
            f"decoder_start_token_id={start_token_id}, pad_token_id={pad_token_id}: both must be set to shift labels"
        )
    shifted = torch.cat([torch.full_like(ids[:, :1], start_token_id), ids[:, :-1]], 1)
    return shifted.masked_fill(shifted == IGNORED_LABEL, pad_token_id)
