"""The model without an output layer: encoder, bridge and decoder."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqModelOutput
from transformers.utils import ModelOutput

from .bridge import Bridge
from .cache import RnnSeq2SeqCache
from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .copying import Copying
from .decoder import RnnDecoder
from .decoder_state import DecoderTrace, Memory
from .encoder import RnnEncoder, RnnEncoderOutput
from .loss import IGNORED_LABEL
from .pretrained import RnnSeq2SeqPreTrainedModel, VocabularyMixin


@dataclass
class RnnSeq2SeqModelOutput(Seq2SeqModelOutput):
    """As its base class, and `copying`: gate, attention and source words of a model with `copy_mechanism`."""

    copying: Copying | None = None


class RnnSeq2SeqModel(VocabularyMixin, RnnSeq2SeqPreTrainedModel):
    """Encoder, bridge and decoder without an output layer."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.encoder = RnnEncoder(config)
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
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.encoder.embed_tokens = value
        if self.config.share_encoder_decoder_embeddings:
            self.decoder.embed_tokens = value

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
        return_dict: bool | None = None,
        **kwargs: object,
    ) -> Seq2SeqModelOutput | tuple:
        """Reads a source and the target words before each position.

        Args:
            input_ids: (batch, source) or `inputs_embeds` (batch, source, embedding), or `encoder_outputs`.
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
            `last_hidden_state` is the readout (batch, target, readout). `cross_attentions` holds one entry, for the
            one attention of the model, and is None with another context.

        Raises:
            ValueError: inputs are missing, doubled, of other shapes, or a cache of another class or name is given.
        """
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.return_dict if return_dict is None else return_dict
        if "past_key_values" in kwargs:
            # Among the other keywords it would be ignored without a message.
            raise ValueError("past_key_values: the argument is called cache, as everywhere in transformers 5.24")
        if cache is not None and not hasattr(cache, "advance"):
            raise ValueError(f"cache of type {type(cache).__name__}: must be an RnnSeq2SeqCache or None")
        cache = RnnSeq2SeqCache() if cache is None else cache
        source = None
        if any(given is not None for given in (encoder_outputs, input_ids, inputs_embeds)) or not cache.is_initialized:
            source = self.encode(input_ids, attention_mask, inputs_embeds, encoder_outputs, output_hidden_states)
        if not cache.is_initialized:
            self.start_cache(cache, source)
        embedded = self.embed_target(decoder_input_ids, decoder_inputs_embeds, input_ids)
        mask = None
        if decoder_attention_mask is not None:
            mask = decoder_attention_mask[:, -embedded.shape[1] :].bool()
        trace = self.decoder(embedded, cache.state, cache.memory, mask, cache.is_recording)
        cache.advance(trace.state, embedded.shape[1], trace.snapshots)
        attentions = output_attentions and trace.weights is not None
        output = RnnSeq2SeqModelOutput(
            last_hidden_state=trace.readout,
            cache=cache if use_cache else None,
            decoder_hidden_states=trace.hidden_states if output_hidden_states else None,
            cross_attentions=(trace.weights,) if attentions else None,
            encoder_last_hidden_state=None if source is None else source.last_hidden_state,
            encoder_hidden_states=None if source is None else source.hidden_states,
            copying=self.copying(trace, cache.memory),
        )
        return output if return_dict else output.to_tuple()

    def encode(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        output_hidden_states: bool | None = None,
    ) -> RnnEncoderOutput:
        """Runs the encoder unless `encoder_outputs` are given; arguments as `forward`."""
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds, output_hidden_states)
        return self.encoder_output(encoder_outputs, attention_mask, input_ids)

    @staticmethod
    def copying(trace: DecoderTrace, memory: Memory) -> Copying | None:
        """The inputs of the copy distribution; None if the model has no `copy_mechanism`."""
        return None if trace.gate is None else Copying(trace.gate, trace.weights.mean(1), memory.source_ids)

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
        if mask is None:
            mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
            mask = mask if attention_mask is None else attention_mask.bool()
        if mask.shape != states.shape[:2]:
            raise ValueError(
                f"source mask of shape {tuple(mask.shape)}: must be (batch, source) = {tuple(states.shape[:2])}"
            )
        return RnnEncoderOutput(
            last_hidden_state=states,
            hidden_states=getattr(source, "hidden_states", None),
            final_state=getattr(source, "final_state", None),
            final_cell=getattr(source, "final_cell", None),
            source_mask=mask,
            source_ids=input_ids if getattr(source, "source_ids", None) is None else source.source_ids,
        )

    def embed_target(self, ids: Tensor | None, embeds: Tensor | None, source_ids: Tensor | None) -> Tensor:
        if ids is not None and embeds is not None:
            raise ValueError("give only one of decoder_input_ids and decoder_inputs_embeds")
        if embeds is not None:
            return embeds
        if ids is None:
            if source_ids is None:
                raise ValueError("give decoder_input_ids, decoder_inputs_embeds or input_ids")
            if self.config.source_vocab_size != self.config.vocab_size:
                raise ValueError(
                    "give decoder_input_ids or labels: source ids cannot be reused as target ids, the vocabularies have "
                    f"{self.config.source_vocab_size} and {self.config.vocab_size} words"
                )
            ids = shift_right(source_ids, self.config.pad_token_id, self.config.decoder_start_token_id)
        return self.decoder.embed(ids)


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


__all__ = ["RnnSeq2SeqModel", "shift_right"]
