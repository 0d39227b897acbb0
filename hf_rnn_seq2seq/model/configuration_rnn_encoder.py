"""The fields of a configuration whose model has the recurrent encoder, whatever reads its states."""

from dataclasses import dataclass
from typing import Literal

from .config_checks import ConfigError
from .configuration_recurrence import RecurrenceFields
from .foreign_encoder import EncoderKind, encoder_kind

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# The model type is that of a dict without one, which `encoder_config` refuses before.
ENCODER_CONFIG = {"encoder": SubConfigSpec(AutoConfig, model_type="bert", optional=True)}

# Without recurrent layers there is nothing that these fields describe.
_NO_LAYERS = {
    "encoder_hidden_size": None,
    "bidirectional": "all",
    "reverse_source": False,
    "encoder_transition_depth": 1,
}


@dataclass(repr=False, eq=False, kw_only=True)
class EncoderFields(RecurrenceFields):
    """Word vectors or a foreign encoder, and the recurrent layers over them.

    Args:
        embedding_size: Width of the word vectors.
        encoder_hidden_size: Width of an encoder layer's state, per direction. None means `hidden_size` divided by
            the directions of the top layer, so that the states of the encoder are `hidden_size` wide.
        encoder_layers: Number of recurrent encoder layers. 0, with `encoder` only: its states are read raw.
        encoder: None, or the configuration (or its dict) of any built-in model of transformers that reads token ids or
            pixels. Its states take the place of the source's word vectors. A dict without `vocab_size` has that of the source
            and its special tokens.
        encoder_levels: Which hidden states of an `encoder` of text are read, next to each other (as in Devlin 2019, section
            5.3). 0: what its first layer reads, which are its word vectors (of BERT with their positions); n: the states of
            layer n; -1: those of the last layer. None: its last states.
        freeze_encoder: The `encoder` is not trained: no gradient, and evaluation mode also in training.
        encoder_transition_depth: Cells a layer applies one after the other within one position (Pascanu 2014;
            Miceli Barone 2017, section 2.3.1). More than 1 costs a time loop.
        bidirectional: `all` encoder layers, the `first` one only (GNMT), `none`, or `alternating`. The last has two stacks,
            one of which starts forward and one backward, each changing its direction at every layer (Miceli Barone 2017,
            section 2.2.1).
        reverse_source: The encoder reads the source backwards (Sutskever 2014, section 3.3).
    """

    embedding_size: int = 256
    encoder_hidden_size: int | None = None
    encoder_layers: int = 1
    encoder: PreTrainedConfig | dict | None = None
    encoder_levels: list[int] | None = None
    freeze_encoder: bool = False
    encoder_transition_depth: int = 1
    bidirectional: Literal["all", "first", "none", "alternating"] = "all"
    reverse_source: bool = False

    # A field of RnnSeq2SeqConfig alone; other models sum no features.
    feature_token_ids = None

    def validate_sizes(self) -> None:
        """As every configuration, and an encoder has layers."""
        super().validate_sizes()
        if self.encoder_layers < (1 if self.encoder is None else 0):
            rule = "must be greater than 0" if self.encoder is None else "must be 0 or more"
            raise ConfigError(f"encoder_layers={self.encoder_layers}: {rule}")

    def validate_encoder(self) -> None:
        """Encoder fields fit together."""
        if self.reverse_source and self.bidirectional != "none":
            raise ConfigError(
                f"reverse_source=True: needs bidirectional='none', not {self.bidirectional!r}, which reads both ways"
            )
        if self.residual_start == 2 and self.bidirectional == "first" and self.encoder_layers > 1:
            raise ConfigError(
                "residual_start=2: with bidirectional='first' layer 2 reads two directions and writes one; must be 3 "
                "or more"
            )

    def validate_foreign_encoder(self) -> None:
        """A foreign encoder fits the options that read the source."""
        if self.encoder is None:
            if self.freeze_encoder:
                raise ConfigError("freeze_encoder=True: there is no encoder to freeze; set encoder")
            if self.encoder_levels is not None:
                raise ConfigError(f"encoder_levels={self.encoder_levels}: there is no encoder to read; set encoder")
            return
        kind = f"encoder={self.encoder.model_type!r}"
        self.require({"word_dropout": 0}, f"not with {kind}, its words are its own")
        if self.source_vocab_size != self.foreign_vocab_size:
            raise ConfigError(
                f"source_vocab_size={self.source_vocab_size!r}: {kind} has a vocabulary of {self.foreign_vocab_size}; leave it out"
            )
        if not self.encoder_layers:
            self.require(_NO_LAYERS, "encoder_layers=0 has no recurrent layer")

    def encoder_directions(self, layer: int) -> int:
        """Directions of encoder layer `layer`, counted from 1."""
        both = self.bidirectional in ("all", "alternating") or (self.bidirectional == "first" and layer == 1)
        return 2 if both else 1

    @property
    def keeps_source_ids(self) -> bool:
        """Whether what reads the encoder's states reads the source's words too."""
        return False

    @property
    def encoder_kind(self) -> EncoderKind | None:
        """What the foreign `encoder` reads, and the width of its states; None without one."""
        return None if self.encoder is None else encoder_kind(self.encoder, self.encoder_levels)

    @property
    def reads_images(self) -> bool:
        """Whether the source is a picture."""
        return self.encoder is not None and self.encoder_kind.input_name == "pixel_values"

    @property
    def foreign_vocab_size(self) -> int | None:
        """Size of the vocabulary of the foreign `encoder`; None if it reads pictures."""
        return None if self.reads_images else self.encoder.vocab_size

    @property
    def source_width(self) -> int:
        """Width of the vectors that the recurrent encoder reads: word vectors (with `feature_token_ids` and their sum), or
        the states of `encoder`."""
        if self.encoder is not None:
            return self.encoder_kind.width
        return self.embedding_size * (2 if self.feature_token_ids else 1)

    @property
    def encoder_output_size(self) -> int:
        """Width of the states of the encoder."""
        if not self.encoder_layers:
            return self.source_width
        return self.encoder_hidden_size * self.encoder_directions(self.encoder_layers)
