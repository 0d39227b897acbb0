"""The recurrent language model: the decoder of the family without a source, and `generate()`."""

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_rnn_causal import RnnCausalConfig
from .decoder import RnnDecoder
from .decoder_state import NO_SOURCE, CachedGenerationMixin, RnnSeq2SeqCache, last_columns, usable_cache
from .dropout import drop
from .encoder import RnnPreTrainedModel
from .loss import IGNORED_LABEL, logits_loss, output_loss
from .matmul import Linear


class RnnCausalPreTrainedModel(RnnPreTrainedModel):
    """Base class of the language model: initialization, loading and saving."""

    config_class = RnnCausalConfig
    supports_gradient_checkpointing = False  # layers of an encoder have it
    _no_split_modules = ["RnnDecoder"]
    _base_class = "modeling_rnn_causal.RnnCausalModel"


class RnnCausalModel(RnnCausalPreTrainedModel):
    """The decoder alone, without an output layer."""

    def __init__(self, config: RnnCausalConfig) -> None:
        super().__init__(config)
        self.decoder = RnnDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.embed_tokens = value

    # Opaque to torch.compile, which would unroll the time loops: minutes of compilation, and no gain.
    @torch.compiler.disable
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: RnnSeq2SeqCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """Reads tokens after those that the cache has read.

        Args:
            input_ids: (batch, time), or `inputs_embeds` (batch, time, embedding).
            attention_mask: (batch, >= time), zero at padding, anywhere: the state passes through it unchanged. The last
                columns count.
            cache: the state after the tokens before; None: there are none, and the state is zero.
            use_cache: return the state after the last position.
            output_hidden_states: return the tokens' vectors and each layer's states.

        Returns:
            `last_hidden_state` is the readout (batch, time, readout), from which the output layer scores the next token.

        Raises:
            ValueError: inputs are missing or doubled, or a cache of another class, name or number of rows is given.
        """
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give one of input_ids and inputs_embeds")
        embedded = self.decoder.embed(input_ids) if inputs_embeds is None else inputs_embeds
        read_on = use_cache or cache is not None
        cache = usable_cache(cache, kwargs)
        if not cache.is_initialized:
            cache.start(self.decoder.zero_state(embedded, NO_SOURCE), NO_SOURCE)
        name, given = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
        cache.check_rows(name, given)
        mask = None if attention_mask is None else last_columns("attention_mask", attention_mask, embedded)
        trace = self.decoder(embedded, cache.state, cache.memory, self._needed(mask, read_on), cache.is_recording)
        cache.advance(trace.state, embedded.shape[1], trace.snapshots)
        return BaseModelOutputWithPast(
            last_hidden_state=trace.readout,
            cache=cache if use_cache else None,
            hidden_states=trace.hidden_states if output_hidden_states else None,
        )

    @staticmethod
    def _needed(mask: Tensor | None, read_on: bool) -> Tensor | None:
        """The mask, bool (batch, time), where it changes something: a masked position costs the fast kernels.

        On a GPU the answer is read back, which takes far less time than a loop over the positions.

        Args:
            read_on: the state after the last position is read.
        """
        if mask is None:
            return None
        # Padding at the end comes after everything that counts, unless the state is read.
        changes = mask[:, 1:] & ~mask[:, :-1] if not read_on else ~mask
        return mask if bool(changes.any()) else None


