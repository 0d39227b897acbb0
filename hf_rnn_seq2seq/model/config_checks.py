"""The checks of a configuration: the version of transformers first, then each field, and combinations of fields."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar, get_args, get_origin

import transformers

LOWEST_TRANSFORMERS = "5.24"

# Before anything is imported that an older version lacks.
if tuple(map(int, transformers.__version__.split(".")[:2])) < tuple(map(int, LOWEST_TRANSFORMERS.split("."))):
    raise ImportError(
        f"transformers {transformers.__version__}: hf_rnn_seq2seq needs {LOWEST_TRANSFORMERS} or newer; "
        f"pip install 'transformers>={LOWEST_TRANSFORMERS}'"
    )

from huggingface_hub.errors import StrictDataclassError  # noqa: E402

C = TypeVar("C", bound=type)


class ConfigError(ValueError):
    """A config field has a value that cannot work; the message has the field, its value and what is allowed."""


def plain_errors(cls: C) -> C:
    """Makes a `@strict` config class raise `ConfigError`.

    `@strict` wraps the error of a check in a class that is not a ValueError, with a message of two lines that names a
    method.
    """
    checked_setattr, checks = cls.__setattr__, cls.validate

    def __setattr__(self: object, name: str, value: object) -> None:
        if isinstance(value, str):
            value = ALIASES.get((name, value), value)
        try:
            checked_setattr(self, name, value)
        except StrictDataclassError:
            raise ConfigError(f"{name}={value!r}: must be {_allowed(cls.__dataclass_fields__[name].type)}") from None

    cls.__setattr__ = __setattr__
    cls.validate = _unwrapped(checks)
    return cls


def _unwrapped(checks: Callable[[object], None]) -> Callable[[object], None]:
    # `@strict` recognizes its own method by an attribute; `wraps` copies it, so that a subclass can be strict too.
    @functools.wraps(checks)
    def validate(self: object) -> None:
        try:
            checks(self)
        except StrictDataclassError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, ConfigError) else ConfigError(str(cause)) from None

    return validate


def _allowed(annotation: object) -> str:
    """The values that a field's annotation allows, in words."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if get_origin(annotation) is list:
        return str(annotation)
    if parts:
        return " or ".join(_allowed(part) for part in parts)
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


ALIASES = {("attention_type", "concat"): "additive"}

# Names of the scores of this package, and the classes of a user's own, which `register_attention` adds.
ATTENTION_NAMES = {
    "additive",
    "concat",
    "dot",
    "general",
    "location",
    "multi_head",
    "multi_head_additive",
    "normed_additive",
    "scaled_dot",
    "window",
}
REGISTERED: dict[str, type] = {}

# Scores v . tanh(W_q h + W_k s): coverage is added to the key.
ADDITIVE_NAMES = ("additive", "normed_additive")

# Scores with parameters for several heads; every other score has one.
MULTI_HEAD_NAMES = frozenset({"multi_head", "multi_head_additive"})

# Options of the attention, and their values without attention.
ATTENTION_DEFAULTS = {
    "attention_window": "global",
    "input_feeding": False,
    "attention_normalization": "softmax",
    "attention_alignment": "soft",
    "coverage": "none",
    "context_gate": "none",
    "coverage_loss": 0,
    "doubly_stochastic": 0,
    "guided_alignment_weight": 0,
}

# What hard attention excludes: the only value of each field that it allows, and the reason.
HARD_ATTENTION = {
    "attention_order": ("after_cell", "the cell would need one context"),
    "input_feeding": (False, "there is no single context or attentional vector to feed back"),
    "context_layers": ("first", "the layers would need one context"),
    "readout_context": (True, "the readout reads the source position"),
    "context_gate": ("none", "it gates one context"),
    "copy_mechanism": (False, "its gate reads one context"),
    "coverage": ("none", "it accumulates the weights of a soft average"),
    "attention_window": ("global", "the sum runs over all positions"),
    "attention_normalization": ("softmax", "a position without weight would have no gradient"),
}

