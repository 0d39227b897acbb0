"""Decoding beside `generate()`: the same hypotheses sooner, and what `generate()` has no option for.

`search(model, ...)` takes what `model.generate(...)` takes. Greedy, beam and group beam search run here, the rest is handed
to `generate()` with a warning that names the option. Its own options are those of `OwnOptions`.
"""

import copy
import functools
import logging
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import ModelOutput

from .beam_search import beam_search, greedy_search
from .constrained_search import constrained_search
from .decoder import RnnDecoder
from .departures import hooked, override
from .encoder_decoder import RnnSeq2SeqModel
from .ensemble_step import EnsembleStep
from .finite import NotFiniteError, why_not_finite
from .fused_step import build_step, fused_refusal
from .group_search import group_search
from .matmul import without_autocast
from .search_limits import join_parts, make_limits, map_inputs, split_inputs
from .search_options import OwnOptions, SearchError, Settings, limit_length
from .search_plan import Found, Limits, SearchPlan
from .search_step import GeneralStep

logger = logging.getLogger(__name__)

# The arguments of generate() after its first two, in order.
_CALL = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model")
_CALL += ("streamer", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate")
_OF_THE_MODEL = {name for name, value in vars(GenerationMixin).items() if callable(value)} - {"generate"}
_OF_THE_MODEL |= {"__call__", "forward", "score_words", "get_encoder", "get_decoder"}
_OF_THE_BASE = ("__call__", "forward", "_start", "_embed_target", "copying")
_INPUTS = ("attention_mask", "decoder_input_ids", "encoder_outputs", "input_ids", "inputs_embeds")

# What a checkpoint carries as custom_generate/generate.py: transformers runs it in place of generate().
CUSTOM_GENERATE = '''"""Decoding that travels with the checkpoint: `model.search`, which hands to `generate()` what it does not cover."""


def generate(inputs=None, generation_config=None, *positional, model, **options):
    """Takes what `model.generate` takes, and the options of `model.search`."""
    return model.search(inputs, generation_config, *positional, **options)
'''


@dataclass
class SearchOutput(ModelOutput):
    """What a search found; hypotheses of a sentence stand together, best first.

    Args:
        sequences: (hypotheses, prompt + target), padded.
        sequences_scores: (hypotheses,), what the hypotheses are ranked by.
        log_probabilities: (hypotheses,), natural logarithms, summed over the produced tokens.
        lengths: (hypotheses,), produced tokens, end of sentence included.
        alignments: (hypotheses, target, source), attention averaged over heads; zero past each length.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    log_probabilities: Tensor | None = None
    lengths: Tensor | None = None
    alignments: Tensor | None = None


class SearchMixin:
    """What the search gives a model: `model.search(...)`, and the strategy that its checkpoints carry."""

    def search(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *args: Any, **kwargs: Any
    ) -> Tensor | ModelOutput:
        """As the function `search` of this file."""
        return search(self, inputs, generation_config, *args, **kwargs)

    @property
    def search_path(self) -> str:
        """How `search` decodes: `fused`, or `general` or `generate()` with the reason."""
        if reason := generate_departure(self):
            return f"generate(): {reason}"
        reason = fused_refusal(self)
        return f"general: {reason}" if reason else "fused"

    def search_covers(self, **options: Any) -> bool:
        """Whether `search` follows these options itself; otherwise it hands them to `generate()`."""
        OwnOptions.take(options)
        settings = Settings(self.generation_config, options.pop("generation_config", None), options)
        return _not_covered(self, settings, {"input_ids": True, **options}) is None

    def _validate_generation_mode(self, generation_mode: Any, generation_config: GenerationConfig, *args: Any) -> None:
        super()._validate_generation_mode(generation_mode, generation_config, *args)
        # transformers' processor for it calls the model with target words in the place of the source.
        if getattr(generation_config, "guidance_scale", None) not in (None, 1):
            raise ValueError(
                f"guidance_scale={generation_config.guidance_scale}: transformers guides decoders without an encoder only"
            )

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching pages keys and values, and this model's cache holds one state instead.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("generate_batch: needs a paged key-value cache; use search(rows_per_batch=...)")

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers does it; a limit on new tokens that a checkpoint holds becomes its `max_length`."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        limit_length(model.generation_config)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        own = self.generation_config
        self.generation_config = copy.deepcopy(own)
        limit_length(self.generation_config)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.generation_config = own
        self._write_strategy(save_directory, kwargs.get("is_main_process", True))

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        # save_pretrained(push_to_hub=True) uploads before it returns.
        self._write_strategy(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _write_strategy(self, directory: str | os.PathLike, is_main_process: bool = True) -> None:
        path = Path(directory) / "custom_generate" / "generate.py"
        if self._auto_class is None or not is_main_process or not Path(directory).is_dir():
            return
        if path.is_file() and path.read_text(encoding="utf-8") == CUSTOM_GENERATE:
            return
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(CUSTOM_GENERATE, encoding="utf-8")
        os.replace(part, path)


@torch.no_grad()
def search(
    model: nn.Module,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *positional: Any,
    **options: Any,
) -> Tensor | ModelOutput:
    """What `model.generate` returns for the same arguments, found faster where greedy or beam search is asked for.

    Autocast is without effect on it: `weight_type` says which type computes.

    Args:
        model: an `RnnSeq2SeqForConditionalGeneration`.
        inputs: (batch, source) token ids; `input_ids` is the same.
        generation_config: as for `generate()`.
        positional: further arguments of `generate()` in its order.
        options: those of `generate()`, and those of `OwnOptions`.

    Returns:
        (hypotheses, prompt + target) token ids, or a `SearchOutput` with `return_dict_in_generate` or
        `return_alignments`; what `generate()` returns where it decodes instead.

    Raises:
        SearchError: an option of `OwnOptions` is out of range, or is given with one that only `generate()` follows; the
            scores are not finite (the message names the weight).
    """
    options = {**dict(zip(_CALL, positional, strict=False)), **options}
    own = OwnOptions.take(options)
    settings = Settings(model.generation_config, generation_config, options)
    if inputs is not None:
        options["input_ids"] = inputs
    reason = _not_covered(model, settings, options)
    if reason is None:
        # A step is kept from call to call, with weights in the type that its model gave them.
        with without_autocast(next(model.parameters())):
            try:
                step = _step(model, own)
                return _run(step, settings, own, {name: options.get(name) for name in _INPUTS}, model.device)
            except NotFiniteError:
                raise SearchError(why_not_finite([model, *own.ensemble])) from None
    if own.changed():
        raise SearchError(f"{', '.join(own.changed())}: cannot go with {reason}, which only generate() covers")
    _say_once(type(model).__name__, reason)
    return type(model).generate(model, generation_config=generation_config, **options)


@functools.lru_cache(maxsize=256)
def _say_once(name: str, reason: str) -> None:
    logger.warning("%s.search: generate() decodes instead, at its own speed, because of %s", name, reason)


def _not_covered(model: nn.Module, settings: Settings, options: dict[str, Any]) -> str | None:
    """What sends a call to `generate()`, or None."""
    if model.training:
        return "model.train()"
    if reason := generate_departure(model):
        return reason
    missing = settings.not_followed()
    if settings["do_sample"]:
        missing.append("do_sample=True")
    for name, value in options.items():
        known = name in _INPUTS or name in settings.values or name in ("tokenizer", "trust_remote_code")
        if not known and value is not None and value is not False and value != []:
            missing.append(name)
    if all(options.get(name) is None for name in ("input_ids", "inputs_embeds", "encoder_outputs")):
        missing.append("a source that is not given")
    if missing:
        return ", ".join(missing)
    beams, returned = settings["num_beams"] or 1, settings["num_return_sequences"] or 1
    if returned > beams or beams < 1:
        return f"num_return_sequences={returned} with num_beams={beams}"
    together = beams // max(1, settings["num_beam_groups"] or 1)
    if beams > 1 and max(2, 1 + len(settings.eos_token_ids())) * together > model.config.vocab_size:
        return f"num_beams={beams} with a vocabulary of {model.config.vocab_size}"
    if settings.eos_token_ids() and settings["pad_token_id"] is None and beams == 1:
        return "pad_token_id=None"
    return None


def generate_departure(model: nn.Module) -> str | None:
    """What stands on the model as a whole: `generate()` calls that at each position, and a search calls its parts."""
    own = next(cls for cls in type(model).__mro__ if SearchMixin in cls.__bases__)
    parts = (("model", model, own, _OF_THE_MODEL), ("model.model", model.model, RnnSeq2SeqModel, _OF_THE_BASE))
    for name, part, known, methods in parts:
        if not isinstance(part, known):
            return f"{name}: {type(part).__name__} in its place"
        if overridden := override(part, known, methods):
            return f"{name}: {overridden} of its own"
        if reason := hooked(part):
            return f"{name}: {reason}"
    decoder = model.model.decoder
    return None if isinstance(decoder, RnnDecoder) else f"decoder: {type(decoder).__name__} in its place"


def _step(model: nn.Module, own: OwnOptions) -> GeneralStep:
    if training := [other for other in own.ensemble if other.training]:
        raise SearchError(f"ensemble: {len(training)} member(s) in training mode; call eval() on them")
    for number, other in enumerate(own.ensemble, start=1):
        if reason := generate_departure(other):
            raise SearchError(f"ensemble: member {number} cannot be searched: {reason}")
    steps = [build_step(member, own.weight_type) for member in (model, *own.ensemble)]
    return EnsembleStep(steps) if own.ensemble else steps[0]


def _run(
    step: GeneralStep, settings: Settings, own: OwnOptions, inputs: dict[str, Any], device: torch.device
) -> Tensor | SearchOutput:
    """The search itself, over any step; `inputs` holds what the encoder and the prompt are made of."""
    if own.return_alignments or own.coverage_penalty:
        _require_attention(step, own)
    prompt = _prompt(settings, inputs, device)
    plan = _plan(settings, own, prompt.shape[1])
    limits = make_limits(own, plan, step.vocab_size, len(prompt), device)
    _check_phrases(own, plan, step.vocab_size, len(prompt))
    parts = []
    for rows, part in split_inputs(inputs, own.rows_per_batch):
        if own.must_contain is None:
            found = _search_batch(step, step.read(**part), prompt[rows], plan, limits.of(rows))
        else:
            chosen = range(len(prompt)) if isinstance(rows, slice) else rows.tolist()
            found = _search_constrained(step, part, prompt[rows], plan, [own.must_contain[row] for row in chosen])
        parts.append((rows, found))
    found = parts[0][1] if isinstance(parts[0][0], slice) else join_parts(parts, plan, len(prompt))
    sequences = torch.cat([prompt.repeat_interleave(plan.num_return_sequences, 0), found.tokens], 1)
    if not (settings["return_dict_in_generate"] or own.return_alignments):
        return sequences
    alignments = found.weights if own.return_alignments else None
    return SearchOutput(sequences, found.scores, found.log_probabilities, found.lengths, alignments)


def _search_batch(step: GeneralStep, source: Any, prompt: Tensor, plan: SearchPlan, limits: Limits) -> Found:
    state = step.start(source, plan.num_beams)
    prompt = prompt.repeat_interleave(plan.num_beams, 0)
    for column in prompt[:, :-1].unbind(1):
        state = step(column, state).state
    if plan.num_beam_groups > 1:
        return group_search(step, state, prompt[:, -1], plan, limits)
    if plan.num_beams > 1:
        return beam_search(step, state, prompt[:, -1], plan, limits, step.source_mask(source))
    return greedy_search(step, state, prompt[:, -1], plan, limits)


def _search_constrained(
    step: GeneralStep, inputs: dict[str, Any], prompt: Tensor, plan: SearchPlan, phrases: Sequence[Any]
) -> Found:
    """Sentence by sentence: how many hypotheses run depends on each sentence's phrases."""
    parts = []
    for row in range(len(prompt)):
        index = torch.tensor([row], device=prompt.device)
        source = step.read(**map_inputs(inputs, lambda tensor, index=index: tensor.index_select(0, index)))
        state = step.start(source, 1)
        for column in prompt[index, :-1].unbind(1):
            state = step(column, state).state
        parts.append((index, constrained_search(step, state, prompt[index, -1], plan, phrases[row])))
    return join_parts(parts, plan, len(prompt))


def _require_attention(step: GeneralStep, own: OwnOptions) -> None:
    if not step.has_weights:
        name = "return_alignments" if own.return_alignments else "coverage_penalty"
        raise SearchError(f"{name}={getattr(own, name)}: the model has no attention (context={step.config.context!r})")


def _prompt(settings: Settings, inputs: dict[str, Any], device: torch.device) -> Tensor:
    """(sentences, prompt): the start token, and the target words given, as `generate()` joins them."""
    given = next(inputs[name] for name in ("input_ids", "inputs_embeds", "encoder_outputs") if inputs[name] is not None)
    sentences = len(given if isinstance(given, Tensor) else given[0])
    start = settings["decoder_start_token_id"]
    start = settings["bos_token_id"] if start is None else start
    if start is None:
        raise SearchError("decoder_start_token_id=None: the model's generation config must name a start token")
    start = torch.as_tensor(start, device=device).view(-1, 1).expand(sentences, 1)
    words = inputs["decoder_input_ids"]
    if words is None:
        return start
    return torch.cat([start, words], 1) if bool((words[:, 0] != start[:, 0]).all()) else words


def _plan(settings: Settings, own: OwnOptions, prompt: int) -> SearchPlan:
    limit, eos = settings.new_tokens(prompt), settings.eos_token_ids()
    if settings.doubly_limited:
        logger.warning(
            "max_new_tokens=%s and max_length=%s are both given: max_new_tokens counts",
            settings["max_new_tokens"],
            settings["max_length"],
        )
    if limit < 1:
        raise SearchError(f"max_length={settings['max_length']}: the prompt alone has {prompt} tokens")
    _check_groups(settings, own)
    pad = settings["pad_token_id"]
    return SearchPlan(
        max_new_tokens=limit,
        eos_token_ids=eos,
        pad_token_id=pad if pad is not None else (eos[0] if eos else 0),
        num_beams=settings["num_beams"] or 1,
        num_return_sequences=settings["num_return_sequences"] or 1,
        early_stopping=settings["early_stopping"],
        length_penalty=settings["length_penalty"],
        gnmt_alpha=own.gnmt_alpha,
        coverage_penalty=own.coverage_penalty,
        stop_at_top=own.stop_at_top,
        num_beam_groups=settings["num_beam_groups"] or 1,
        diversity_penalty=settings["diversity_penalty"] or 0.0,
        need_weights=own.return_alignments or own.coverage_penalty > 0,
        need_scores=bool(settings["return_dict_in_generate"]) or own.return_alignments,
    )


def _check_groups(settings: Settings, own: OwnOptions) -> None:
    groups, beams = settings["num_beam_groups"] or 1, settings["num_beams"] or 1
    if groups > 1 and own.stop_at_top:
        raise SearchError(f"stop_at_top=True: does not go with num_beam_groups={groups}")
    if groups < 1 or beams % groups:
        raise SearchError(f"num_beam_groups={groups}: must divide num_beams={beams}")
    if (penalty := settings["diversity_penalty"] or 0.0) < 0 or (penalty and groups == 1):
        raise SearchError(f"diversity_penalty={penalty}: must be 0 or more, and needs num_beam_groups of at least 2")
    if groups > 1:
        for name in ("coverage_penalty", "must_contain"):
            if getattr(own, name) not in (None, 0.0):
                raise SearchError(f"num_beam_groups={groups}: does not go with {name}")


def _check_phrases(own: OwnOptions, plan: SearchPlan, vocab_size: int, sentences: int) -> None:
    if own.must_contain is None:
        return
    if not plan.eos_token_ids:
        raise SearchError("must_contain: needs an end of sentence, eos_token_id is None")
    if len(own.must_contain) != sentences:
        raise SearchError(f"must_contain for {len(own.must_contain)} sentences: there are {sentences}")
    for phrases in own.must_contain:
        words = [word for phrase in phrases for word in phrase]
        if not all(phrases) or any(not 0 <= word < vocab_size or word in plan.eos_token_ids for word in words):
            raise SearchError(
                f"must_contain={reprlib.repr(phrases)}: phrases hold target ids, at least one, and no end of sentence"
            )
        if len(words) + 1 > plan.max_new_tokens:
            raise SearchError(
                f"must_contain: {len(words)} tokens and an end do not fit max_new_tokens={plan.max_new_tokens}"
            )


__all__ = ["CUSTOM_GENERATE", "SearchError", "SearchMixin", "SearchOutput", "search"]
