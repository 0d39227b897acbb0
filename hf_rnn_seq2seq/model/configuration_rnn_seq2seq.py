"""Configuration of the recurrent encoder-decoder family: one set of fields spans the systems of the literature."""

import os
from pathlib import Path
from typing import Literal, Self

from .config_checks import LOWEST_TRANSFORMERS  # noqa: F401 - checks the library before its newer names are imported

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .config_checks import MULTI_HEAD_NAMES, REGISTERED, ConfigChecks, plain_errors
from .configuration_rnn_decoder import DecoderFields
from .configuration_rnn_decoder import DecoderWordFields
from .configuration_rnn_encoder import ENCODER_CONFIG, EncoderFields
from .foreign_encoder import encoder_config
from .own_code import carry_own_code
from .presets import PRESETS


@plain_errors
@strict
class RnnSeq2SeqConfig(ConfigChecks, EncoderFields, DecoderFields, DecoderWordFields, PreTrainedConfig):
    r"""Describes a recurrent encoder-decoder with selectable attention.

    Sizes are in units (vector widths) or tokens; probabilities are in [0, 1). In addition to the fields below it has those of
    `RecurrenceFields` (cells and dropout, both sides), `EncoderFields`, `DecoderFields` (layers and readout) and
    `DecoderWordFields`.

    Args:
        vocab_size: Size of the TARGET vocabulary; `generate()` reshapes logits with it.
        source_vocab_size: Size of the source vocabulary; None means the target's, or that of `encoder`, which is None for
            pictures.
        feature_token_ids: Source tokens that say something of the whole source and are no part of it: features (`V`, `PST`),
            a language. The encoder reads the others, each vector beside the sum of the features' vectors (for a language
            Peters and Martins 2020, section 2.4). None: all are read one after the other.
        context: How the decoder reads the source: by its `initial_state` only (Sutskever 2014), by a fixed vector at
            `every_step` (Cho 2014), or by `attention`.
        context_size: With `every_step`: width of c = tanh(V h) (Cho 2014, appendix A). None: c is the
            encoder's final state.
        context_layers: Whether the context enters the `first` decoder layer or `all` of them (GNMT, section 3).
        attention_type: Name of the score: `additive` (or `concat`), `dot`, `general`, `location`, `scaled_dot`,
            `normed_additive`, `multi_head`, `multi_head_additive`, `window`, or one of `register_attention`.
        attention_order: `after_cell` (Luong 2015: the new state is the query) or `before_cell` (Bahdanau 2014: the
            previous state is the query and the context enters the cell).
        attention_layer: The decoder layer whose state is the query: `top`, or `bottom` (GNMT): then only that layer is in
            the time loop and the others run over the whole target at once.
        attention_size: Width of additive and multi-head scores; None means `hidden_size`.
        num_attention_heads: Heads of the multi-head scores; 1 for every other.
        attention_window: `global`, `local_m` or `local_p` (Luong 2015, section 3.2).
        attention_window_size: D of Luong 2015, section 3.2: positions looked at on each side of the center.
        attention_normalization: How scores become weights: `softmax`, or with exact zeros `sparsemax` (Martins and
            Astudillo 2016) or `entmax` (Peters 2019). The latter two are not covered by the scan and cost a time loop.
        entmax_alpha: Between softmax (1) and sparsemax (2); above 1.
        entmax_learned: Each head learns its alpha within (1, 2), starting from `entmax_alpha` (Correia 2019).
        attention_alignment: How the readout reads the source: the `soft` average of its states by the weights, or one state
            (`hard`, `monotonic`, `sampled`). For `hard` (Wu 2018) and `monotonic`, where no position is left of the one
            before (Wu and Cotterell 2019), words have the exact sum of their probabilities over all positions. Both need `after_cell`
            attention of one head without input feeding. `logits` are then log-probabilities. `sampled`: one state, the most
            likely one; in training it is drawn by the weights in half of the sentences, and the others read the average
            (Xu 2015, section 4.1). Each head reads its own. Costs a time loop with `before_cell` attention or input feeding.
        sampled_attention_reward: With `sampled`: lambda_r of Xu 2015, section 4.1, the weight of the gradient of REINFORCE.
            1 is that of the lower bound.
        sampled_attention_entropy: With `sampled`: lambda_e, the weight of the entropy of the weights, which keeps the draws
            apart.
        alignment_order: With `monotonic`: 0, the scores decide among the positions that remain; 1, a learned preference for
            the length of the step to the right is added. (0-MONO of Wu and Cotterell 2019; 1-MONO has the preference alone.)
        coverage: An additive score's memory of the source words it has read: `none`, the `sum` of their weights
            (See 2017, section 2.3), or a `gru` for each word (Tu 2016, section 3.1.2). Costs a time loop.
        coverage_size: Width of the memory of a word with `gru`.
        context_gate: Weighs the `source` part (the context), the `target` part (word and state) or `both` where the
            context enters: the cell with `before_cell` attention (Tu 2017, section 3), else the readout. Not covered
            by the scan: costs a time loop. `scalar` multiplies the context by a number between 0 and 1 that the query
            gives, wherever it enters (Xu 2015, section 4.2.1), and costs the loop too.
        coverage_loss: Weight in the training loss of the coverage loss, against repeated attention (See 2017, equation 12).
        doubly_stochastic: Weight in the training loss of sum_i (1 - sum_t a_ti)^2, against regions that no word looks at
            (Xu 2015, equation 14, whose lambda it is).
        guided_alignment_weight: Weight in the training loss of the cross entropy between `alignments` given to
            `forward` and the attention (Chen 2016).
        window_components: Gaussian functions of the `window` (Graves 2013, section 5.1), which only moves forward.
        max_source_positions: Longest source of the `location` score (Luong 2015, equation 8); required there.
        input_feeding: The attentional vector enters the next step (Luong 2015, section 3.3); the context does if the
            readout is not `tanh` or `attention_layer` is not the top layer. None: on for `soft` or `sampled` `after_cell` attention,
            off otherwise. With `after_cell` and without feeding the decoder needs no time loop.
        bridge: How the decoder state starts: `zero`, `copy` of the encoder's final states, or tanh of a projection: of the
            `mean` state, of the final states (`dense`), or of the backward one (`backward_tanh`). The last is of
            Bahdanau 2014, appendix A.2.2, and reads the backward encoder's state at the first word.
        readout_context: The readout reads the context, if there is one (GNMT's does not).
        readout_state: The readout reads the `current` state or the `previous` one (Bahdanau 2014).
        copy_mechanism: The output layer also copies words of the source, with a gate between the two (the
            pointer-generator, See 2017, section 2.2). Needs attention and one vocabulary for both sides. `logits` are then
            log-probabilities.
        teacher_forcing_ratio: Probability in [0, 1] that the decoder reads the true word in training, and not the
            word it predicts. Below 1 it costs a pass over the target without gradients.
        teacher_forcing_unit: Whether that is drawn for each `token` (Bengio 2015) or for each `sentence` (the PyTorch
            tutorial).
        scheduled_sampling: How the ratio falls over the updates (Bengio 2015, section 2.4): `none`, `linear` from
            `teacher_forcing_ratio`, `exponential` or `inverse_sigmoid`. The training loop sets the number of
            updates: `model.set_training_progress(step)`.
        scheduled_sampling_decay: `linear`: c, subtracted at each update; `exponential`: k below 1;
            `inverse_sigmoid`: k of 1 or more. Required with a schedule.
        scheduled_sampling_floor: A schedule does not fall below this.
        scheduled_sampling_words: The model's own word is the `argmax` of its distribution, or a `sample` from it.
        share_encoder_decoder_embeddings: One table of word vectors for both sides; needs one vocabulary size.
        decoder_recurrence: `auto` runs the fused scan over the target if it covers the options and the plain time
            loop otherwise; `scan` and `loop` force one of them. `model.get_decoder().recurrence_path` is the path in use.

    Raises:
        ConfigError: a field is out of range, misspelled, or cannot be combined with another; also on later assignment for
            type and choice errors.
    """

    model_type = "rnn_seq2seq"
    presets = PRESETS
    keys_to_ignore_at_inference = ["cache"]
    attribute_map = {"num_hidden_layers": "encoder_layers"}
    sub_configs_defaults = ENCODER_CONFIG

    vocab_size: int = 8000
    source_vocab_size: int | None = None
    feature_token_ids: list[int] | None = None
    context: Literal["initial_state", "every_step", "attention"] = "attention"
    context_size: int | None = None
    context_layers: Literal["first", "all"] = "first"
    attention_type: str = "general"
    attention_order: Literal["after_cell", "before_cell"] = "after_cell"
    attention_layer: Literal["top", "bottom"] = "top"
    attention_size: int | None = None
    num_attention_heads: int = 1
    attention_window: Literal["global", "local_m", "local_p"] = "global"
    attention_window_size: int = 10
    window_components: int = 10
    max_source_positions: int | None = None
    attention_normalization: Literal["softmax", "sparsemax", "entmax"] = "softmax"
    entmax_alpha: float | int = 1.5
    entmax_learned: bool = False
    attention_alignment: Literal["soft", "hard", "monotonic", "sampled"] = "soft"
    sampled_attention_reward: float | int = 1.0
    sampled_attention_entropy: float | int = 0.0
    alignment_order: int = 0
    coverage: Literal["none", "sum", "gru"] = "none"
    coverage_size: int = 10
    context_gate: Literal["none", "source", "target", "both", "scalar"] = "none"
    coverage_loss: float | int = 0.0
    doubly_stochastic: float | int = 0.0
    guided_alignment_weight: float | int = 0.0
    input_feeding: bool | None = None
    bridge: Literal["zero", "copy", "mean", "dense", "backward_tanh"] = "dense"
    readout_context: bool = True
    readout_state: Literal["current", "previous"] = "current"
    copy_mechanism: bool = False
    teacher_forcing_ratio: float | int = 1.0
    teacher_forcing_unit: Literal["token", "sentence"] = "token"
    scheduled_sampling: Literal["none", "linear", "exponential", "inverse_sigmoid"] = "none"
    scheduled_sampling_decay: float | int | None = None
    scheduled_sampling_floor: float | int = 0.0
    scheduled_sampling_words: Literal["argmax", "sample"] = "argmax"
    share_encoder_decoder_embeddings: bool = False
    decoder_recurrence: Literal["auto", "scan", "loop"] = "auto"
    use_cache: bool = True
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 1

    def __post_init__(self, **kwargs: object) -> None:
        self._refuse_unknown(kwargs)
        if self.encoder is not None:
            end = self.eos_token_id[0] if isinstance(self.eos_token_id, list) else self.eos_token_id
            words = {"vocab_size": self.source_vocab_size or self.vocab_size, "pad_token_id": self.pad_token_id}
            self.encoder = encoder_config(
                self.encoder, {**words, "bos_token_id": self.bos_token_id, "eos_token_id": end}
            )
        if self.source_vocab_size is None:
            self.source_vocab_size = self.foreign_vocab_size if self.encoder else self.vocab_size
        if self.encoder_hidden_size is None and self.encoder_layers:
            self.encoder_hidden_size = max(1, self.hidden_size // self.encoder_directions(self.encoder_layers))
        self.fill_decoder()
        if self.attention_size is None:
            self.attention_size = self.hidden_size
        if self.input_feeding is None:
            after_cell = self.context == "attention" and self.attention_order == "after_cell"
            self.input_feeding = after_cell and not self.aligns_hard
        super().__post_init__(**kwargs)
        # Before the other checks, which run by name and divide by some of the sizes.
        self.validate_sizes()

    @classmethod
    def from_preset(cls, name: str, **overrides: object) -> Self:
        """The configuration of a published system, e.g. `from_preset("bahdanau2014", vocab_size=8000)`.

        Sizes and options are the paper's, and each can be overridden. `help(hf_rnn_seq2seq.model.presets.NAME)` gives the
        section or equation behind each choice, where it departs from the paper, and what a training step costs.

        Args:
            name: One of

                * `sutskever2014`: Sutskever et al. 2014, Sequence to Sequence Learning with Neural Networks. 4 LSTM layers,
                  reversed source, no attention.
                * `cho2014`: Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder for Statistical
                  Machine Translation. GRU, one fixed vector at every step.
                * `bahdanau2014`: Bahdanau et al. 2014, Neural Machine Translation by Jointly Learning to Align and
                  Translate. GRU, additive attention before the cell.
                * `luong2015`: Luong et al. 2015, Effective Approaches to Attention-based Neural Machine Translation. 4 LSTM
                  layers, `general` attention after the cell, input feeding.
                * `gnmt2016`: Wu et al. 2016, Google's Neural Machine Translation System. 8 LSTM layers, the bottom one of
                  the decoder attends.
                * `rnmt_plus2018`: Chen et al. 2018, The Best of Both Worlds: Combining Recent Advances in Neural Machine
                  Translation. Layer-normalized LSTM, additive attention with 4 heads.
                * `bideep2017`: Miceli Barone et al. 2017, Deep Architectures for Neural Machine Translation. Deep
                  transitions, the attention between the first two cells.
                * `seminar`: the GRU of the PyTorch tutorial (Robertson, NLP from scratch), without attention.
                * `seminar_attention`: `seminar` with the dot attention of Luong et al. 2015.
                * `multi_head`: a recurrent decoder with the 8 heads of Vaswani et al. 2017, Attention Is All You Need.
                * `transformer_encoder`: the encoder of Vaswani et al. 2017 under a recurrent decoder.
                * `bert_encoder`: the encoder of Devlin et al. 2019, BERT: Pre-training of Deep Bidirectional Transformers for
                  Language Understanding, frozen, under recurrent layers; for `from_encoder_pretrained`.
                * `xu2015`: Xu et al. 2015, Show, Attend and Tell: Neural Image Caption Generation with Visual Attention. A
                  frozen network of pictures, additive attention before the cell over its regions, the gate beta.
            overrides: Fields of this class that replace the preset's; `help(RnnSeq2SeqConfig)` lists them with their
                defaults. `vocab_size` sets both vocabularies, unless `source_vocab_size` is given too. Sizes that a preset
                sets do not follow another one: a smaller `hidden_size` leaves its `encoder_hidden_size`, `context_size` and
                `readout_size`; what it does not set follows as always.

        Returns:
            a new configuration.

        Raises:
            ConfigError: no preset has this name, a field does not exist, or the fields are not valid together.
        """
        if "vocab_size" in overrides:
            overrides.setdefault("source_vocab_size", None)
        return super().from_preset(name, **overrides)

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """As in transformers; the file of an attention or a model of one's own is written next to it."""
        super().to_json_file(json_file_path, use_diff)
        carry_own_code(Path(json_file_path), REGISTERED.get(self.attention_type))

    @property
    def keeps_source_ids(self) -> bool:
        return self.copy_mechanism

    @property
    def context_width(self) -> int:
        """Width of the context the decoder reads at each step; 0 with `initial_state`."""
        if self.context == "initial_state":
            return 0
        if self.context == "every_step":
            return self.context_size or self.encoder_output_size
        return self.attention_size if self.attention_type in MULTI_HEAD_NAMES else self.encoder_output_size

    @property
    def attends_between_cells(self) -> bool:
        """Whether the attention is between the first cell and the second: the conditional GRU."""
        before = self.context == "attention" and self.attention_order == "before_cell"
        return before and self.decoder_transition_depth > 1

    @property
    def aligns_hard(self) -> bool:
        """Whether each word is produced from one source position, and the positions are summed out."""
        return self.attention_alignment in ("hard", "monotonic")

    @property
    def samples_attention(self) -> bool:
        """Whether one source position is read, drawn in training."""
        return self.context == "attention" and self.attention_alignment == "sampled"

    @property
    def supervises_attention(self) -> bool:
        """Whether the training loss has a term on the attention weights."""
        losses = self.coverage_loss or self.doubly_stochastic or self.guided_alignment_weight
        return bool(losses) or self.samples_attention

    @property
    def readout_input_width(self) -> int:
        """Width of the input of the readout."""
        context = self.context_width if self.readout_context else 0
        return self.readout_state_width + context + (self.embedding_size if self.readout_embedding else 0)
