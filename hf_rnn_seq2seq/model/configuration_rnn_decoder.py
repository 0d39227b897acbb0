"""The fields of a configuration whose model has the recurrent decoder, with or without something that it reads."""

from dataclasses import dataclass
from typing import Literal

from .config_checks import ConfigError
from .configuration_recurrence import RecurrenceFields


@dataclass(repr=False, eq=False, kw_only=True)
class DecoderFields(RecurrenceFields):
    """The layers of the decoder and its readout.

    Args:
        hidden_size: Width of a decoder layer's state.
        decoder_layers: Number of decoder layers.
        decoder_transition_depth: Cells that the first layer applies one after the other within one position (Pascanu 2014;
            Miceli Barone 2017, section 2.3.1); more than 1 costs a time loop. With `before_cell` attention and a depth of
            2 or more the attention reads the state after the first cell, and the context enters the second (the
            conditional GRU, Miceli Barone 2017, section 2.1); `attention_layer` must then be the first layer.
        decoder_upper_transition_depth: The same for the layers above the first; None means the same number.
        skip_connections: Every layer reads the word's vector, and the readout reads every layer (Graves 2013,
            equations 1 to 3). A model with a `tanh` readout that is fed back then takes the time loop.
        readout: The layer between state and vocabulary: `linear`, `tanh` (Luong 2015, equation 5) or `maxout`
            (Bahdanau 2014, appendix A.2.2).
        readout_size: Width of the readout. None: `linear` has no projection, the others are `hidden_size` wide.
        readout_embedding: The readout also reads the previous word's vector. None: only for `maxout`.
    """

    hidden_size: int = 512
    decoder_layers: int = 1
    decoder_transition_depth: int = 1
    decoder_upper_transition_depth: int | None = None
    skip_connections: bool = False
    readout: Literal["linear", "tanh", "maxout"] = "tanh"
    readout_size: int | None = None
    readout_embedding: bool | None = None

    @property
    def readout_state_width(self) -> int:
        """Width of the decoder's states that the readout reads: those of the top layer, or of every layer."""
        return self.hidden_size * (self.decoder_layers if self.skip_connections else 1)

    def fill_decoder(self) -> None:
        """Sets what follows from other fields where it is None."""
        if self.decoder_upper_transition_depth is None:
            self.decoder_upper_transition_depth = self.decoder_transition_depth
        if self.readout_size is None and self.readout != "linear":
            self.readout_size = self.hidden_size
        if self.readout_embedding is None:
            self.readout_embedding = self.readout == "maxout"

    @property
    def readout_width(self) -> int:
        """Width of the vectors that the output layer reads."""
        return self.readout_input_width if self.readout_size is None else self.readout_size


@dataclass(repr=False, eq=False, kw_only=True)
class DecoderWordFields:
    """The words that a decoder reads and writes.

    Args:
        embedding_activation: `relu` applies ReLU to the decoder's word vectors (the tutorial model), `none` does not.
        output_bias: The output layer has a bias.
        tie_word_embeddings: The output layer is the target's word vectors (Press and Wolf 2017). Needs a readout as
            wide as the embedding.
        label_smoothing: Share of the probability spread over the vocabulary in the training loss (Szegedy 2015).
        logits_memory_mb: MiB of logits of all positions; above it the loss computes them in chunks of positions: the same
            value and gradients, in bounded memory.
    """

    embedding_activation: Literal["none", "relu"] = "none"
    output_bias: bool = True
    tie_word_embeddings: bool = False
    label_smoothing: float | int = 0.0
    logits_memory_mb: int = 512

    def validate_tied_output(self) -> None:
        """A tied output layer reads vectors as wide as the words'."""
        if self.tie_word_embeddings and self.readout_width != self.embedding_size:
            raise ConfigError(
                f"tie_word_embeddings=True: the readout ({self.readout_width} wide) must be as wide as "
                f"embedding_size={self.embedding_size}; set readout_size={self.embedding_size}"
            )


class WithoutSource:
    """What `RnnDecoder` asks about a source, answered by the configuration of a model that reads none.

    These are no fields: a configuration does not take them, and they are not saved.
    """

    context = "initial_state"
    context_width = 0
    context_gate = "none"
    context_layers = "first"
    attention_order = "after_cell"
    attention_alignment = "soft"
    aligns_hard = False
    samples_attention = False
    attends_between_cells = False
    input_feeding = False
    copy_mechanism = False
    readout_context = False
    readout_state = "current"

    @property
    def readout_input_width(self) -> int:
        """Width of the input of the readout."""
        return self.readout_state_width + (self.embedding_size if self.readout_embedding else 0)
