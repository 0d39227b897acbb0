"""Configuration of the recurrent language model: the decoder of the family, which reads nothing but what it has written."""

from .config_checks import LOWEST_TRANSFORMERS  # noqa: F401 - checks the library before its newer names are imported

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .config_checks import plain_errors
from .configuration_rnn_decoder import DecoderFields
from .configuration_rnn_decoder import DecoderWordFields
from .configuration_rnn_decoder import WithoutSource
from .presets import CAUSAL_PRESETS


@plain_errors
@strict
class RnnCausalConfig(WithoutSource, DecoderFields, DecoderWordFields, PreTrainedConfig):
    r"""Describes a stack of recurrent layers that predicts each token from all tokens before it.

    In addition to the fields below it has those of `RecurrenceFields` (cells and dropout), `DecoderFields` (layers and readout)
    and `DecoderWordFields`. The preset is `graves2013_text`, LSTM layers with skip connections. Sizes are in units (vector
    widths) or tokens; probabilities are in [0, 1).

    Args:
        vocab_size: Size of the vocabulary.
        embedding_size: Width of the tokens' vectors. As wide as the vocabulary they are as good as the one-hot vectors of
            Graves 2013.
        use_cache: `forward` returns the state after the last position.

    Raises:
        ConfigError: a field is out of range, misspelled, or cannot be combined with another; also on later assignment for
            type and choice errors.
    """

    model_type = "rnn_causal"
    presets = CAUSAL_PRESETS
    keys_to_ignore_at_inference = ["cache"]
    attribute_map = {"num_hidden_layers": "decoder_layers"}

    vocab_size: int = 8000
    embedding_size: int = 256
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: object) -> None:
        self._refuse_unknown(kwargs)
        self.fill_decoder()
        super().__post_init__(**kwargs)
        # Before the other checks, which run by name.
        self.validate_sizes()
