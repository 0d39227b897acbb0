"""Configuration of the recurrent classifiers: the encoder, and how its states become one vector."""

from typing import Literal, Self

from .config_checks import LOWEST_TRANSFORMERS  # noqa: F401 - checks the library before its newer names are imported

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .config_checks import ConfigError, plain_errors
from .configuration_rnn_encoder import ENCODER_CONFIG, EncoderFields
from .foreign_encoder import encoder_config
from .presets import CLASSIFIER_PRESETS

# Without attention there is nothing that these fields describe.
_OF_ATTENTION = {"attention_size": None, "attention_hops": 1, "hop_penalty": 0}
# Nor these without recurrent layers.
_OF_LAYERS = {"cell_type": "lstm", "gru_reset": "after", "layer_norm": False, "residual_start": None}
_OF_LAYERS |= {"recurrent_dropout": 0, "weight_drop": 0, "zoneout": 0, "zoneout_cell": None}


@plain_errors
@strict
class RnnClassifierConfig(EncoderFields, PreTrainedConfig):
    r"""Describes a recurrent classifier of texts.

    In addition to the fields below it has those of `RecurrenceFields` (cells and dropout) and `EncoderFields`. The number of
    classes is `num_labels`, their names are `id2label`, as everywhere in transformers. The presets are `lin2017`, a bidirectional
    LSTM under attention with 30 hops, and `yang2016`, a bidirectional GRU over words and one over the sentences that
    `sentence_token_id` ends.

    Args:
        vocab_size: Size of the vocabulary; None means that of `encoder`, else 8000.
        embedding_size: Width of the word vectors; None means 256. With `encoder` it is the width of its states.
        hidden_size: Width of the states that are pooled; None means `encoder_hidden_size` times the directions of the top
            layer, else 256. Without recurrent layers it is the width of the states of `encoder`.
        pooling: How the states of a sequence become one vector: weighted by `attention`, their `max` or `mean` in each unit,
            or the `last` state of each direction.
        attention_size: Width of the hidden layer of the attention, d_a of Lin 2017; None means `hidden_size`.
        attention_hops: Rows of weights, each with an average of its own, r of Lin 2017.
        hop_penalty: Weight in the training loss of ||A A^T - I||^2, against hops that read the same words (Lin 2017,
            equation 8).
        classifier_size: Width of a layer of ReLU units before the classes; None: there is none.
        sentence_token_id: The token that ends a sentence, and is not read itself. Words are then pooled to sentences, and
            sentences, by layers and a pooling of their own, to the document (Yang 2016). None: there is one level.
        pad_token_id: None means that of `encoder`, else 0.

    Raises:
        ConfigError: a field is out of range, misspelled, or cannot be combined with another; also on later assignment for
            type and choice errors.
    """

    model_type = "rnn_classifier"
    presets = CLASSIFIER_PRESETS
    attribute_map = {"num_hidden_layers": "encoder_layers"}
    sub_configs_defaults = ENCODER_CONFIG

    vocab_size: int | None = None
    embedding_size: int | None = None
    hidden_size: int | None = None
    pooling: Literal["attention", "max", "mean", "last"] = "attention"
    attention_size: int | None = None
    attention_hops: int = 1
    hop_penalty: float | int = 0.0
    classifier_size: int | None = None
    sentence_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        # transformers' Trainer writes these into the configuration of any model.
        self._refuse_unknown(kwargs.keys() - {"bos_token_id", "eos_token_id", "use_cache"}, generates=False)
        if self.encoder is not None:
            words = {"vocab_size": self.vocab_size or 8000, "pad_token_id": self.pad_token_id or 0}
            self.encoder = encoder_config(self.encoder, words)
            self._refuse_images()
            own = {"vocab_size": self.encoder.vocab_size, "embedding_size": self.encoder_kind.width}
            own["pad_token_id"] = getattr(self.encoder, "pad_token_id", None)
        else:
            own = {"vocab_size": 8000, "embedding_size": 256, "pad_token_id": 0}
        for name, value in own.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
            elif self.encoder is not None and getattr(self, name) != value:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}: that of encoder={self.encoder.model_type!r} is {value}; leave it out"
                )
        self._fill_widths()
        super().__post_init__(**kwargs)
        # Before the other checks, which run by name and divide by some of the sizes.
        self.validate_sizes()

    def _fill_widths(self) -> None:
        """Sets the widths that follow from others where they are None; what is out of range is refused later."""
        if self.encoder_layers > 0 and self.encoder_hidden_size is None:
            directions = self.encoder_directions(self.encoder_layers)
            self.encoder_hidden_size = max(1, (256 if self.hidden_size is None else self.hidden_size) // directions)
        if self.hidden_size is None and self.encoder_layers >= 0 and (self.encoder_hidden_size or 1) > 0:
            self.hidden_size = self.encoder_output_size
        if self.attention_size is None and self.pooling == "attention":
            self.attention_size = self.hidden_size

    @classmethod
    def from_preset(cls, name: str, **overrides: object) -> Self:
        if overrides.get("encoder") is not None:
            overrides.setdefault("embedding_size", None)  # the encoder has one
        return super().from_preset(name, **overrides)

    @property
    def source_vocab_size(self) -> int:
        """The size of the vocabulary, under the name by which the encoder reads it."""
        return self.vocab_size

    def _refuse_images(self) -> None:
        if self.reads_images:
            raise ConfigError(
                f"encoder={self.encoder.model_type!r}: reads pictures; a classifier of texts needs an encoder that reads "
                "token ids"
            )

    def validate_widths(self) -> None:
        """The states that are pooled have the width that the layers give them."""
        if self.hidden_size != self.encoder_output_size:
            layers = (
                f"encoder_hidden_size={self.encoder_hidden_size} times {self.encoder_directions(self.encoder_layers)} directions"
                if self.encoder_layers
                else "that of the states of the encoder"
            )
            raise ConfigError(
                f"hidden_size={self.hidden_size}: must be {self.encoder_output_size}, {layers}; leave it out"
            )

    def validate_pooling(self) -> None:
        """The fields of the pooling go with it."""
        if not self.hop_penalty >= 0:
            raise ConfigError(f"hop_penalty={self.hop_penalty!r}: must be 0 or more")
        if self.pooling != "attention":
            self.require(_OF_ATTENTION, "only pooling='attention' reads it")
        if self.encoder_layers:
            return
        if self.pooling == "last":
            raise ConfigError("pooling='last': encoder_layers=0 has no recurrent layer, whose last state this is")
        self.require(_OF_LAYERS, "encoder_layers=0 has no recurrent layer")

    def validate_sentences(self) -> None:
        """The token that ends a sentence is not padding."""
        if self.sentence_token_id is not None and self.sentence_token_id == self.pad_token_id:
            raise ConfigError(f"sentence_token_id={self.sentence_token_id}: is pad_token_id; must be another token")
