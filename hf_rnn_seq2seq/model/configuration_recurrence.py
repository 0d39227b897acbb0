"""The fields that every configuration of recurrent layers has, whatever reads or writes with them."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from .config_checks import LOWEST_TRANSFORMERS  # noqa: F401 - checks the library before its newer names are imported

from transformers import GenerationConfig

from .config_checks import ConfigError, RecurrenceChecks

# Keys that transformers writes into a config.json or passes to the constructor in addition to declared fields.
_INFRASTRUCTURE_KEYS = frozenset(
    {"auto_map", "attn_implementation", "experts_implementation", "label2id", "model_type", "name_or_path"}
    | {"num_labels", "output_attentions", "per_layer_config", "quantization_config", "torch_dtype"}
    | {"transformers_version", "custom_generate", "custom_pipelines", "trust_remote_code", "code_revision"}
)


@dataclass(repr=False, eq=False, kw_only=True)
class RecurrenceFields(RecurrenceChecks):
    """The cells of recurrent layers, and what is dropped or kept in them in training.

    Args:
        cell_type: `lstm` (Hochreiter and Schmidhuber 1997), `gru` (Cho 2014), `rnn_tanh` or `rnn_relu` (Elman 1990).
        gru_reset: Where the GRU's reset gate acts: `after` the recurrent product (cuDNN, `nn.GRU`) or `before` it
            (Cho 2014, Bahdanau 2014). `before` is another function and has no fused kernel: it costs a time loop,
            except in the layers of the fused scan.
        layer_norm: Layer-normalized cells (Ba 2016, equations 20 to 29). Costs a time loop.
        residual_start: Number (from 1) of the first layer whose input is added to its output, on both sides
            (GNMT, section 3.1: 3). None: no residual connections.
        dropout: On word vectors, between layers and on the readout.
        recurrent_dropout: On the recurrent input of each cell, one mask for a whole sentence (Gal and Ghahramani
            2016). Costs a time loop in training, except in the layers of the fused scan.
        variational_dropout: `dropout` uses one mask for all positions of a sentence (Gal and Ghahramani 2016).
        weight_drop: Probability that a weight of the recurrence (hidden to hidden, of each cell) is dropped, one mask for
            a whole pass over a batch (DropConnect; Merity 2017, section 2). Keeps the fused kernels and the scan.
        zoneout: Probability that a unit of h keeps its old value at a position; evaluation mixes old and new by it
            (Krueger 2016). Costs a time loop on both sides, in evaluation too, and the export to ONNX: a training step
            took 1.04 (GRU) to 1.15 times (LSTM) as long, of 64 pairs of 15 words, 256 units, on one thread of a CPU.
        zoneout_cell: The same for the LSTM's cell, which tolerates far more: Krueger 2016 uses 0.5 there and 0.05 on h.
            None: as `zoneout`.
        word_dropout: Probability that a word's vector is dropped as a whole.
        word_dropout_unit: Whether that is drawn for each `token`, or for each `type` of a sentence: then all
            occurrences of a word are dropped or none (Gal and Ghahramani 2016, section 4.2).
        initializer_range: Parameters start uniform in plus or minus this; None means one over the square root of
            the fan-in, and word vectors normal with standard deviation 0.3 (0.2 if they are tied to the
            output layer).
    """

    presets = {}  # published systems: name -> fields

    cell_type: Literal["lstm", "gru", "rnn_tanh", "rnn_relu"] = "lstm"
    gru_reset: Literal["after", "before"] = "after"
    layer_norm: bool = False
    residual_start: int | None = None
    dropout: float | int = 0.0
    recurrent_dropout: float | int = 0.0
    variational_dropout: bool = False
    weight_drop: float | int = 0.0
    zoneout: float | int = 0.0
    zoneout_cell: float | int | None = None
    word_dropout: float | int = 0.0
    word_dropout_unit: Literal["token", "type"] = "token"
    initializer_range: float | None = None

    @property
    def zoneout_rates(self) -> tuple[float, ...]:
        """For each tensor of a layer's state, h and the LSTM's cell, the probability that a unit keeps its old value."""
        if self.cell_type != "lstm":
            return (self.zoneout,)
        return (self.zoneout, self.zoneout if self.zoneout_cell is None else self.zoneout_cell)

    @property
    def drops_word_types(self) -> bool:
        """Whether whole words are dropped, and by type."""
        return self.word_dropout > 0 and self.word_dropout_unit == "type"

    @classmethod
    def from_preset(cls, name: str, **overrides: object) -> Self:
        """The configuration of a published system, e.g. `RnnClassifierConfig.from_preset("lin2017", num_labels=5)`.

        Args:
            name: of a preset of this class; `help(hf_rnn_seq2seq.model.presets.NAME)` gives the source of each choice.
            overrides: fields of this class that replace the preset's.

        Raises:
            ConfigError: no preset has this name, a field does not exist, or the fields are not valid together.
        """
        if name not in cls.presets:
            raise ConfigError(f"preset={name!r}: must be one of {', '.join(sorted(cls.presets))}")
        return cls(**{**cls.presets[name](), **overrides})

    def _refuse_unknown(self, kwargs: Iterable[str], generates: bool = True) -> None:
        """Raises ConfigError for a keyword that is neither a field nor one of transformers' own.

        Those of a GenerationConfig are only of a model that generates.
        """
        generation = GenerationConfig._get_default_generation_params() if generates else ()
        for name in kwargs:
            if name.startswith("_") or name in _INFRASTRUCTURE_KEYS or name in generation:
                continue
            near = difflib.get_close_matches(name, [f for f in type(self).__dataclass_fields__], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{name!r} is not a field of {type(self).__name__}{hint}")
