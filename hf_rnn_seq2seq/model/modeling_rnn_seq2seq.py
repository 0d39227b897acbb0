"""The recurrent encoder-decoder with an output layer: `forward` with a loss, and `generate()`."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.utils import can_return_tuple

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .copying import Copying, copy_loss, mixture
from .decoder_state import CachedGenerationMixin, RnnSeq2SeqCache
from .dropout import drop, dropout_mask
from .encoder_decoder import RnnSeq2SeqModel, RnnSeq2SeqModelOutput, shift_right
from .hard_attention import Alignment, Marginal, marginal
from .loss import IGNORED_LABEL, attention_terms, figure_names, logits_loss, output_loss, word_losses
from .matmul import Linear
from .pretrained import RnnSeq2SeqPreTrainedModel, VocabularyMixin
from .scheduled_sampling import mix_inputs, scheduled_truth
from .search import SearchMixin
from .search_options import limit_length

# An argument of `RnnSeq2SeqModel.encode`.
Source = Tensor | BaseModelOutput | tuple | bool | None


@dataclass
class RnnSeq2SeqLMOutput(Seq2SeqLMOutput):
    """As its base class, and numbers for the training log.

    Args:
        figures: (figures, 2), the sum and the count of each of the model's `training_figures`, with `output_figures`.
    """

    figures: Tensor | None = None


class RnnSeq2SeqForConditionalGeneration(
    SearchMixin, VocabularyMixin, RnnSeq2SeqPreTrainedModel, CachedGenerationMixin
):
    """The recurrent encoder-decoder with an output layer over the target vocabulary.

    `generate()` keeps the decoder's state in an `RnnSeq2SeqCache`. Assisted decoding can take tokens back exactly, since
    the cache can record the state before each token.
    """

    _base_class = "modeling_rnn_seq2seq.RnnSeq2SeqModel"

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.model = RnnSeq2SeqModel(config)
        self.main_input_name = self.model.main_input_name
        self.lm_head = Linear(config.readout_width, config.vocab_size, bias=config.output_bias)
        self._tied_weights_keys = self._ties() or None
        self.post_init()
        # Without a length generate() stops at 20 tokens, which cuts ordinary sentences.
        limit_length(self.generation_config, 128)
        # Runtime state, not saved.
        self.training_progress = 0

    def set_training_progress(self, step: int) -> None:
        """Sets the number of updates so far, for `scheduled_sampling`; a training loop calls it before each update."""
        self.training_progress = step

    @property
    def training_figures(self) -> tuple[str, ...]:
        """Names of the `figures` that forward returns with `output_figures`.

        `attention_entropy` in nats; if the attention has losses of its own, these without their weights, and `ml_loss`, the
        loss without them.
        """
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

    # Opaque to torch.compile like the base model: with the output layer alone a step is as fast as without compilation.
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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int = 0,
        skip_logits: bool = False,
        alignments: Tensor | None = None,
        output_figures: bool = False,
        pixel_values: Tensor | None = None,
        **kwargs: object,
    ) -> RnnSeq2SeqLMOutput:
        """As `RnnSeq2SeqModel.forward`, and scores the vocabulary.

        Args:
            labels: (batch, target), the words to predict; -100 is ignored. Without `decoder_input_ids` the decoder
                reads them shifted right by one, after `decoder_start_token_id`.
            num_items_in_batch: the loss is the sum over label words divided by this; None: by their number in the batch.
            logits_to_keep: score only the last positions, this many; 0 scores all.
            skip_logits: with labels, do not compute the logits of every position, and return None for them. The loss then
                projects only the positions that have a label (on a CPU; on a device their number would have to be read
                back): about twice as fast on ragged batches, and smaller by (batch, target, vocab).
            alignments: (batch, target, source), for each label the weight of each source word, in any scale; a row of
                zeros has no effect. Needed in training with `guided_alignment_weight`.
            output_figures: with labels, return `figures` too.

        Returns:
            `loss` (with labels: cross entropy in nats per word; in training smoothed by `label_smoothing`, plus the
            weighted losses of the attention; in evaluation a function of `logits`), `logits` (batch, target, vocab) or
            None, and the outputs of the base model. With hard attention `cross_attentions` are p(a_t = j | y_<t), exactly: the
            probability of each source position before the word is known.

        Raises:
            ValueError: labels do not have the shape of the decoder's input, or alignments are missing or have another shape.
        """
        config = self.config
        if not isinstance(logits_to_keep, int) or logits_to_keep < 0:
            raise ValueError(f"logits_to_keep={logits_to_keep}: must be a number of last positions, or 0 for all")
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        reads_attention = labels is not None and self._reads_attention(alignments, output_figures)
        source = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "inputs_embeds": inputs_embeds,
            "encoder_outputs": encoder_outputs,
            "output_hidden_states": output_hidden_states,
            "pixel_values": pixel_values,
        }
        if labels is not None:
            use_cache = False
            if decoder_inputs_embeds is None:
                decoder_input_ids, source = self._decoder_inputs(
                    labels, decoder_input_ids, decoder_attention_mask, source
                )
        outputs = self.model(
            **source,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            cache=cache,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions or reads_attention,
            return_dict=True,
            **kwargs,
        )
        shape = outputs.last_hidden_state.shape[:2]
        if labels is not None and labels.shape != shape:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: must be (batch, target) = {tuple(shape)}")
        sampled = None
        if outputs.alignment is None:
            readout = drop(outputs.last_hidden_state, config.dropout, self.training, config.variational_dropout)
            logits, nats = self._score(readout, outputs.copying, labels, skip_logits, logits_to_keep)
            if self.training and labels is not None and outputs.read is not None:
                sampled = self._sampled_loss(readout, outputs, labels)
        else:
            logits, nats = self._score_positions(outputs, cache, labels, skip_logits, logits_to_keep)
        loss, figures = None, None
        if labels is not None:
            weights = outputs.cross_attentions[0] if reads_attention else None
            loss, figures = self._losses(
                nats, weights, labels, alignments, num_items_in_batch, outputs.source_mask, sampled
            )
        return RnnSeq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.decoder_hidden_states,
            cross_attentions=outputs.cross_attentions if output_attentions else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            figures=figures if output_figures else None,
        )

    def _reads_attention(self, alignments: Tensor | None, output_figures: bool) -> bool:
        """Whether the loss or the figures read the attention weights."""
        config = self.config
        if not (self.training and config.supervises_attention):
            return output_figures and config.context == "attention"
        if config.guided_alignment_weight and alignments is None:
            raise ValueError(
                f"alignments=None: guided_alignment_weight={config.guided_alignment_weight} needs them in training"
            )
        return True

    def _decoder_inputs(
        self, labels: Tensor, decoder_input_ids: Tensor | None, mask: Tensor | None, source: dict[str, Source]
    ) -> tuple[Tensor, dict[str, Source]]:
        """The words that the decoder reads, (batch, target), and `source`, with the encoder's output if it was computed.

        By default they are the shifted labels; in training `scheduled_sampling` may replace some by the model's words.

        Args:
            source: the arguments of `RnnSeq2SeqModel.encode`.
        """
        if decoder_input_ids is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        truth = scheduled_truth(self, decoder_input_ids) if self.training else None
        if truth is None:
            return decoder_input_ids, source
        encoder_outputs = self.model.encode(**source)
        mixed = mix_inputs(self, decoder_input_ids, truth, mask, encoder_outputs)
        return mixed, source | {"encoder_outputs": encoder_outputs}

    def _losses(
        self,
        nats: Tensor,
        weights: Tensor | None,
        labels: Tensor,
        alignments: Tensor | None,
        num_items_in_batch: Tensor | int | None,
        source_mask: Tensor | None,
        sampled: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The loss per word with the weighted losses of the attention `weights`, (); and their figures, (figures, 2)."""
        items = num_items_in_batch
        if items is None:
            items = (labels != IGNORED_LABEL).sum().clamp(min=1)
        if weights is None:
            return nats / items, None
        penalty, figures = attention_terms(nats, weights, labels, alignments, self.config, source_mask, sampled)
        if self.training and self.config.supervises_attention:
            return nats / items + penalty / items, figures
        return nats / items, figures

    def score_words(self, readout: Tensor, copying: Copying | None = None) -> Tensor:
        """Logits (batch, target, vocab); of a model with `copy_mechanism` the log-probabilities, copies included."""
        logits = self.lm_head(readout)
        return logits if copying is None else mixture(logits, copying)

    def score_outputs(self, outputs: RnnSeq2SeqModelOutput) -> Tensor:
        """Logits (batch, target, vocab) of the base model's outputs; with hard attention its cache is completed."""
        if outputs.alignment is None:
            return self.score_words(outputs.last_hidden_state, outputs.copying)
        found = self.sum_positions(outputs.alignment)
        if found.after is not None and outputs.cache is not None:
            outputs.cache.carry(found.after)
        return found.scores

    def sum_positions(self, alignment: Alignment, dropout: Tensor | None = None, **labels: object) -> Marginal:
        """The log-probabilities of a model with hard attention, and its alignment; see `hard_attention.marginal`."""
        budget = self.config.logits_memory_mb * 2**20
        return marginal(alignment, self.model.decoder.readout, self.lm_head, budget, dropout=dropout, **labels)

    def _score(
        self, readout: Tensor, copying: Copying | None, labels: Tensor | None, skip_logits: bool, logits_to_keep: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits, and with labels their summed cross entropy; arguments as `forward`, the readout with its dropout."""
        logits = None
        if labels is None or not skip_logits:
            last = copying.last(logits_to_keep) if copying and logits_to_keep else copying
            logits = self.score_words(readout[:, -logits_to_keep:], last)
        if labels is None:
            return logits, None
        return logits, self._cross_entropy(readout, copying, labels, None if logits_to_keep else logits)

    def _sampled_loss(self, readout: Tensor, outputs: RnnSeq2SeqModelOutput, labels: Tensor) -> Tensor:
        """The loss of a sampled attention in training, summed over the batch; the readout is that of the word losses."""
        config = self.config
        size = max(1, config.logits_memory_mb * 2**20 // (config.vocab_size * torch.float32.itemsize))
        losses = word_losses(readout, self.lm_head, labels, config.label_smoothing, size)
        real = labels.to(losses.device) != IGNORED_LABEL
        return self.model.decoder.sampler.loss(outputs.cross_attentions[0], outputs.read, losses, real)

    def _score_positions(
        self,
        outputs: RnnSeq2SeqModelOutput,
        cache: RnnSeq2SeqCache | None,
        labels: Tensor | None,
        skip_logits: bool,
        logits_to_keep: int,
    ) -> tuple[Tensor | None, Tensor | None]:
        """As `_score` of a model with hard attention; the weights in `outputs` become those of the alignment."""
        config, parts = self.config, outputs.alignment
        smoothing = config.label_smoothing if self.training else 0.0
        mask = None
        if self.training and config.dropout:
            rows, length = parts.target.shape[:2]
            like = parts.target.new_empty(rows, 1 if config.variational_dropout else length, config.readout_width)
            mask = dropout_mask(like, config.dropout)
        # Without logits the state that the cache needs is not computed.
        alone = labels is not None and skip_logits and parts.before is None
        given = {"labels": labels.to(parts.target.device), "smoothing": smoothing} if alone else {}
        found = self.sum_positions(parts, mask, **given)
        cache = outputs.cache if cache is None else cache
        if found.after is not None and cache is not None:
            cache.carry(found.after)
        if outputs.cross_attentions is not None:
            outputs.cross_attentions = (found.weights,)
        if alone:
            return None, -found.scores.sum()
        nats = None
        if labels is not None:
            nats = logits_loss(found.scores, labels, config.logits_memory_mb * 2**20, smoothing)
        return None if skip_logits and labels is not None else found.scores[:, -logits_to_keep:], nats

    def _cross_entropy(self, readout: Tensor, copying: Copying | None, labels: Tensor, logits: Tensor | None) -> Tensor:
        """Cross entropy summed over the positions that have a label; the default loss of transformers shifts them.

        In evaluation it is a function of the returned `logits`, as for every model of transformers.
        """
        smoothing = self.config.label_smoothing if self.training else 0.0
        budget = self.config.logits_memory_mb * 2**20
        if logits is not None and not self.training:
            return logits_loss(logits, labels, budget)
        if copying is None:
            return output_loss(readout, self.lm_head, labels, smoothing, budget)
        return copy_loss(readout, self.lm_head, copying, labels, smoothing, budget)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Labels (batch, target) shifted right by one, after `decoder_start_token_id`; -100 becomes the pad token."""
        return shift_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    # ---------------------------------------------------------------- generate()

    def _expand_inputs_for_generation(self, *args: object, **kwargs: object) -> tuple[Tensor, dict[str, object]]:
        """Repeats rows for beams in a copy of the encoder's output; transformers would write into the caller's."""
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
        """The target words that the cache has not read yet, and the other arguments unchanged.

        Raises:
            ValueError: the cache has read them all.
        """
        read = 0 if cache is None else cache.get_seq_length()
        if input_ids.shape[1] <= read:
            raise ValueError(
                f"decoder_input_ids of {input_ids.shape[1]} tokens: the cache has read {read}; pass the whole "
                "sequence, with at least one token more than the cache has read"
            )
        inputs = {key: value for key, value in kwargs.items() if key not in ("is_first_iteration", "labels")}
        if inputs.get("encoder_outputs") is not None:
            for name in ("inputs_embeds", "pixel_values"):
                inputs.pop(name, None)
        return {"decoder_input_ids": input_ids[:, read:], "cache": cache, **inputs}
