"""Configuration of the networks that write by hand: the decoder of the family, whose words are points of a pen."""

import unicodedata
from typing import Literal

from .config_checks import LOWEST_TRANSFORMERS  # noqa: F401 - checks the library before its newer names are imported

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .config_checks import ConfigError, plain_errors
from .configuration_rnn_decoder import DecoderFields
from .configuration_rnn_decoder import WithoutSource
from .presets import HANDWRITING_PRESETS


class ReadsPoints(WithoutSource):
    """What `RnnDecoder` asks, answered for points and for a text that is read through a window.

    These are no fields: a configuration does not take them, and they are not saved.
    """

    vocab_size = pad_token_id = None
    embedding_size = 3  # across, up, end of a stroke
    encoder = None
    attention_type = "window"
    attention_layer, context_layers = "bottom", "all"
    attention_window, attention_window_size = "global", 10
    attention_normalization = "softmax"
    coverage = "none"
    decoder_recurrence = "auto"

    @property
    def context(self) -> str:
        """How the decoder reads the text."""
        return "attention" if self.reads_text else "initial_state"

    @property
    def input_feeding(self) -> bool:
        """Whether the first layer reads the window of the step before (Graves 2013, equation 52)."""
        return self.reads_text

    @property
    def context_width(self) -> int:
        """Width of the window's vector: the characters are one-hot vectors."""
        return len(self.alphabet)

    @property
    def encoder_output_size(self) -> int:
        """Width of the characters' vectors."""
        return len(self.alphabet)


@plain_errors
@strict
class RnnHandwritingConfig(ReadsPoints, DecoderFields, PreTrainedConfig):
    r"""Describes a network that predicts the next point of a pen (Graves 2013, sections 4 and 5).

    In addition to the fields below it has those of `RecurrenceFields` (cells and dropout) and `DecoderFields` (layers and
    readout). The presets are `graves2013_handwriting`, which writes what it likes (prediction), and `graves2013_synthesis`, which
    writes a text. Sizes are in units (vector widths); probabilities are in [0, 1).

    Args:
        hidden_size: Width of a layer's state.
        decoder_layers: Number of layers.
        skip_connections: Every layer reads the point, and the output every layer (Graves 2013, equations 1 to 3).
        readout: The layer between the states and the density: `linear` (Graves 2013), `tanh` or `maxout`.
        mixture_components: Gaussian functions in the density of the next point (Graves 2013, equation 16).
        window_components: Gaussian functions of the window over the text (Graves 2013, equation 46). 0: no text is read, the
            prediction network. None: 10 with an `alphabet`, 0 without.
        alphabet: The characters that can be written, each once.
        offset_deviation: Standard deviation of the offsets across and up, in heights of a word, over the training set. The
            network reads offsets divided by it, and densities are those of such offsets.
        point_tolerance: Places closer than this to the line between their neighbors are left out of strokes, in heights of a
            word; 0 keeps all.
        use_cache: `forward` returns the state after the last point.

    Raises:
        ConfigError: a field is out of range, misspelled, or cannot be combined with another; also on later assignment for
            type and choice errors.
    """

    model_type = "rnn_handwriting"
    presets = HANDWRITING_PRESETS
    keys_to_ignore_at_inference = ["cache"]
    attribute_map = {"num_hidden_layers": "decoder_layers"}

    hidden_size: int = 400
    decoder_layers: int = 3
    skip_connections: bool = True
    readout: Literal["linear", "tanh", "maxout"] = "linear"
    mixture_components: int = 20
    window_components: int | None = None
    alphabet: str = ""
    offset_deviation: list[float] | None = None
    point_tolerance: float | int = 0.02
    use_cache: bool = True

    def __post_init__(self, **kwargs: object) -> None:
        self._refuse_unknown(kwargs)
        self.fill_decoder()
        if self.window_components is None:
            self.window_components = 10 if self.alphabet else 0
        if self.offset_deviation is None:
            self.offset_deviation = [1.0, 1.0]
        super().__post_init__(**kwargs)
        # Before the other checks, which run by name.
        self.validate_sizes()

    @property
    def reads_text(self) -> bool:
        """Whether it writes a given text (synthesis), and not what it likes (prediction)."""
        return self.window_components > 0

    def validate_sizes(self) -> None:
        """As every configuration, and a mixture has components."""
        super().validate_sizes()
        if self.mixture_components <= 0:
            raise ConfigError(f"mixture_components={self.mixture_components}: must be greater than 0")
        if self.point_tolerance < 0:
            raise ConfigError(f"point_tolerance={self.point_tolerance}: must be 0 or more")
        if len(self.offset_deviation) != 2 or min(self.offset_deviation) <= 0:
            raise ConfigError(f"offset_deviation={self.offset_deviation}: must be two numbers greater than 0")

    def validate_text(self) -> None:
        """A window has characters to read."""
        if self.window_components < 0:
            raise ConfigError(f"window_components={self.window_components}: must be 0 or more")
        if self.reads_text and not self.alphabet:
            raise ConfigError(
                f"alphabet='': window_components={self.window_components} reads a text; name its characters, or set 0"
            )
        if self.alphabet and not self.reads_text:
            raise ConfigError(
                f"alphabet={self.alphabet!r:.40}: window_components=0 reads no text; leave out the alphabet"
            )
        if self.reads_text and self.decoder_layers == 1 and self.readout == "tanh":
            raise ConfigError(
                "readout='tanh': with decoder_layers=1 it would be fed back in the place of the window, which nothing else "
                "reads; must be 'linear' or 'maxout'"
            )
        if len(set(self.alphabet)) < len(self.alphabet):
            twice = next(letter for letter in self.alphabet if self.alphabet.count(letter) > 1)
            raise ConfigError(f"alphabet: has {twice!r} twice; each character must be there once")
        if unicodedata.normalize("NFC", self.alphabet) != self.alphabet:
            raise ConfigError("alphabet: must be in Unicode's composed form (NFC), in which texts are read")

    def validate_attention(self) -> None:
        """`build_attention` asks; the window is the only attention."""

    def validate_points(self) -> None:
        """Points are no words."""
        self.require({"word_dropout": 0, "word_dropout_unit": "token"}, "a pen has points and no words")
