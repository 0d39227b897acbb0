"""The options of a search, resolved once into one object: those of `generate()` that the search follows, and its own.

Also the words that a search may or must produce: shortlists, prefixes and phrases. Axes there: sentences (`live`: those
still searched), rows (sentences times beams), vocab.
"""

import dataclasses
import logging
import math
import reprlib
from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

logger = logging.getLogger(__name__)

# Options of generate() that the search follows; any other that is set sends the call to generate().
FOLLOWED = frozenset(
    {"bos_token_id", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping", "eos_token_id"}
    | {"length_penalty", "max_length", "max_new_tokens", "num_beam_groups", "num_beams", "num_return_sequences"}
    | {"pad_token_id", "return_dict_in_generate", "use_cache"}
)

# Options of generate() that have no effect without sampling.
SAMPLING = frozenset({"epsilon_cutoff", "eta_cutoff", "min_p", "temperature", "top_h", "top_k", "top_p", "typical_p"})

# Arguments of generate() that the encoder and the prompt are made of.
SOURCES = ("input_ids", "pixel_values", "inputs_embeds", "encoder_outputs")
INPUTS = (*SOURCES, "attention_mask", "decoder_input_ids")

# Options that generate() does not have.
OWN = ("gnmt_alpha", "coverage_penalty", "ensemble", "weight_type", "return_alignments", "shortlist", "prefix")
OWN += ("must_contain", "stop_at_top", "rows_per_batch")

WEIGHT_TYPES = ("float32", "bfloat16", "int8")

# Options of a call by name; their values have any type.
Options = dict[str, object]

_DEFAULTS: Options = {
    name: GenerationConfig._get_default_generation_params().get(name)
    for name in GenerationConfig().to_dict()
    if not name.startswith("_") and name != "transformers_version"
}


class SearchError(ValueError):
    """An option of the search that cannot work; the message has its name, its value and what is allowed."""


@dataclasses.dataclass(frozen=True, eq=False)
class SearchOptions:
    """All options of one search.

    Args:
        max_new_tokens: limit on the produced tokens; None: `max_length` decides. `for_prompt` sets it.
        max_length: limit on prompt and produced tokens together.
        both_limits: the call gave both limits.
        eos_token_ids: the tokens that end a sentence; none if only the length ends it.
        pad_token_id: follows the end of a shorter hypothesis.
        start_token_id: the first token of the prompt.
        num_beams, num_return_sequences, early_stopping, num_beam_groups, return_dict_in_generate: as in `generate()`.
        length_penalty: a sum of log-probabilities is divided by length ** this.
        diversity_penalty: cost of a word for each beam of an earlier group that produces it at the same position.
        left_to_generate: `name=value` of the options that only `generate()` follows.
        gnmt_alpha, ...: the options that `generate()` does not have; `SearchMixin.search` describes them.

    Raises:
        SearchError: a value is out of range.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    both_limits: bool = False
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int = 0
    start_token_id: int | Sequence[int] | Tensor | None = None
    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    return_dict_in_generate: bool = False
    left_to_generate: tuple[str, ...] = ()
    gnmt_alpha: float | None = None
    coverage_penalty: float = 0.0
    ensemble: Sequence[nn.Module] = ()
    weight_type: str = "float32"
    return_alignments: bool = False
    shortlist: Sequence[int] | Sequence[Sequence[int]] | Tensor | None = None
    prefix: Sequence[Sequence[int]] | None = None
    must_contain: Sequence[Sequence[Sequence[int]]] | None = None
    stop_at_top: bool = False
    rows_per_batch: int | None = None

    def __post_init__(self) -> None:
        for name, none in (("gnmt_alpha", ", or None"), ("coverage_penalty", "")):
            value = getattr(self, name)
            if not (none and value is None) and not (_is_finite(value) and value >= 0):
                raise SearchError(f"{name}={value!r}: must be 0 or more and finite{none}")
        for name, none in (("num_beams", ""), ("num_return_sequences", ""), ("rows_per_batch", ", or None")):
            value = getattr(self, name)
            if not (none and value is None) and not (isinstance(value, Integral) and value >= 1):
                raise SearchError(f"{name}={value!r}: must be a whole number of at least 1{none}")
        if not _is_finite(self.length_penalty):
            raise SearchError(f"length_penalty={self.length_penalty!r}: must be a finite number")
        if self.early_stopping not in (True, False, None, "never"):
            raise SearchError(f"early_stopping={self.early_stopping!r}: must be True, False or 'never'")
        members = self.ensemble if isinstance(self.ensemble, list | tuple) else [None]
        if wrong := [one for one in members if not isinstance(one, nn.Module)]:
            kind = type(self.ensemble if wrong == [None] else wrong[0]).__name__
            raise SearchError(f"ensemble: must be a list of models, and {kind} is none")
        for name, depth, what in (("prefix", 2, "target ids"), ("must_contain", 3, "phrases, each a list of ids")):
            if not _is_nested(getattr(self, name), depth):
                raise SearchError(
                    f"{name}={reprlib.repr(getattr(self, name))}: must have for each sentence a list of {what}"
                )
        if self.weight_type not in WEIGHT_TYPES:
            raise SearchError(f"weight_type={self.weight_type!r}: must be one of {', '.join(WEIGHT_TYPES)}")
        if self.must_contain is not None:
            for name in ("shortlist", "prefix", "coverage_penalty", "stop_at_top"):
                if self._is_set(name):
                    raise SearchError(f"must_contain: cannot be combined with {name}")

    @classmethod
    def resolve(
        cls, model_config: GenerationConfig, call_config: GenerationConfig | None, arguments: Options
    ) -> "SearchOptions":
        """The options of a call of `generate()` or `search()`.

        Args:
            model_config: the model's generation config.
            call_config: the generation config of the call, or None.
            arguments: keyword arguments of the call.
        """
        explicit = _explicit(model_config, call_config, arguments)
        values = {**_DEFAULTS, **explicit}
        eos = end_tokens(values["eos_token_id"])
        pad = values["pad_token_id"]
        left = _not_followed(values, arguments)
        if pad is None and eos and (values["num_beams"] or 1) == 1:
            left.append("pad_token_id=None")
        # Without any limit the default of `max_length` counts produced tokens, as in generate().
        limit, max_length = values["max_new_tokens"], values["max_length"]
        if limit is None and explicit.get("max_length") is None:
            limit, max_length = max_length, None
        start = values["decoder_start_token_id"]
        sources = (arguments, {} if call_config is None else vars(call_config))
        both = all(any(s.get(name) is not None for s in sources) for name in ("max_new_tokens", "max_length"))
        return cls(
            max_new_tokens=limit,
            max_length=max_length,
            both_limits=both,
            eos_token_ids=eos,
            pad_token_id=pad if pad is not None else (eos[0] if eos else 0),
            start_token_id=values["bos_token_id"] if start is None else start,
            num_beams=1 if values["num_beams"] is None else values["num_beams"],
            num_return_sequences=1 if values["num_return_sequences"] is None else values["num_return_sequences"],
            early_stopping=values["early_stopping"],
            length_penalty=1.0 if values["length_penalty"] is None else values["length_penalty"],
            num_beam_groups=values["num_beam_groups"] or 1,
            diversity_penalty=values["diversity_penalty"] or 0.0,
            return_dict_in_generate=bool(values["return_dict_in_generate"]),
            left_to_generate=tuple(left),
            **{name: arguments[name] for name in OWN if name in arguments},
        )

    def changed(self) -> list[str]:
        """Names of the options that `generate()` does not have and that differ from their defaults."""
        return [name for name in OWN if self._is_set(name)]

    def _is_set(self, name: str) -> bool:
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        if isinstance(value, list | tuple):
            return bool(value)  # an empty list of models or words is none
        return value is not default and (isinstance(value, Tensor) or bool(value != default))

    def for_prompt(self, tokens: int) -> "SearchOptions":
        """The options with the limit on produced tokens after a prompt of `tokens` tokens.

        Raises:
            SearchError: no token may be produced, or options for beams cannot be combined.
        """
        if self.both_limits:
            logger.warning(
                "max_new_tokens=%s and max_length=%s are both given: max_new_tokens counts",
                self.max_new_tokens,
                self.max_length,
            )
        limit = self.max_length - tokens if self.max_new_tokens is None else self.max_new_tokens
        if limit < 1:
            name = "max_length" if self.max_new_tokens is None else "max_new_tokens"
            raise SearchError(
                f"{name}={getattr(self, name)}: leaves no token to produce; the prompt has {tokens} tokens"
            )
        self._check_groups()
        return dataclasses.replace(self, max_new_tokens=limit)

    def _check_groups(self) -> None:
        groups, penalty = self.num_beam_groups, self.diversity_penalty
        if groups > 1 and self.stop_at_top:
            raise SearchError(f"stop_at_top=True: cannot be combined with num_beam_groups={groups}")
        if groups < 1 or self.num_beams % groups:
            raise SearchError(f"num_beam_groups={groups}: must divide num_beams={self.num_beams}")
        if penalty < 0 or (penalty and groups == 1):
            raise SearchError(
                f"diversity_penalty={penalty}: must be 0 or more, and needs num_beam_groups of at least 2"
            )
        if groups > 1:
            for name in ("coverage_penalty", "must_contain"):
                if getattr(self, name) not in (None, 0.0):
                    raise SearchError(f"num_beam_groups={groups}: cannot be combined with {name}")

    @property
    def returns_details(self) -> bool:
        """Whether scores are returned with the hypotheses; greedy search chooses its words without them."""
        return self.return_dict_in_generate or self.return_alignments

    @property
    def needs_weights(self) -> bool:
        """Whether the search reads the attention weights."""
        return self.return_alignments or self.coverage_penalty > 0

    @property
    def candidates(self) -> int:
        """Continuations kept per sentence before the finished ones are removed."""
        return max(2, 1 + len(self.eos_token_ids)) * self.num_beams

    @property
    def fill_token_id(self) -> int:
        """The token after the end of a shorter hypothesis.

        After beam search transformers fills with the end of sentence if the pad token's id is 0, and with -1 if no token
        ends a sentence.
        """
        if self.num_beams == 1:
            return self.pad_token_id
        return (self.pad_token_id or self.eos_token_ids[0]) if self.eos_token_ids else -1

    def norm(self, length: int) -> float:
        """The divisor of a sum of log-probabilities over `length` tokens."""
        if self.gnmt_alpha is not None:
            return ((5 + length) / 6) ** self.gnmt_alpha
        return length**self.length_penalty

    def hopeful_length(self, length: int) -> int:
        """The length at which the score of a running hypothesis of `length` tokens is estimated for the stopping rule."""
        grows = self.length_penalty if self.gnmt_alpha is None else self.gnmt_alpha
        return self.max_new_tokens if self.early_stopping == "never" and grows > 0 else length


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _is_nested(value: object, depth: int) -> bool:
    """Whether a value is None, or lists of lists, `depth` deep."""
    if value is None or depth == 0:
        return True
    return isinstance(value, list | tuple | Tensor) and all(
        one is not None and _is_nested(one, depth - 1) for one in value
    )


def _explicit(model_config: GenerationConfig, call_config: GenerationConfig | None, arguments: Options) -> Options:
    """Options of `generate()` that are set: by the call, else by its config, else by the model's config."""
    values: Options = {}
    for config in (model_config, call_config):
        if config is not None:
            read = {name: getattr(config, name, None) for name in _DEFAULTS}
            values.update({name: value for name, value in read.items() if value is not None})
    values.update({name: value for name, value in arguments.items() if name in _DEFAULTS})
    return values


def generation_values(
    model_config: GenerationConfig, call_config: GenerationConfig | None, arguments: Options
) -> Options:
    """Every option of `generate()`, as `SearchOptions.resolve` reads them, with the defaults of transformers."""
    return {**_DEFAULTS, **_explicit(model_config, call_config, arguments)}


def end_tokens(eos_token_id: int | Sequence[int] | Tensor | None) -> tuple[int, ...]:
    """The tokens that end a sentence, from an option `eos_token_id`."""
    if eos_token_id is None:
        return ()
    ids = eos_token_id.tolist() if isinstance(eos_token_id, Tensor) else eos_token_id
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _not_followed(values: Options, arguments: Options) -> list[str]:
    """Options of a call that the search does not follow, as `name=value`, long lists shortened."""
    ignored = FOLLOWED | SAMPLING
    missing = [
        f"{name}={reprlib.repr(value)}"
        for name, value in values.items()
        if name not in ignored and value is not None and value is not False and value != _DEFAULTS[name]
    ]
    if values["do_sample"]:
        missing.append("do_sample=True")
    known = {*INPUTS, *OWN, *_DEFAULTS, "tokenizer", "token_type_ids", "trust_remote_code"}
    for name, value in arguments.items():
        if name not in known and value is not None and value is not False and value != []:
            missing.append(name)
    if all(arguments.get(name) is None for name in SOURCES):
        missing.append("a missing source")
    return missing


def limit_length(config: GenerationConfig, new_tokens: int | None = None) -> None:
    """Limits translations to `new_tokens` (default: the config's own `max_new_tokens`) by `max_length`, which counts the
    start token too.

    `max_new_tokens` in a checkpoint would override the `max_length` of a call, of `Seq2SeqTrainingArguments`
    (`generation_max_length`) and of a pipeline.
    """
    new_tokens = config.max_new_tokens if new_tokens is None else new_tokens
    if new_tokens is not None:
        config.max_length, config.max_new_tokens = new_tokens + 1, None


def longest_output(config: GenerationConfig) -> int | None:
    """The limit of a generation config on the tokens after the start token; None if it has no limit."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    return None if config.max_length is None else config.max_length - 1


# ---------------------------------------------------------------- the words that may or must be produced


class Limits(NamedTuple):
    """The words that each sentence may produce; without limits every field is None."""

    words: Tensor | None = None  # (words,), ids of a shortlist in ascending order; the search then scores only these
    allowed: Tensor | None = None  # bool (sentences, words or vocab), the words of each sentence
    prefix: Tensor | None = None  # (sentences, length), forced indices in `words` (or ids); -1 forces none

    def allowed_to(self, live: Tensor) -> Tensor | None:
        """bool (live, words), the words that the sentences `live` may produce; None for all."""
        return None if self.allowed is None else self.allowed[live]

    def force(self, logits: Tensor, live: Tensor, time: int) -> Tensor:
        """Logits with minus infinity at every word but the forced one, which keeps the model's score."""
        if self.prefix is None or time >= self.prefix.shape[1]:
            return logits
        forced = self.prefix[live, time].repeat_interleave(len(logits) // len(live), 0).unsqueeze(1)
        places = forced.clamp(min=0)
        only = torch.full_like(logits, -torch.inf).scatter(1, places, logits.gather(1, places))
        return torch.where(forced >= 0, only, logits)

    def of(self, rows: Tensor | slice) -> "Limits":
        """The limits of the sentences `rows`."""
        return self._replace(
            allowed=None if self.allowed is None else self.allowed[rows],
            prefix=None if self.prefix is None else self.prefix[rows],
        )

    def tokens(self, places: Tensor) -> Tensor:
        """The ids of words from their indices in the scores."""
        return places if self.words is None else self.words[places]


NO_LIMITS = Limits()


def make_limits(options: SearchOptions, vocab_size: int, sentences: int, device: torch.device) -> Limits:
    """The shortlist and the prefixes of the options.

    Raises:
        SearchError: ids outside the vocabulary, too few of them, or not one sequence per sentence.
    """
    prefix = _prefix(options, vocab_size, sentences)
    if options.shortlist is None:
        return Limits(prefix=None if prefix is None else prefix.to(device))
    lists = options.shortlist.tolist() if isinstance(options.shortlist, Tensor) else list(options.shortlist)
    by_sentence = bool(lists) and isinstance(lists[0], (list, tuple, set, frozenset, Tensor))
    lists = [sorted(map(int, row)) for row in lists] if by_sentence else [sorted(map(int, lists))]
    if by_sentence and len(lists) != sentences:
        raise SearchError(f"shortlist for {len(lists)} sentences: there are {sentences}")
    ends = options.eos_token_ids
    forced = [] if prefix is None else prefix[prefix >= 0].tolist()
    words = torch.tensor(sorted({*ends, *forced, *(word for row in lists for word in row)}))
    shortest = min(len({*ends, *row}) for row in lists)
    if shortest < options.candidates or int(words[0]) < 0 or int(words[-1]) >= vocab_size:
        raise SearchError(
            f"shortlist of {shortest} ids from {int(words[0])} to {int(words[-1])}: needs at least {options.candidates} "
            f"of the target ids 0 to {vocab_size - 1}"
        )
    allowed = None
    if not by_sentence and not {*forced} <= {*ends, *lists[0]}:
        lists, by_sentence = lists * sentences, True  # a word that one sentence must produce no other one may
    if by_sentence:
        allowed = torch.zeros(sentences, len(words), dtype=torch.bool)
        for row, ids in enumerate(lists):
            forced = [] if prefix is None else [word for word in prefix[row].tolist() if word >= 0]
            allowed[row, torch.searchsorted(words, torch.tensor([*ids, *ends, *forced]))] = True
        allowed = allowed.to(device)
    if prefix is not None:
        prefix = torch.where(prefix < 0, prefix, torch.searchsorted(words, prefix.clamp(min=0))).to(device)
    return Limits(words.to(device), allowed, prefix)


def _prefix(options: SearchOptions, vocab_size: int, sentences: int) -> Tensor | None:
    """(sentences, longest) target ids, -1 past each end."""
    if options.prefix is None:
        return None
    rows = [list(map(int, row)) for row in options.prefix]
    if len(rows) != sentences:
        raise SearchError(f"prefix for {len(rows)} sentences: there are {sentences}")
    if any(not 0 <= word < vocab_size for row in rows for word in row):
        raise SearchError(f"prefix: must hold target ids from 0 to {vocab_size - 1}")
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long).view(sentences, width)


def check_phrases(options: SearchOptions, vocab_size: int, sentences: int) -> None:
    """Checks `must_contain`.

    Raises:
        SearchError: there is not one sequence of phrases per sentence, or a phrase cannot be produced.
    """
    if options.must_contain is None:
        return
    if not options.eos_token_ids:
        raise SearchError("must_contain: needs an eos_token_id; it is None")
    if len(options.must_contain) != sentences:
        raise SearchError(f"must_contain for {len(options.must_contain)} sentences: there are {sentences}")
    for phrases in options.must_contain:
        words = [word for phrase in phrases for word in phrase]
        if not all(phrases) or any(not 0 <= word < vocab_size or word in options.eos_token_ids for word in words):
            raise SearchError(
                f"must_contain={reprlib.repr(phrases)}: each phrase must be a non-empty list of target ids (0 to "
                f"{vocab_size - 1}) without eos_token_id"
            )
        if len(words) + 1 > options.max_new_tokens:
            raise SearchError(
                f"must_contain: {len(words)} tokens and an end do not fit max_new_tokens={options.max_new_tokens}"
            )
