"""The recurrent encoder-decoder with an output layer, for `generate()`."""

import copy
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from .cache import RnnSeq2SeqCache
from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .copying import Copying, copy_loss, mixture
from .decoder import RnnDecoder
from .dropout import drop
from .encoder_decoder import RnnSeq2SeqModel, shift_right
from .loss import IGNORED_LABEL, attention_terms, figure_names, logits_loss, output_loss
from .matmul import Linear
from .pretrained import RnnSeq2SeqPreTrainedModel, VocabularyMixin
from .scheduled_sampling import scheduled_inputs
from .search import SearchMixin
from .search_options import limit_length


@dataclass
class RnnSeq2SeqLMOutput(Seq2SeqLMOutput):
    """As its base, and what training tells about itself.

    Args:
        figures: (figures, 2), the sum and the number of each of the model's `training_figures`, where asked for.
    """

    figures: Tensor | None = None


class RnnSeq2SeqForConditionalGeneration(SearchMixin, VocabularyMixin, RnnSeq2SeqPreTrainedModel, GenerationMixin):
    """The recurrent encoder-decoder with an output layer over the target vocabulary.

    `generate()` keeps the decoder's state in an `RnnSeq2SeqCache`; taking tokens back (assisted decoding) is exact,
    since the cache can record the state before each token.
    """

    # A recurrent state cannot be cut like a Transformer's keys, but the cache records what it needs to go back.
    _is_stateful = False

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.model = RnnSeq2SeqModel(config)
        self.lm_head = Linear(config.readout_width, config.vocab_size, bias=config.output_bias)
        self._tied_weights_keys = self._ties() or None
        self.post_init()
        # Without a length generate() stops at 20 tokens, in the middle of an ordinary sentence.
        limit_length(self.generation_config, 128)
        # A number of the run, not of the model: never saved. The Trainer passes nothing of the kind to forward.
        self.training_progress = 0

    def set_training_progress(self, step: int) -> None:
        """Tells `scheduled_sampling` how many updates lie behind; a training loop calls it before each update."""
        self.training_progress = step

    @property
    def training_figures(self) -> tuple[str, ...]:
        """What forward tells with `output_figures`: `attention_entropy` in nats, and where the attention has losses of its
        own, these before they are weighted, and `ml_loss`, what the loss would be without them."""
        return figure_names(self.config)

    def _ties(self) -> dict[str, str]:
        table = "model.decoder.embed_tokens.weight"
        ties = {}
        if self.config.share_encoder_decoder_embeddings:
            ties[table] = "model.encoder.embed_tokens.weight"
        if self.config.tie_word_embeddings:
            ties["lm_head.weight"] = ties.get(table, table)
        return ties

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.model.encoder

    def get_decoder(self) -> RnnDecoder:
        return self.model.decoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int = 0,
        skip_logits: bool = False,
        alignments: Tensor | None = None,
        output_figures: bool = False,
        **kwargs: object,
    ) -> RnnSeq2SeqLMOutput | tuple:
        """As `RnnSeq2SeqModel.forward`, and scores the vocabulary.

        Args:
            labels: (batch, target), the words to predict; -100 is ignored. Without `decoder_input_ids` the decoder
                reads them moved right by one behind `decoder_start_token_id`.
            num_items_in_batch: the loss is the sum over label words divided by this; None: by their number here.
            logits_to_keep: score only the last so many positions; 0 scores all.
            skip_logits: with labels, do not materialize the logits of every position, and return None for them. The loss
                then projects only the positions that have a label (on a CPU; on a device their number would have to be
                read back): about twice as fast on ragged batches, and smaller by (batch, target, vocab).
            alignments: (batch, target, source), for each label how much each source word stands for it, in any scale; a
                row of zeros says nothing. Read in training with `guided_alignment_weight`, which needs it.
            output_figures: with labels, return `figures` too.

        Returns:
            `loss` (with labels: cross entropy in nats per word; in training smoothed by `label_smoothing`, and with the
            weighted losses of the attention; outside it differentiable by the `logits`), `logits` (batch, target, vocab)
            or None, and what the base model returns.

        Raises:
            ValueError: labels do not have the shape of the decoder's input, or alignments are missing or not of theirs.
        """
        config = self.config
        return_dict = config.return_dict if return_dict is None else return_dict
        shows_attentions = config.output_attentions if output_attentions is None else output_attentions
        supervised = labels is not None and self.training and config.supervises_attention
        if supervised and config.guided_alignment_weight and alignments is None:
            raise ValueError(
                f"alignments=None: guided_alignment_weight={config.guided_alignment_weight} needs them in training"
            )
        watched = supervised or (output_figures and labels is not None and config.context == "attention")
        if labels is not None:
            use_cache = False
            if decoder_input_ids is None and decoder_inputs_embeds is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            if self.training and decoder_input_ids is not None:
                decoder_input_ids, encoder_outputs = scheduled_inputs(
                    self,
                    decoder_input_ids,
                    decoder_attention_mask,
                    encoder_outputs,
                    lambda: self.get_encoder()(input_ids, attention_mask, inputs_embeds, output_hidden_states),
                )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            cache=cache,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_attentions=shows_attentions or watched,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        readout = drop(outputs.last_hidden_state, config.dropout, self.training, config.variational_dropout)
        skip = skip_logits and labels is not None
        copying, logits = outputs.copying, None
        if not skip:
            last = copying.last(logits_to_keep) if copying and logits_to_keep else copying
            logits = self.score_words(readout[:, -logits_to_keep:], last)
        loss, figures = None, None
        if labels is not None:
            items = (labels != IGNORED_LABEL).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            nats = self._loss(readout, copying, labels, None if logits_to_keep else logits)
            loss = nats / items
        if watched:
            penalty, figures = attention_terms(nats, outputs.cross_attentions[0], labels, alignments, config)
            loss = loss + penalty / items if supervised else loss
        output = RnnSeq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.decoder_hidden_states,
            cross_attentions=outputs.cross_attentions if shows_attentions else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            figures=figures if output_figures else None,
        )
        return output if return_dict else output.to_tuple()

    def score_words(self, readout: Tensor, copying: Copying | None = None) -> Tensor:
        """Logits (batch, target, vocab); of a model with `copy_mechanism` the log-probabilities, copies included."""
        logits = self.lm_head(readout)
        return logits if copying is None else mixture(logits, copying)

    def _loss(self, readout: Tensor, copying: Copying | None, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Cross entropy summed over the positions that have a label; the default loss of transformers shifts them.

        Outside training it is a function of the `logits` that are returned, as with every model of transformers.
        """
        if labels.shape != readout.shape[:2]:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)}: must be (batch, target) = {tuple(readout.shape[:2])}"
            )
        smoothing = self.config.label_smoothing if self.training else 0.0
        budget = self.config.logits_memory_mb * 2**20
        if logits is not None and not self.training:
            return logits_loss(logits, labels, budget)
        if copying is None:
            return output_loss(readout, self.lm_head, labels, smoothing, budget)
        return copy_loss(readout, self.lm_head, copying, labels, smoothing, budget)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (batch, target) moved right by one behind `decoder_start_token_id`; -100 becomes the pad token."""
        return shift_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    # ---------------------------------------------------------------- generate()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The default cache holds keys and values of self-attention; ours is made below."""
        return False

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        """Puts an `RnnSeq2SeqCache` in place before the first step, unless the caller gave one or wants none."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = RnnSeq2SeqCache()
            # What an assistant proposes is taken back where it was wrong. The assisted model's cache records as well:
            # the decoding itself sees to that.
            if generation_config.is_assistant:
                model_kwargs["cache"].activate_past_recording()

    def _expand_inputs_for_generation(self, *args: object, **kwargs: object) -> tuple[Tensor, dict[str, object]]:
        """Repeats rows for beams, in a copy of the encoder's output: transformers writes into the caller's own."""
        if isinstance(kwargs.get("encoder_outputs"), dict):
            kwargs["encoder_outputs"] = copy.copy(kwargs["encoder_outputs"])
        return super()._expand_inputs_for_generation(*args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: RnnSeq2SeqCache | None = None,
        **kwargs: object,
    ) -> dict[str, object]:
        """The target words that the cache has not read yet, and everything else as it is.

        Raises:
            ValueError: the cache has read them all; it is continued with the whole sequence, its start included.
        """
        read = 0 if cache is None else cache.get_seq_length()
        if input_ids.shape[1] <= read:
            raise ValueError(
                f"decoder_input_ids of {input_ids.shape[1]} tokens: the cache has read {read}; hand over the whole "
                "sequence, of which at least the last token is new to it"
            )
        inputs = {key: value for key, value in kwargs.items() if key not in ("is_first_iteration", "labels")}
        if inputs.get("encoder_outputs") is not None:
            inputs.pop("inputs_embeds", None)
        return {"decoder_input_ids": input_ids[:, read:], "cache": cache, **inputs}


__all__ = ["RnnSeq2SeqForConditionalGeneration", "RnnSeq2SeqModel", "RnnSeq2SeqPreTrainedModel"]