class RnnForCausalLM(RnnCausalPreTrainedModel, CachedGenerationMixin):
    """The recurrent language model with an output layer over the vocabulary.

    `generate()` keeps the state in an `RnnSeq2SeqCache`, whose size does not depend on the length of the text.
    """

    def __init__(self, config: RnnCausalConfig) -> None:
        super().__init__(config)
        self.model = RnnCausalModel(config)
        self.lm_head = Linear(config.readout_width, config.vocab_size, bias=config.output_bias)
        if config.tie_word_embeddings:
            self._tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
        self.post_init()
        # Without a length generate() stops at 20 tokens, prompt included, which is four words of a character model.
        if self.generation_config.max_new_tokens is None:
            self.generation_config.max_new_tokens = 200

    # Opaque to torch.compile like the base model.
    @torch.compiler.disable
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: RnnSeq2SeqCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """As `RnnCausalModel.forward`, and scores the vocabulary.

        Args:
            labels: (batch, time), the tokens that are read, -100 where one is not to be predicted; each is predicted by
                the position before it, and the first by none.
            num_items_in_batch: the loss is the sum over label tokens divided by this; None: by their number in the batch.
            logits_to_keep: score only the last positions, this many; 0 scores all. Or the positions, (kept,).
            skip_logits: with labels, return None for the logits; the loss then computes them in bounded memory.
            kwargs: `shift_labels` (batch, time) in the place of `labels`: the token after each position.

        Returns:
            `loss` (with labels: cross entropy in nats per token, in training smoothed by `label_smoothing`), `logits`
            (batch, time, vocab) or None, and the outputs of the base model.

        Raises:
            ValueError: labels do not have the shape of the input.
        """
        config = self.config
        # Not in the signature, where Trainer would take it for a column that every row has.
        shift_labels = kwargs.pop("shift_labels", None)
        tokens_before = cache.get_seq_length() if isinstance(cache, RnnSeq2SeqCache) else 0
        outputs = self.model(
            input_ids,
            attention_mask,
            cache,
            inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        readout = drop(outputs.last_hidden_state, config.dropout, self.training, config.variational_dropout)
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
        logits = loss = None
        every = isinstance(logits_to_keep, int) and logits_to_keep == 0
        if shift_labels is None or not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(readout[:, kept])
        if shift_labels is not None and attention_mask is not None:
            # A position without a word at or before it predicts nothing.
            # A mask of more columns than positions covers the cached tokens itself.
            before = tokens_before if attention_mask.shape[1] == readout.shape[1] else 0
            begun = last_columns("attention_mask", attention_mask.cumsum(1) + before, readout)
            shift_labels = shift_labels.masked_fill(~begun, IGNORED_LABEL)
        if shift_labels is not None:
            loss = self._loss(readout, logits if every else None, shift_labels, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, cache=outputs.cache, hidden_states=outputs.hidden_states
        )

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: object
    ) -> tuple[GenerationConfig, dict[str, object]]:
        """As in transformers; the model's own `max_new_tokens` does not overrule a `max_length` of the call."""
        given = GenerationConfig() if generation_config is None else generation_config
        own = given.max_new_tokens in (None, self.generation_config.max_new_tokens)
        longest = kwargs.get("max_length") or (given.max_length if given.max_new_tokens is None else None)
        config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        if longest is not None and own and kwargs.get("max_new_tokens") is None:
            config.max_new_tokens = None
        return config, model_kwargs

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: RnnSeq2SeqCache | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> dict[str, object]:
        """As in transformers, which would read everything again where nothing is left to read.

        Raises:
            ValueError: the cache has read all of `input_ids`.
        """
        if next_sequence_length is not None and next_sequence_length <= 0:
            raise ValueError(
                f"input_ids of {input_ids.shape[1]} tokens: the cache has read {cache.get_seq_length()}; pass the whole "
                "text, with at least one token more than the cache has read, or the new tokens alone under the mask of all"
            )
        given = {"cache": cache, "inputs_embeds": inputs_embeds, **kwargs}
        return super().prepare_inputs_for_generation(input_ids, next_sequence_length, **given)

    def _loss(
        self, readout: Tensor, logits: Tensor | None, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """The mean cross entropy of the labels (batch, time), (); in evaluation of `logits`, if there are any."""
        if labels.shape != readout.shape[:2]:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)}: must be (batch, time) = {tuple(readout.shape[:2])}"
            )
        budget = self.config.logits_memory_mb * 2**20
        if logits is not None and not self.training:
            nats = logits_loss(logits, labels, budget)
        else:
            smoothing = self.config.label_smoothing if self.training else 0.0
            nats = output_loss(readout, self.lm_head, labels, smoothing, budget)
        items = (labels != IGNORED_LABEL).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return nats / items
