"""The options of a search: those of `generate()` that it follows, and its own."""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from .fused_step import WEIGHT_TYPES

# Options of generate() that the search here follows; any other that is set sends the call to generate().
FOLLOWED = frozenset(
    {"bos_token_id", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping", "eos_token_id"}
    | {"length_penalty", "max_length", "max_new_tokens", "num_beam_groups", "num_beams", "num_return_sequences"}
    | {"pad_token_id", "return_dict_in_generate", "use_cache"}
)

# Options of generate() that say nothing where nothing is drawn.
SAMPLING = frozenset({"epsilon_cutoff", "eta_cutoff", "min_p", "temperature", "top_h", "top_k", "top_p", "typical_p"})

_DEFAULTS: dict[str, Any] = {
    name: GenerationConfig._get_default_generation_params().get(name)
    for name in GenerationConfig().to_dict()
    if not name.startswith("_") and name != "transformers_version"
}


class SearchError(ValueError):
    """An option of the search that cannot work; the message names it, its value and what is allowed."""


class Settings:
    """The options of `generate()` in their order of precedence: the call's, the config's it was given, the model's.

    Args:
        own: the model's generation config.
        given: the generation config of the call, or None.
        options: keyword arguments of the call.
    """

    def __init__(self, own: GenerationConfig, given: GenerationConfig | None, options: dict[str, Any]) -> None:
        values: dict[str, Any] = {}
        for config in (own, given):
            if config is not None:
                read = {name: getattr(config, name, None) for name in _DEFAULTS}
                values.update({name: value for name, value in read.items() if value is not None})
        values.update({name: value for name, value in options.items() if name in _DEFAULTS})
        self._has_max_length = values.get("max_length") is not None
        asked = [options, {} if given is None else vars(given)]
        limits = [any(read.get(name) is not None for read in asked) for name in ("max_new_tokens", "max_length")]
        self.doubly_limited = all(limits)  # by the call; a checkpoint's own limit just gives way
        self.values = {**_DEFAULTS, **values}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def not_followed(self) -> list[str]:
        """`name=value`, long lists shortened, of the options that are set and that the search here does not follow."""
        ignored = FOLLOWED | SAMPLING
        return [
            f"{name}={reprlib.repr(value)}"
            for name, value in self.values.items()
            if name not in ignored and value is not None and value is not False and value != _DEFAULTS[name]
        ]

    def new_tokens(self, prompt: int) -> int:
        """The limit on produced tokens after a prompt of `prompt` tokens, as `generate()` reads its options."""
        if self["max_new_tokens"] is not None:
            return self["max_new_tokens"]
        return self["max_length"] - prompt if self._has_max_length else self["max_length"]

    def eos_token_ids(self) -> tuple[int, ...]:
        """The ends of a sentence; none if it ends by length only."""
        ids = self["eos_token_id"]
        if ids is None:
            return ()
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return (ids,) if isinstance(ids, int) else tuple(ids)


def limit_length(config: GenerationConfig, new_tokens: int | None = None) -> None:
    """Limits translations to `new_tokens` (default: the config's own `max_new_tokens`) by `max_length`, which counts the
    start token too.

    `max_new_tokens` in a checkpoint would beat the `max_length` of a call, of `Seq2SeqTrainingArguments`
    (`generation_max_length`) and of a pipeline.
    """
    new_tokens = config.max_new_tokens if new_tokens is None else new_tokens
    if new_tokens is not None:
        config.max_length, config.max_new_tokens = new_tokens + 1, None


def longest_output(config: GenerationConfig) -> int | None:
    """How many tokens a generation config lets a model produce behind the start token; None where it says nothing."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    return None if config.max_length is None else config.max_length - 1


@dataclass(frozen=True)
class OwnOptions:
    """Options that `generate()` does not have.

    Args:
        gnmt_alpha: divide a hypothesis' log-probability by ((5 + length) / 6) ** alpha (Wu 2016, equation 14) instead
            of length ** length_penalty.
        coverage_penalty: beta of the same equation; needs a model with attention.
        ensemble: models that decode together with this one, on its device and with its tokenizer; their
            log-probabilities are averaged at each position.
        weight_type: `float32` (the model's own), `bfloat16` or `int8` weights.
        return_alignments: return attention with the hypotheses.
        shortlist: target ids that may be produced: one sequence for all sentences, or one per sentence. The end of
            sentence is always among them.
        prefix: one sequence of target ids per sentence that its hypotheses begin with; it counts in the scores.
        must_contain: one sequence of phrases (sequences of target ids) per sentence that every hypothesis contains.
        stop_at_top: a sentence is done once enough of its hypotheses have ended and the likeliest continuation of its
            beams ends as well, which is OpenNMT-py's rule. `generate()` goes on until `num_beams` hypotheses have
            ended: fewer steps for hypotheses that need not be the same. Without effect on a single beam.
        rows_per_batch: search so many sentences at a time, of similar length; results keep the input's order.

    Raises:
        SearchError: a value is out of range.
    """

    gnmt_alpha: float | None = None
    coverage_penalty: float = 0.0
    ensemble: Sequence[Any] = ()
    weight_type: str = "float32"
    return_alignments: bool = False
    shortlist: Sequence[int] | Sequence[Sequence[int]] | Tensor | None = None
    prefix: Sequence[Sequence[int]] | None = None
    must_contain: Sequence[Sequence[Sequence[int]]] | None = None
    stop_at_top: bool = False
    rows_per_batch: int | None = None

    def __post_init__(self) -> None:
        if self.gnmt_alpha is not None and not 0 <= self.gnmt_alpha < math.inf:
            raise SearchError(f"gnmt_alpha={self.gnmt_alpha}: must be 0 or more and finite, or None")
        if not 0 <= self.coverage_penalty < math.inf:
            raise SearchError(f"coverage_penalty={self.coverage_penalty}: must be 0 or more and finite")
        if self.weight_type not in WEIGHT_TYPES:
            raise SearchError(f"weight_type={self.weight_type!r}: must be one of {', '.join(WEIGHT_TYPES)}")
        if self.rows_per_batch is not None and self.rows_per_batch < 1:
            raise SearchError(f"rows_per_batch={self.rows_per_batch}: must be at least 1, or None")
        if self.must_contain is not None:
            for name in ("shortlist", "prefix", "coverage_penalty", "stop_at_top"):
                if getattr(self, name) not in (None, 0.0):
                    raise SearchError(f"must_contain: does not go with {name}")

    def changed(self) -> list[str]:
        """Names of the options that differ from their defaults."""
        fields = type(self).__dataclass_fields__
        return [name for name, field in fields.items() if getattr(self, name) is not field.default]

    @classmethod
    def take(cls, options: dict[str, Any]) -> "OwnOptions":
        """Takes this class' options out of `options`."""
        return cls(**{name: options.pop(name) for name in cls.__dataclass_fields__ if name in options})


__all__ = ["FOLLOWED", "OwnOptions", "SearchError", "Settings", "limit_length", "longest_output"]
