"""`pipeline("rnn-translation", model=...)`: texts in, translations out; the names transformers had are reserved."""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces
from hf_rnn_seq2seq.generation.attention import hard_alignment
from hf_rnn_seq2seq.model.precision import why_not_finite
from hf_rnn_seq2seq.model.search_options import Settings

logger = logging.getLogger(__name__)

TASK = "rnn-translation"
# What `preprocess` tells of a text beside its ids; none of it goes to the model.
FACTS = ("text", "truncated", "unknown")


class RnnTranslationPipeline(Pipeline):
    """Translates texts with a model of this package, in batches.

    A call takes a text or a list of texts (or anything a transformers pipeline iterates over) and

    Args:
        n_best: hypotheses per text, the same as `num_return_sequences`; more than one needs as many beams, or sampling.
        return_alignments: also return tokens, attention and hard alignment.
        return_tensors: return `translation_token_ids`, in place of the text if `return_text` does not ask for it.
        batch_size: texts per batch.
        max_source_length: tokens a text is cut at (default: the tokenizer's limit).
        generation: whatever `model.search` and `model.generate` take, such as `num_beams` or `do_sample`.

    Returns:
        for each text a dictionary, or where several hypotheses are asked for a list of them, best first:
        `translation_text`, `score` (what hypotheses are ranked by), `log_probability` (the model's own, whatever bent
        its choice of words); with `return_alignments` also `source_tokens`, `target_tokens`, `attention` (target rows,
        source columns) and `alignment` ([source, target] positions). A text without a word translates to "". A warning
        counts the texts that were cut, and those of which the tokenizer knows no word.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_feature_extractor = False
    _load_image_processor = False

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, list | tuple) and not inputs:
            return []  # transformers reads the first one
        self._unread = _Unread()
        found = super().__call__(inputs, *args, **kwargs)
        if isinstance(found, list | dict):
            self._unread.report()
            return found
        return self._unread.reported_behind(found)

    def _sanitize_parameters(
        self,
        n_best: int | None = None,
        max_source_length: int | None = None,
        truncation: Any = None,
        return_tensors: bool | None = None,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
        **generation: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if n_best is not None:
            generation["num_return_sequences"] = n_best
        # What a call leaves open is as the pipeline was made, so only what is given is handed on.
        before = {"max_source_length": max_source_length}
        after = {
            "n_best": n_best,
            "return_tensors": return_tensors,
            "return_text": return_text,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
        }
        given = [{name: value for name, value in group.items() if value is not None} for group in (before, after)]
        return given[0], generation, given[1]

    def preprocess(self, text: str, max_source_length: int | None = None) -> dict[str, Any]:
        from hf_rnn_seq2seq.generation.encoding import encode_sources

        if not isinstance(text, str):
            raise ValueError(f"input of type {type(text).__name__}: must be a text or a list of texts")
        encoded = encode_sources(self.tokenizer, [text], max_source_length)
        # A batch has no room for a missing row: the end of sentence alone is read, and its translation dropped.
        ids = torch.tensor([encoded.ids[0] or [self.tokenizer.eos_token_id]])
        facts = {"text": text, "truncated": bool(encoded.truncated), "unknown": bool(encoded.unknown)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **facts}

    def _forward(self, inputs: dict[str, Any], return_alignments: bool = False, **generation: Any) -> dict[str, Any]:
        facts = {name: inputs.pop(name) for name in FACTS}
        rows = len(inputs["input_ids"])
        options = {**generation, "return_dict_in_generate": True}
        settings = Settings(self.model.generation_config, options.get("generation_config"), options)
        if settings["stop_strings"] is not None:
            options.setdefault("tokenizer", self.tokenizer)
        if self.model.search_covers(**options):
            output = self._searched(inputs, {**options, "return_alignments": return_alignments})
        else:
            output = self._generated(inputs, options, settings, return_alignments)
        if "attention" in output:
            output["source_length"] = inputs["attention_mask"].sum(1)
        output = {name: value.unflatten(0, (rows, -1)) for name, value in output.items()}
        return {**output, **facts}

    def _searched(self, inputs: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Tensor]:
        found = self.model.search(**inputs, **options)
        output = {"length": found.lengths, "score": found.sequences_scores, "log_probability": found.log_probabilities}
        output["sequence"] = found.sequences[:, -int(found.lengths.max()) :]
        return output if found.alignments is None else {**output, "attention": found.alignments}

    def _generated(
        self, inputs: dict[str, Tensor], options: dict[str, Any], settings: Settings, return_alignments: bool
    ) -> dict[str, Tensor]:
        """What `generate()` produced, read once more by the model: few modes tell scores, and none the model's own."""
        several = (settings["num_beams"] or 1) > 1  # which are ranked by what the processors left of their scores
        found = self.model.search(**inputs, **{"output_scores": several, **options})
        sequences = found.sequences
        prompt, given = 1, options.get("decoder_input_ids")
        if given is not None:
            prompt = given.shape[1] + int((sequences[:, 0] != given[0, 0]).any())
        produced = sequences[:, prompt:]
        lengths = _lengths(produced, settings)
        read = {name: value.repeat_interleave(len(sequences) // len(value), 0) for name, value in inputs.items()}
        told = self.model(**read, decoder_input_ids=sequences[:, :-1], output_attentions=return_alignments)
        chosen = told.logits[:, prompt - 1 :].float().log_softmax(-1).gather(-1, produced.unsqueeze(-1)).squeeze(-1)
        own = torch.arange(produced.shape[1], device=produced.device) < lengths.unsqueeze(1)
        total = chosen.masked_fill(~own, 0).sum(1)
        if bool(total.isnan().any()):
            raise ValueError(why_not_finite([self.model]))
        score = getattr(found, "sequences_scores", None)
        score = total / lengths ** settings["length_penalty"] if score is None else score
        output = {"length": lengths, "score": score, "log_probability": total}
        output["sequence"] = produced
        if return_alignments and told.cross_attentions is None:
            raise ValueError(
                f"return_alignments=True: the model has no attention (context={self.model.config.context!r})"
            )
        if return_alignments:
            output["attention"] = told.cross_attentions[-1].mean(1)[:, prompt - 1 :]
        return output

    def postprocess(
        self,
        found: dict[str, Any],
        n_best: int | None = None,
        return_tensors: bool = False,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        text = found["text"]
        self._unread.add(found)
        several = n_best is not None or found["length"].shape[1] > 1
        return_text = not return_tensors if return_text is None else return_text
        if not text.strip():
            empty: dict[str, Any] = {"translation_text": ""} if return_text else {}
            empty |= {"translation_token_ids": found["sequence"].new_empty(0)} if return_tensors else {}
            empty |= {"score": 0.0, "log_probability": 0.0}
            return [empty] if several else empty
        rows = []
        for number, length in enumerate(found["length"][0].tolist()):
            ids = found["sequence"][0, number, :length]
            row: dict[str, Any] = {}
            if return_text:
                row["translation_text"] = self.tokenizer.decode(
                    ids.tolist(),
                    skip_special_tokens=True,
                    clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                )
            if return_tensors:
                row["translation_token_ids"] = ids
            row |= {name: float(found[name][0, number]) for name in ("score", "log_probability")}
            if "attention" in found:
                width = int(found["source_length"].flatten()[0])
                weights = found["attention"][0, number, :length, :width]
                row |= {
                    "source_tokens": source_pieces(self.tokenizer, text, width),
                    "target_tokens": target_pieces(self.tokenizer, ids.tolist()),
                    "attention": weights.tolist(),
                    "alignment": [list(pair) for pair in hard_alignment(weights)],
                }
            rows.append(row)
        return rows if several else rows[0]


class _Unread:
    """The texts of one call that the model did not read as they were written."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}

    def add(self, found: dict[str, Any]) -> None:
        self.counts["sources"] += 1
        for name in ("truncated", "unknown"):
            if found[name]:
                self.counts[name] += 1
                self.first.setdefault(name, self.counts["sources"])

    def report(self) -> None:
        from hf_rnn_seq2seq.generation.encoding import source_problems

        for name, first in self.first.items():
            (problem,) = source_problems(Counter({"sources": self.counts["sources"], name: self.counts[name]}))
            logger.warning("%s (the first is text %d)", problem, first)

    def reported_behind(self, results: Iterator[Any]) -> Iterator[Any]:
        yield from results
        self.report()


def _lengths(produced: Tensor, settings: Settings) -> Tensor:
    """(hypotheses,): tokens up to the end of the sentence; of one that does not end, up to the padding."""
    places = torch.arange(1, produced.shape[1] + 1, device=produced.device)
    padded = produced == (-1 if settings["pad_token_id"] is None else int(settings["pad_token_id"]))
    unpadded = (~padded * places).amax(1)
    ends = torch.isin(produced, produced.new_tensor(settings.eos_token_ids()))
    first = torch.where(ends, places, produced.shape[1] + 1).amin(1)
    return torch.where(ends.any(1), first, unpadded)


def register() -> None:
    """Makes `pipeline("rnn-translation", ...)` known."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=RnnTranslationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
        )


__all__ = ["RnnTranslationPipeline", "register"]