# What a sampled attention excludes.
SAMPLED_ATTENTION = {
    "copy_mechanism": (False, "the weights themselves would be copied from"),
    "coverage": ("none", "it accumulates the weights of a soft average"),
}

# What the window excludes: its weights are no distribution, and it has no score that others could align.
WINDOW = {
    "attention_window": "global",
    "attention_normalization": "softmax",
    "attention_alignment": "soft",
    "copy_mechanism": False,
    "coverage_loss": 0,
    "doubly_stochastic": 0,
    "guided_alignment_weight": 0,
}

# The regions of a picture have no order from left to right.
PICTURES = {"attention_window": "global", "attention_alignment": ("soft", "hard", "sampled")}


# Fields that are sizes, and those that are probabilities below 1, of any configuration.
SIZES = ("vocab_size", "source_vocab_size", "embedding_size", "hidden_size", "encoder_hidden_size")
SIZES += ("decoder_layers", "encoder_transition_depth", "decoder_transition_depth")
SIZES += ("decoder_upper_transition_depth", "context_size", "attention_size", "num_attention_heads")
SIZES += ("attention_window_size", "max_source_positions", "residual_start", "readout_size")
SIZES += ("initializer_range", "logits_memory_mb", "coverage_size", "attention_hops", "classifier_size")
RATES = ("dropout", "recurrent_dropout", "weight_drop", "zoneout", "zoneout_cell", "word_dropout", "label_smoothing")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
TOKENS += ("sentence_token_id",)


