"""`model.search`: what `generate()` returns, found faster, and options that `generate()` does not have.

Greedy, beam and group beam search run here. Every other mode is handed to `generate()`, with a warning that names the
option.
"""

import copy
import functools
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import ModelOutput

from .beam_search import SearchResult, beam_search, greedy_search, group_search
from .constrained_search import constrained_search
from .decoder import RnnDecoder
from .departures import hooked, override
from .encoder import RnnEncoderOutput
from .encoder_decoder import RnnSeq2SeqModel
from .fused_step import build_step, fused_refusal
from .matmul import without_autocast
from .pretrained import why_not_finite
from .search_options import INPUTS, OWN, SOURCES, Limits, SearchError, SearchOptions
from .search_options import check_phrases, limit_length, make_limits
from .search_step import EnsembleStep, GeneralStep, NotFiniteError

logger = logging.getLogger(__name__)

# The arguments of generate() after its first two, in order.
_CALL = ("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "synced_gpus", "assistant_model")
_CALL += ("streamer", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate")

# The sources and the prompt of a call, by their names in generate().
Inputs = dict[str, Tensor | ModelOutput | tuple | None]

# Methods that generate() calls at each position and a search does not.
_OF_THE_MODEL = {name for name, value in vars(GenerationMixin).items() if callable(value)} - {"generate"}
_OF_THE_MODEL |= {"__call__", "forward", "score_words", "score_outputs", "get_encoder", "get_decoder"}
_OF_THE_BASE = ("__call__", "forward", "encode", "start_cache", "target_words", "copying", "alignment")

# The file custom_generate/generate.py of a checkpoint: transformers runs it instead of generate().
CUSTOM_GENERATE = '''"""Decoding by `model.search`, which hands modes that it does not cover to `generate()`."""


def generate(inputs=None, generation_config=None, *positional, model, **options):
    """Takes what `model.generate` takes, and the options of `model.search`."""
    return model.search(inputs, generation_config, *positional, **options)
'''


@dataclass
class SearchOutput(ModelOutput):
    """The hypotheses of a search; those of a sentence are neighbors, best first.

    Args:
        sequences: (hypotheses, prompt + target), padded.
        sequences_scores: (hypotheses,), the scores that rank the hypotheses.
        log_probabilities: (hypotheses,), natural logarithms, summed over the produced tokens. Where a sentence has fewer
            hypotheses than were asked for, the rows in their place are below -5e8, as in transformers.
        lengths: (hypotheses,), produced tokens, end of sentence included.
        alignments: (hypotheses, target, source), attention averaged over heads; zero past each length.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    log_probabilities: Tensor | None = None
    lengths: Tensor | None = None
    alignments: Tensor | None = None


class _AtString(StoppingCriteria):
    """Ends a row at the token that completes one of the strings in its text."""

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.strings, self.tokenizer = strings, tokenizer

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        rows = input_ids.tolist()
        before, now = (
            self.tokenizer.batch_decode(part, skip_special_tokens=True) for part in ([row[:-1] for row in rows], rows)
        )
        ends = [
            any(string in text and string not in earlier for string in self.strings)
            for earlier, text in zip(before, now, strict=True)
        ]
        return torch.tensor(ends, device=input_ids.device)


class SearchMixin:
    """Gives a model `search(...)`, and its checkpoints the file custom_generate/generate.py."""

    @torch.no_grad()
    def search(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *positional: object,
        **options: object,
    ) -> Tensor | ModelOutput:
        """What `generate` returns for the same arguments, found faster with greedy, beam and group beam search.

        Takes every argument of `generate`. The search follows `num_beams`, `num_return_sequences`, `num_beam_groups`,
        `diversity_penalty`, `length_penalty`, `early_stopping`, `max_new_tokens`, `max_length`, `return_dict_in_generate`,
        `decoder_input_ids` and the ids of special tokens. Any other that is set (sampling, processors, streamers,
        assistants) makes `generate` decode, with one warning that names it. Options that are not given have the values of
        `generation_config`, then of `model.generation_config`. Autocast has no effect: `weight_type` sets the type that
        computes.

        Args:
            inputs: (batch, source) token ids, the same as `input_ids`; of a model that reads pictures its `pixel_values`; or
                give `inputs_embeds` or `encoder_outputs`. With padding also give `attention_mask`.
            generation_config: as for `generate`.
            positional: further arguments of `generate` in its order.
            options: options of `generate`, and these:

                * `gnmt_alpha` (default: None): divide a hypothesis' log-probability by ((5 + length) / 6) ** gnmt_alpha (Wu
                  2016, equation 14), instead of length ** length_penalty. 0 or more.
                * `coverage_penalty` (default: 0.0): beta of the same equation, the weight of the coverage of the source. 0
                  or more; needs a model with attention.
                * `ensemble` (default: ()): models that decode together with this one, on its device and with its tokenizer;
                  their log-probabilities are averaged at each position.
                * `weight_type` (default: 'float32'): `float32` (the model's own type), `bfloat16`, or `int8` weights on a
                  CPU, which are faster and change some translations.
                * `return_alignments` (default: False): return the attention of the hypotheses.
                * `shortlist` (default: None): target ids that may be produced, one sequence for all sentences or one per
                  sentence. The end of sentence is always allowed.
                * `prefix` (default: None): one sequence of target ids per sentence; its hypotheses begin with it, and it
                  counts in the scores.
                * `must_contain` (default: None): one sequence of phrases (sequences of target ids) per sentence; every
                  hypothesis contains them. Not with `shortlist`, `prefix`, `coverage_penalty` or `stop_at_top`.
                * `stop_at_top` (default: False): a sentence is done when enough of its hypotheses have ended and the
                  likeliest continuation of its beams ends as well (the rule of OpenNMT-py). Fewer steps than `generate`,
                  which continues until `num_beams` hypotheses have ended, and sometimes other hypotheses.
                * `rows_per_batch` (default: None): search this many sentences at a time, of similar length; the results
                  keep the input's order. None: all together.

        Returns:
            (hypotheses, prompt + target) token ids; the hypotheses of a sentence are neighbors, best first. With
            `return_dict_in_generate` or `return_alignments` a `SearchOutput`, which also has `sequences_scores`,
            `log_probabilities`, `lengths` and `alignments`. If `generate` decodes, its result.

        Raises:
            SearchError: one of these options is out of range, or is combined with an option that only `generate` follows;
                or the scores are not finite (the message names the weight).
        """
        call = {**dict(zip(_CALL, positional, strict=False)), **options}
        if inputs is not None:
            call[self.main_input_name] = inputs
        resolved = SearchOptions.resolve(self.generation_config, generation_config, call)
        reason = generate_reason(self, resolved)
        if reason is None:
            return _search(self, resolved, {name: call.get(name) for name in INPUTS})
        if changed := resolved.changed():
            raise SearchError(f"{', '.join(changed)}: cannot be combined with {reason}, which only generate() supports")
        _warn_once(type(self).__name__, reason)
        call = {name: value for name, value in call.items() if name not in OWN}
        return type(self).generate(self, generation_config=generation_config, **call)

    @property
    def search_path(self) -> str:
        """How `search` decodes: `fused`, or `general` or `generate()` with the reason."""
        if reason := generate_departure(self):
            return f"generate(): {reason}"
        reason = fused_refusal(self)
        return f"general: {reason}" if reason else "fused"

    def search_covers(self, **options: object) -> bool:
        """Whether `search` follows these options itself; otherwise it hands them to `generate()`."""
        call_config = options.pop("generation_config", None)
        resolved = SearchOptions.resolve(self.generation_config, call_config, {"input_ids": True, **options})
        return generate_reason(self, resolved) is None

    def _validate_generation_mode(
        self, generation_mode: object, generation_config: GenerationConfig, *args: object
    ) -> None:
        super()._validate_generation_mode(generation_mode, generation_config, *args)
        # transformers' processor for it calls the model with target words as the source.
        if getattr(generation_config, "guidance_scale", None) not in (None, 1):
            raise ValueError(
                f"guidance_scale={generation_config.guidance_scale}: transformers supports it for decoder-only models "
                "only; leave it at 1"
            )

    def _get_stopping_criteria(
        self,
        generation_config: GenerationConfig,
        stopping_criteria: StoppingCriteriaList | None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> StoppingCriteriaList:
        """As in transformers, which would look for stop strings in the source's vocabulary."""
        strings = generation_config.stop_strings
        if strings is None or not hasattr(tokenizer, "target_backend_tokenizer"):
            return super()._get_stopping_criteria(generation_config, stopping_criteria, tokenizer)
        without = copy.copy(generation_config)
        without.stop_strings = None
        criteria = super()._get_stopping_criteria(without, stopping_criteria, tokenizer)
        criteria.append(_AtString([strings] if isinstance(strings, str) else strings, tokenizer))
        return criteria

    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> "SearchMixin":
        """As in transformers; a `max_new_tokens` of the checkpoint becomes `max_length`."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        limit_length(model.generation_config)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args: object, **kwargs: object) -> None:
        config = self.generation_config
        self.generation_config = copy.deepcopy(config)
        limit_length(self.generation_config)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.generation_config = config
        if kwargs.get("is_main_process", True):
            self._write_strategy(save_directory)

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args: object, **kwargs: object) -> object:
        # save_pretrained(push_to_hub=True) uploads before it returns.
        self._write_strategy(working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _write_strategy(self, directory: str | os.PathLike) -> None:
        if self._auto_class is None or not Path(directory).is_dir():
            return
        path = Path(directory, "custom_generate", "generate.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(CUSTOM_GENERATE, encoding="utf-8")


@functools.lru_cache(maxsize=256)
def _warn_once(name: str, reason: str) -> None:
    logger.warning("%s.search: generate() decodes instead, at its own speed, because of %s", name, reason)


# ---------------------------------------------------------------- what generate() does instead


def generate_reason(model: nn.Module, options: SearchOptions) -> str | None:
    """Why `generate()` decodes instead of the search; None if the search does."""
    if model.training:
        return "model.train()"
    if reason := generate_departure(model):
        return reason
    if options.left_to_generate:
        return ", ".join(options.left_to_generate)
    beams, returned = options.num_beams, options.num_return_sequences
    if returned > beams or beams < 1:
        return f"num_return_sequences={returned} with num_beams={beams}"
    beams_of_a_group = beams // max(1, options.num_beam_groups)
    if beams > 1 and options.candidates // beams * beams_of_a_group > model.config.vocab_size:
        return f"num_beams={beams} with a vocabulary of {model.config.vocab_size}"
    return None


def generate_departure(model: nn.Module) -> str | None:
    """A hook on or an override of the model as a whole: `generate()` calls it at each position, a search would not."""
    known = next(cls for cls in type(model).__mro__ if SearchMixin in cls.__bases__)
    parts = (("model", model, known, _OF_THE_MODEL), ("model.model", model.model, RnnSeq2SeqModel, _OF_THE_BASE))
    for name, part, kind, methods in parts:
        if not isinstance(part, kind):
            return f"{name}: {type(part).__name__} in its place"
        if overridden := override(part, kind, methods):
            return f"{name}: {overridden} of its own"
        if reason := hooked(part):
            return f"{name}: {reason}"
    decoder = model.model.decoder
    return None if isinstance(decoder, RnnDecoder) else f"decoder: {type(decoder).__name__} in its place"


# ---------------------------------------------------------------- the search


def _search(model: nn.Module, options: SearchOptions, inputs: Inputs) -> Tensor | SearchOutput:
    """The search by a step of the model or of the ensemble."""
    # A step is cached between calls, with weights in the type of its model.
    with without_autocast(next(model.parameters())):
        try:
            step = _build_step(model, options)
            prompt = _prompt(options, inputs, model.device)
            options = options.for_prompt(prompt.shape[1])
            result = _run(step, options, inputs, prompt)
        except NotFiniteError:
            raise SearchError(why_not_finite([model, *options.ensemble])) from None
    sequences = torch.cat([prompt.repeat_interleave(options.num_return_sequences, 0), result.tokens], 1)
    if not options.returns_details:
        return sequences
    alignments = result.weights if options.return_alignments else None
    return SearchOutput(sequences, result.scores, result.log_probabilities, result.lengths, alignments)


def _build_step(model: nn.Module, options: SearchOptions) -> GeneralStep:
    if model.dtype != torch.float32 and options.weight_type == "int8":
        raise SearchError(
            f"weight_type='int8': the model is in {model.dtype}, and its products are made of float32; load it with "
            "dtype=torch.float32"
        )
    if training := [member for member in options.ensemble if member.training]:
        raise SearchError(f"ensemble: {len(training)} member(s) in training mode; call eval() on them")
    for number, member in enumerate(options.ensemble, start=1):
        if reason := generate_departure(member):
            raise SearchError(f"ensemble: member {number} cannot be searched: {reason}")
    steps = [build_step(member, options.weight_type) for member in (model, *options.ensemble)]
    step = EnsembleStep(steps) if options.ensemble else steps[0]
    if options.needs_weights and not step.has_weights:
        name = "return_alignments" if options.return_alignments else "coverage_penalty"
        raise SearchError(
            f"{name}={getattr(options, name)}: the model has no attention (context={step.config.context!r})"
        )
    return step


def _prompt(options: SearchOptions, inputs: Inputs, device: torch.device) -> Tensor:
    """(sentences, prompt): the start token, and the given target words, joined as in `generate()`."""
    source = next(inputs[name] for name in SOURCES if inputs[name] is not None)
    sentences = len(source if isinstance(source, Tensor) else source[0])
    if options.start_token_id is None:
        raise SearchError("decoder_start_token_id=None: the model's generation config must name a start token")
    start = torch.as_tensor(options.start_token_id, device=device).view(-1, 1).expand(sentences, 1)
    words = inputs["decoder_input_ids"]
    if words is None:
        return start
    return torch.cat([start, words], 1) if bool((words[:, 0] != start[:, 0]).all()) else words


def _run(step: GeneralStep, options: SearchOptions, inputs: Inputs, prompt: Tensor) -> SearchResult:
    """The search over all parts of the batch."""
    limits = make_limits(options, step.vocab_size, len(prompt), prompt.device)
    check_phrases(options, step.vocab_size, len(prompt))
    parts = []
    for rows, part, columns in _split(inputs, len(prompt), options.rows_per_batch):
        if options.must_contain is None:
            result = _search_batch(step, step.read(**part), prompt[rows], options, limits.of(rows))
        else:
            numbers = range(len(prompt)) if isinstance(rows, slice) else rows.tolist()
            phrases = [options.must_contain[number] for number in numbers]
            result = _search_constrained(step, part, prompt[rows], options, phrases)
        if columns is not None and result.weights is not None:
            whole = result.weights.new_zeros(*result.weights.shape[:2], len(columns))
            whole[..., columns] = result.weights
            result = result._replace(weights=whole)
        parts.append((rows, result))
    return parts[0][1] if isinstance(parts[0][0], slice) else _join(parts, options, len(prompt))


def _search_batch(
    step: GeneralStep,
    source: RnnEncoderOutput | list[RnnEncoderOutput],
    prompt: Tensor,
    options: SearchOptions,
    limits: Limits,
) -> SearchResult:
    state = step.start(source, options.num_beams)
    prompt = prompt.repeat_interleave(options.num_beams, 0)
    for column in prompt[:, :-1].unbind(1):
        state = step(column, state).state
    if options.num_beam_groups > 1:
        return group_search(step, state, prompt[:, -1], options, limits)
    if options.num_beams > 1:
        return beam_search(step, state, prompt[:, -1], options, limits, step.source_mask(source))
    return greedy_search(step, state, prompt[:, -1], options, limits)


def _search_constrained(
    step: GeneralStep,
    inputs: Inputs,
    prompt: Tensor,
    options: SearchOptions,
    phrases: Sequence[Sequence[Sequence[int]]],
) -> SearchResult:
    """Sentence by sentence: the number of running hypotheses depends on each sentence's phrases."""
    parts = []
    for row in range(len(prompt)):
        index = torch.tensor([row], device=prompt.device)
        source = step.read(**_map_inputs(inputs, lambda tensor, index=index: tensor.index_select(0, index)))
        state = step.start(source, 1)
        for column in prompt[index, :-1].unbind(1):
            state = step(column, state).state
        parts.append((index, constrained_search(step, state, prompt[index, -1], options, phrases[row])))
    return _join(parts, options, len(prompt))


def _split(inputs: Inputs, sentences: int, rows: int | None) -> list[tuple[Tensor | slice, Inputs, Tensor | None]]:
    """Parts of at most `rows` sentences; of `input_ids` with a mask, those of similar length go together, longest first.

    Such parts have no columns that are all padding; bool (source,) is True at those that they have. Other inputs keep
    their order.
    """
    inputs = {name: value for name, value in inputs.items() if name != "decoder_input_ids" and value is not None}
    if rows is None:
        return [(slice(None), inputs, None)]
    if inputs.keys() != {"input_ids", "attention_mask"}:
        return [
            (part, _map_inputs(inputs, lambda tensor, part=part: tensor[part.to(tensor.device)]), None)
            for part in torch.arange(sentences).split(rows)
        ]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    parts = []
    for part in mask.sum(1).argsort(descending=True, stable=True).split(rows):
        columns = mask[part].bool().any(0)
        given = {"input_ids": ids[part][:, columns], "attention_mask": mask[part][:, columns]}
        parts.append((part, given, columns))
    return parts


def _map_inputs(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """`function` of every tensor, including those of encoder outputs."""

    def visit(value: Tensor | ModelOutput | tuple | None) -> Tensor | ModelOutput | tuple | None:
        if isinstance(value, Tensor):
            return function(value)
        if isinstance(value, dict):  # a ModelOutput too
            return type(value)(**{name: visit(part) for name, part in value.items()})
        return tuple(map(visit, value)) if isinstance(value, (tuple, list)) else value

    return {name: visit(value) for name, value in inputs.items()}


def _join(parts: Sequence[tuple[Tensor, SearchResult]], options: SearchOptions, sentences: int) -> SearchResult:
    """The hypotheses of all parts in the order of the input."""
    back = torch.cat([rows for rows, _ in parts]).argsort()
    results = [result for _, result in parts]
    width = max(result.tokens.shape[1] for result in results)

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors).unflatten(0, (sentences, options.num_return_sequences))[back].flatten(0, 1)

    def widen(tensor: Tensor, *ends: int, value: float = 0) -> Tensor:
        sizes = [end - size for end, size in zip(ends, tensor.shape[1:], strict=True)]
        return F.pad(tensor, [part for size in reversed(sizes) for part in (0, size)], value=value)

    weights = None
    if options.needs_weights:
        source = max(result.weights.shape[2] for result in results)
        weights = join([widen(result.weights, width, source) for result in results])
    return SearchResult(
        tokens=join([widen(result.tokens, width, value=options.fill_token_id) for result in results]),
        scores=join([result.scores for result in results]),
        log_probabilities=join([result.log_probabilities for result in results]),
        lengths=join([result.lengths for result in results]),
        weights=weights,
    )