class RecurrenceChecks:
    """The checks of every configuration: each method `validate_...` runs when one is made, and raises `ConfigError`."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, object], **kwargs: object) -> object:
        """As in transformers, which does not check the fields that `kwargs` overrides."""
        made = super().from_dict(config_dict, **kwargs)
        (made[0] if isinstance(made, tuple) else made).validate()
        return made

    def require(self, allowed: Mapping[str, object], reason: str) -> None:
        """Raises ConfigError, with the `reason`, for the first of these fields that has not the one allowed value."""
        for name, wanted in allowed.items():
            if (value := getattr(self, name)) != wanted:
                raise ConfigError(f"{name}={value!r}: {reason}; must be {wanted!r}")

    def validate_sizes(self) -> None:
        """Widths, depths and probabilities are in their ranges, and every number is finite."""
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{name}={value!r}: must be a finite number")
        for name in SIZES:
            value = getattr(self, name, None)
            if value is not None and value <= 0:
                raise ConfigError(f"{name}={value!r}: must be greater than 0")
        for name in RATES:
            value = getattr(self, name, None)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"{name}={value!r}: must be in [0, 1)")
        for name in TOKENS:
            value = getattr(self, name, None)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ConfigError(f"{name}={value!r}: must be in [0, vocab_size={self.vocab_size})")

    def validate_cells(self) -> None:
        """Options of one cell go with it, and a residual connection has a layer below."""
        if self.gru_reset == "before" and self.cell_type != "gru":
            raise ConfigError(f"gru_reset='before': only cell_type='gru' has a reset gate, not {self.cell_type!r}")
        if self.cell_type != "lstm":
            self.require({"zoneout_cell": None}, "only cell_type='lstm' has a cell")
        if self.residual_start is not None and self.residual_start < 2:
            raise ConfigError(f"residual_start={self.residual_start}: must be 2 or more; layer 1 reads word vectors")


class ConfigChecks(RecurrenceChecks):
    """The checks of `RnnSeq2SeqConfig`."""

    def validate_sizes(self) -> None:
        """As every configuration with an encoder, and both vocabularies have the pad token."""
        super().validate_sizes()
        if self.encoder is None and self.pad_token_id is not None and self.pad_token_id >= self.source_vocab_size:
            raise ConfigError(
                f"pad_token_id={self.pad_token_id}: must be in [0, source_vocab_size={self.source_vocab_size}), "
                "both vocabularies share it"
            )

    def validate_scheduled_sampling(self) -> None:
        """Ratio, schedule and its parameters fit together."""
        for name in ("teacher_forcing_ratio", "scheduled_sampling_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be in [0, 1]")
        kind, decay = self.scheduled_sampling, self.scheduled_sampling_decay
        if kind == "none":
            unread = {"scheduled_sampling_decay": None, "scheduled_sampling_floor": 0}
            return self.require(unread, "only a schedule reads it, and scheduled_sampling is 'none'")
        fits = {"linear": "above 0", "exponential": "above 0 and below 1", "inverse_sigmoid": "1 or more"}[kind]
        if (
            decay is None
            or decay <= 0
            or (kind == "exponential" and decay >= 1)
            or (kind == "inverse_sigmoid" and decay < 1)
        ):
            raise ConfigError(f"scheduled_sampling_decay={decay!r}: scheduled_sampling={kind!r} needs {fits}")
        if kind != "linear":
            self.require({"teacher_forcing_ratio": 1.0}, f"scheduled_sampling={kind!r} decides the ratio itself")

    def validate_foreign_encoder(self) -> None:
        """A foreign encoder fits the options that read the source."""
        super().validate_foreign_encoder()
        if self.encoder is None:
            return
        kind = f"encoder={self.encoder.model_type!r}"
        alone = f"not with {kind}, the source's word vectors are its own"
        self.require({"share_encoder_decoder_embeddings": False}, alone)
        if self.reads_images:
            for name, allowed in PICTURES.items():
                values = allowed if isinstance(allowed, tuple) else (allowed,)
                if (value := getattr(self, name)) not in values:
                    raise ConfigError(
                        f"{name}={value!r}: not with {kind}, which reads pictures: regions have no order from left to "
                        f"right; must be {' or '.join(map(repr, values))}"
                    )
        if self.encoder_layers:
            return
        if self.bridge not in ("mean", "zero"):
            raise ConfigError(
                f"bridge={self.bridge!r}: reads the final states of a recurrent layer, encoder_layers=0 has none; must be 'mean' "
                "or 'zero'"
            )
        if self.context == "every_step":
            raise ConfigError(
                "context='every_step': is the final state of a recurrent layer, encoder_layers=0 has none; set encoder_layers=1"
            )

    def validate_attention(self) -> None:
        """The score is known and fits sizes, window and heads."""
        if self.attention_type not in (known := {*ATTENTION_NAMES, *REGISTERED}):
            raise ConfigError(
                f"attention_type={self.attention_type!r}: must be one of {sorted(known)}, "
                "or be registered first with register_attention(name, cls), on the command line by --import FILE"
            )
        if self.context != "attention":
            self.require(ATTENTION_DEFAULTS, "only context='attention' reads it")
            if self.context_layers == "all" and self.context == "initial_state":
                raise ConfigError("context_layers='all': context='initial_state' gives the layers no context")
            return
        if self.attention_type in ("dot", "scaled_dot") and self.encoder_output_size != self.hidden_size:
            raise ConfigError(
                f"attention_type={self.attention_type!r}: the encoder's states ({self.encoder_output_size} wide"
                f"{': encoder_hidden_size times directions' if self.encoder_layers else ''}) must be as wide as hidden_size={self.hidden_size}"
            )
        if self.attention_type == "location" and self.max_source_positions is None:
            raise ConfigError("max_source_positions=None: attention_type='location' needs the longest source length")
        if self.attention_type in MULTI_HEAD_NAMES:
            if self.attention_size % self.num_attention_heads:
                raise ConfigError(
                    f"num_attention_heads={self.num_attention_heads}: must divide attention_size={self.attention_size}"
                )
        elif self.num_attention_heads != 1:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads}: attention_type={self.attention_type!r} has one head; "
                f"several need one of {sorted(MULTI_HEAD_NAMES)}"
            )

    def validate_window(self) -> None:
        """The soft window is an attention by itself."""
        if self.attention_type != "window" or self.context != "attention":
            return self.require({"window_components": 10}, "only attention_type='window' reads it")
        if self.window_components <= 0:
            raise ConfigError(f"window_components={self.window_components}: must be greater than 0")
        self.require(WINDOW, "not with attention_type='window', whose weights are no distribution")

    def validate_alignment(self) -> None:
        """Hard attention has one state of the source where soft attention has a context."""
        if self.alignment_order not in (0, 1):
            raise ConfigError(f"alignment_order={self.alignment_order!r}: must be 0 or 1")
        if self.alignment_order and self.attention_alignment != "monotonic":
            raise ConfigError(
                f"alignment_order=1: needs attention_alignment='monotonic', not {self.attention_alignment!r}"
            )
        weights = {"sampled_attention_reward": 1, "sampled_attention_entropy": 0}
        if self.attention_alignment != "sampled":
            self.require(weights, "only attention_alignment='sampled' reads it")
        for name in weights:
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be 0 or more")
        if self.attention_alignment == "soft" or self.context != "attention":
            return
        hard = f"attention_alignment={self.attention_alignment!r}"
        excluded = SAMPLED_ATTENTION if self.samples_attention else HARD_ATTENTION
        for name, (allowed, reason) in excluded.items():
            self.require({name: allowed}, f"not with {hard}, {reason}")
        if self.samples_attention:
            if self.attention_window == "local_p":
                raise ConfigError(
                    f"attention_window='local_p': not with {hard}, whose weights are probabilities, and the Gaussian leaves "
                    "no sum of 1; must be 'global' or 'local_m'"
                )
            return
        if self.attention_type in MULTI_HEAD_NAMES:
            raise ConfigError(
                f"attention_type={self.attention_type!r}: not with {hard}, whose word comes from one position; choose a "
                "score of one head"
            )
        if self.readout_size is None:
            raise ConfigError(f"{hard}: needs a readout that projects; readout_size=None, set it")

    def validate_copying(self) -> None:
        """Copying needs attention weights and one vocabulary for both sides."""
        if not self.copy_mechanism:
            return
        if self.context != "attention":
            raise ConfigError(
                f"copy_mechanism=True: needs context='attention', whose weights are the copy distribution, not {self.context!r}"
            )
        if self.source_vocab_size != self.vocab_size:
            raise ConfigError(
                f"copy_mechanism=True: needs one vocabulary for both sides, source_vocab_size={self.source_vocab_size} "
                f"must equal vocab_size={self.vocab_size}"
            )

    def validate_weights(self) -> None:
        """Normalization, coverage and auxiliary losses fit the score."""
        if self.attention_normalization != "entmax":
            self.require(
                {"entmax_alpha": 1.5, "entmax_learned": False}, "only attention_normalization='entmax' reads it"
            )
        if not self.entmax_alpha > 1:
            raise ConfigError(f"entmax_alpha={self.entmax_alpha!r}: must be greater than 1, which would be softmax")
        if self.entmax_learned and self.entmax_alpha >= 2:
            raise ConfigError(f"entmax_alpha={self.entmax_alpha!r}: entmax_learned=True keeps it between 1 and 2")
        if self.coverage != "none" and self.attention_type not in ADDITIVE_NAMES:
            raise ConfigError(
                f"coverage={self.coverage!r}: enters an additive score; attention_type must be one of "
                f"{', '.join(map(repr, ADDITIVE_NAMES))}, not {self.attention_type!r}"
            )
        for name in ("coverage_loss", "doubly_stochastic", "guided_alignment_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)!r}: must be 0 or more")
        if self.coverage != "gru":
            self.require({"coverage_size": 10}, "only coverage='gru' reads it")

    def validate_context_gate(self) -> None:
        """The context enters at one place, which the gate can act on."""
        if self.context_gate in ("none", "scalar") or self.context != "attention":
            return  # a scaled context may enter anywhere
        name = f"context_gate={self.context_gate!r}"
        if self.context_layers == "all":
            raise ConfigError(f"{name}: gates the context of one layer, not of context_layers='all'")
        if self.attention_order == "after_cell":
            if not self.readout_context or self.readout_size is None:
                raise ConfigError(
                    f"{name}: with attention_order='after_cell' it gates the readout, which must read the context "
                    f"(readout_context={self.readout_context}) and project it (readout_size={self.readout_size})"
                )
        elif self.layer_norm or self.gru_reset == "before" or self.decoder_transition_depth > 1:
            raise ConfigError(
                f"{name}: with attention_order='before_cell' it gates the products of a plain cell, without layer_norm, "
                "gru_reset='before' or a decoder_transition_depth above 1"
            )

    def validate_decoder(self) -> None:
        """Order, feeding, context and readout fit together."""
        if self.input_feeding and self.attention_order == "before_cell":
            raise ConfigError(
                "input_feeding=True: with attention_order='before_cell' the context enters the cell already"
            )
        attention_after = self.context == "attention" and self.attention_order == "after_cell"
        if self.context_layers == "all" and attention_after and self.attention_layer == "top":
            raise ConfigError("context_layers='all': attention after the top layer comes too late for the layers below")
        if self.attends_between_cells and self.decoder_layers > 1 and self.attention_layer == "top":
            raise ConfigError(
                f"decoder_transition_depth={self.decoder_transition_depth}: with attention_order='before_cell' the "
                f"context enters the first layer's second cell, so attention_layer must be 'bottom', not 'top' of "
                f"decoder_layers={self.decoder_layers}"
            )
        if not self.readout_context and attention_after:
            alone = self.attention_layer == "top" or self.decoder_layers == 1
            fed = self.input_feeding and not (alone and self.readout == "tanh")
            if not fed and (alone or self.context_layers == "first"):
                raise ConfigError(
                    "readout_context=False: with attention_order='after_cell' nothing would read the context"
                )
        if self.readout_state == "previous" and attention_after:
            raise ConfigError("readout_state='previous': attention_order='after_cell' reads the current state")
        if self.readout_state == "previous" and self.residual_start and self.residual_start <= self.decoder_layers:
            raise ConfigError("readout_state='previous': the previous state is not kept with a residual top layer")
        if self.context != "every_step":
            self.require({"context_size": None}, "only context='every_step' projects the final state")

    def validate_bridge(self) -> None:
        """The encoder computes what the bridge reads."""
        if not self.encoder_layers:
            return
        if self.bridge == "backward_tanh" and self.encoder_directions(self.encoder_layers) != 2:
            raise ConfigError(f"bridge='backward_tanh': needs a bidirectional top layer, not {self.bidirectional!r}")
        if self.bridge == "backward_tanh" and self.bidirectional == "alternating":
            raise ConfigError("bridge='backward_tanh': no stack of bidirectional='alternating' is the backward one")
        if self.bridge == "copy":
            widths = [self.encoder_hidden_size * self.encoder_directions(i + 1) for i in range(self.encoder_layers)]
            if self.encoder_layers != self.decoder_layers or set(widths) != {self.hidden_size}:
                raise ConfigError(
                    f"bridge='copy': the encoder's layers (widths {widths}) must be those of the decoder "
                    f"({self.decoder_layers} of width {self.hidden_size}); bridge='dense' projects them"
                )

    def validate_features(self) -> None:
        """Features are words of the source, and the encoder has vectors of them."""
        features = self.feature_token_ids
        if features is None:
            return
        if self.encoder is not None:
            raise ConfigError(
                f"feature_token_ids={features}: not with encoder={self.encoder.model_type!r}, its words are its own"
            )
        special = {getattr(self, name) for name in ("pad_token_id", "bos_token_id", "decoder_start_token_id")}
        special |= {*self.eos_token_id} if isinstance(self.eos_token_id, list) else {self.eos_token_id}
        for token in features:
            if not 0 <= token < self.source_vocab_size:
                raise ConfigError(
                    f"feature_token_ids={features}: {token} must be in [0, source_vocab_size={self.source_vocab_size})"
                )
            if token in special:
                raise ConfigError(f"feature_token_ids={features}: {token} is a special token; must be another one")
        if not features:
            raise ConfigError("feature_token_ids=[]: names no token; leave it out")

    def validate_shared_tables(self) -> None:
        """Tables of both sides have one shape."""
        if self.share_encoder_decoder_embeddings and self.source_vocab_size != self.vocab_size:
            raise ConfigError(
                f"share_encoder_decoder_embeddings=True: source_vocab_size={self.source_vocab_size} "
                f"must equal vocab_size={self.vocab_size}"
            )
