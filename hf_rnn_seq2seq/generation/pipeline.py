"""`pipeline("rnn-translation", model=...)`: texts in, translations out; transformers reserves its own task names."""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, Pipeline, PreTrainedModel
from transformers.pipelines import PIPELINE_REGISTRY

from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces
from hf_rnn_seq2seq.generation.attention import hard_alignment
from hf_rnn_seq2seq.generation.batches import produced_lengths
from hf_rnn_seq2seq.model.beam_search import NO_HYPOTHESIS
from hf_rnn_seq2seq.model.pretrained import why_not_finite
from hf_rnn_seq2seq.model.search_options import generation_values
from hf_rnn_seq2seq.run_directory import load_ensemble, members

logger = logging.getLogger(__name__)

TASK = "rnn-translation"
# Keys that `preprocess` returns in addition to the model inputs.
FACTS = ("text", "empty", "truncated", "unknown")


class RnnTranslationPipeline(Pipeline):
    """Translates texts with a model of this package, or with an ensemble of them, in batches.

    `model` is a checkpoint, or the directory of an ensemble that `train.py --num_seeds` wrote. A call takes
    a text or a list of texts (or anything that a transformers pipeline iterates over) and these options.

    Args:
        n_best: hypotheses per text, the same as `num_return_sequences`. The search then has at least this many
            beams, unless `num_beams` or `do_sample` is given.
        return_alignments: also return tokens, attention and hard alignment.
        return_tensors: return `translation_token_ids`; without `return_text=True` they replace the text.
        batch_size: texts per batch.
        max_source_length: tokens that a text is cut at (default: the tokenizer's limit).
        generation: options of `model.search` and `model.generate`, such as `num_beams` or `do_sample`.

    Returns:
        for each text a dictionary, or a list of them, best first, if several hypotheses are requested:
        `translation_text`, `score` (hypotheses are ranked by it), `log_probability` (the model's, without the changes
        that processors make to the scores; of an ensemble the mean of the models') and `probability`, its exponential;
        with `return_alignments` also `source_tokens`, `target_tokens`, `attention` (target rows, source columns) and
        `alignment` ([source, target] positions). A text of white space translates to "". A warning counts texts that
        were cut, and texts of unknown tokens only.
    """

    _load_tokenizer = True
    _load_processor = False
    _load_feature_extractor = False
    _load_image_processor = False

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self._ensemble: dict[str, Any] = {}
        first, *others = members(model.name_or_path) if model.name_or_path else [""]
        if others:
            options = {"device": str(self.device), "dtype": str(model.dtype).removeprefix("torch.")}
            self._ensemble["ensemble"] = load_ensemble(others, first, model, self.tokenizer, **options)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, list | tuple) and not inputs:
            return []  # transformers would read the first item
        self._problems = _SourceProblems()
        results = super().__call__(inputs, *args, **kwargs)
        if isinstance(results, list | dict):
            self._problems.report()
            return results
        return self._problems.report_after(results)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes model and tokenizer, which `pipeline("rnn-translation", model=save_directory)` loads again.

        Raises:
            ValueError: the pipeline holds an ensemble.
        """
        # transformers would name this class as code of the checkpoint, without what the class imports.
        if self._ensemble:
            raise ValueError("save_pretrained: the pipeline holds an ensemble; save its models one by one")
        self.model.save_pretrained(save_directory, **kwargs)
        self.tokenizer.save_pretrained(save_directory, **kwargs)

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
            beams = generation.get("num_beams")
            if n_best < 1 or (beams is not None and n_best > beams and not generation.get("do_sample")):
                raise ValueError(
                    f"n_best={n_best}: must be at least 1 and at most num_beams" + (f"={beams}" if beams else "")
                )
            generation["num_return_sequences"] = n_best
        # Only options that are given are returned, so that the others keep the values of the pipeline's constructor.
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
        # A batch needs a row for each text: an empty text is an end of sentence, and its translation is dropped.
        ids = torch.tensor([encoded.ids[0] or [self.tokenizer.eos_token_id]])
        facts = {"text": text, "empty": not encoded.ids[0]}
        facts |= {"truncated": bool(encoded.truncated), "unknown": bool(encoded.unknown)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **facts}

    def _forward(self, inputs: dict[str, Any], return_alignments: bool = False, **generation: Any) -> dict[str, Any]:
        facts = {name: inputs.pop(name) for name in FACTS}
        rows = len(inputs["input_ids"])
        options = {**self._ensemble, **generation, "return_dict_in_generate": True}
        settings = generation_values(self.model.generation_config, options.get("generation_config"), options)
        returned = settings["num_return_sequences"] or 1
        if returned > (settings["num_beams"] or 1) and not settings["do_sample"] and "num_beams" not in options:
            options["num_beams"] = settings["num_beams"] = returned
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
        result = self.model.search(**inputs, **options)
        output = {"length": result.lengths, "score": result.sequences_scores}
        output["log_probability"] = result.log_probabilities
        output["sequence"] = result.sequences[:, -int(result.lengths.max()) :]
        return output if result.alignments is None else {**output, "attention": result.alignments}

    def _generated(
        self, inputs: dict[str, Tensor], options: dict[str, Any], settings: dict[str, Any], return_alignments: bool
    ) -> dict[str, Tensor]:
        """The output of `generate()` with log-probabilities of a forward pass; it does not return the model's."""
        several = (settings["num_beams"] or 1) > 1  # ranked by the scores that the processors returned
        result = self.model.search(**inputs, **{"output_scores": several, **options})
        sequences = result.sequences
        prompt, prefix = 1, options.get("decoder_input_ids")
        if prefix is not None:
            prompt = prefix.shape[1] + int((sequences[:, 0] != prefix[0, 0]).any())
        produced = sequences[:, prompt:]
        lengths = produced_lengths(produced, settings)
        repeated = {name: value.repeat_interleave(len(sequences) // len(value), 0) for name, value in inputs.items()}
        forced = self.model(**repeated, decoder_input_ids=sequences[:, :-1], output_attentions=return_alignments)
        chosen = forced.logits[:, prompt - 1 :].float().log_softmax(-1).gather(-1, produced.unsqueeze(-1)).squeeze(-1)
        is_token = torch.arange(produced.shape[1], device=produced.device) < lengths.unsqueeze(1)
        total = chosen.masked_fill(~is_token, 0).sum(1)
        if bool(total.isnan().any()):
            raise ValueError(why_not_finite([self.model]))
        score = getattr(result, "sequences_scores", None)
        score = total / lengths ** settings["length_penalty"] if score is None else score
        output = {"length": lengths, "score": score, "log_probability": total}
        output["sequence"] = produced
        if return_alignments and forced.cross_attentions is None:
            raise ValueError(
                f"return_alignments=True: the model has no attention (context={self.model.config.context!r})"
            )
        if return_alignments:
            output["attention"] = forced.cross_attentions[-1].mean(1)[:, prompt - 1 :]
        return output

    def postprocess(
        self,
        outputs: dict[str, Any],
        n_best: int | None = None,
        return_tensors: bool = False,
        return_text: bool | None = None,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        text = outputs["text"]
        self._problems.add(outputs)
        several = n_best is not None or outputs["length"].shape[1] > 1
        return_text = not return_tensors if return_text is None else return_text
        if outputs["empty"]:
            empty: dict[str, Any] = {"translation_text": ""} if return_text else {}
            empty |= {"translation_token_ids": outputs["sequence"].new_empty(0)} if return_tensors else {}
            empty |= {"score": 0.0, "log_probability": 0.0, "probability": 1.0}
            if "attention" in outputs:
                empty |= {name: [] for name in ("source_tokens", "target_tokens", "attention", "alignment")}
            return [empty] if several else empty
        rows = []
        for number, length in enumerate(outputs["length"][0].tolist()):
            if number and outputs["log_probability"][0, number] < NO_HYPOTHESIS:
                continue  # there are fewer
            ids = outputs["sequence"][0, number, :length]
            row: dict[str, Any] = {}
            if return_text:
                row["translation_text"] = self.tokenizer.decode(
                    ids.tolist(),
                    skip_special_tokens=True,
                    clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                )
            if return_tensors:
                row["translation_token_ids"] = ids
            row |= {name: float(outputs[name][0, number]) for name in ("score", "log_probability")}
            row["probability"] = math.exp(row["log_probability"])
            if "attention" in outputs:
                width = int(outputs["source_length"].flatten()[0])
                weights = outputs["attention"][0, number, :length, :width]
                row |= {
                    "source_tokens": source_pieces(self.tokenizer, text, width),
                    "target_tokens": target_pieces(self.tokenizer, ids.tolist()),
                    "attention": weights.tolist(),
                    "alignment": [list(pair) for pair in hard_alignment(weights)],
                }
            rows.append(row)
        return rows if several else rows[0]


class _SourceProblems:
    """The texts of one call that the model did not read completely."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, int] = {}

    def add(self, outputs: dict[str, Any]) -> None:
        self.counts["sources"] += 1
        for name in ("truncated", "unknown"):
            if outputs[name]:
                self.counts[name] += 1
                self.first.setdefault(name, self.counts["sources"])

    def report(self) -> None:
        from hf_rnn_seq2seq.generation.encoding import source_problems

        for name, first in self.first.items():
            (problem,) = source_problems(Counter({"sources": self.counts["sources"], name: self.counts[name]}))
            logger.warning("%s (the first is text %d)", problem, first)

    def report_after(self, results: Iterator[Any]) -> Iterator[Any]:
        yield from results
        self.report()


class _Checkpoint(AutoModelForSeq2SeqLM):
    """What `pipeline("rnn-translation", model=NAME)` loads: the checkpoint, or the first one of an ensemble."""

    @classmethod
    def from_pretrained(cls, name: str, *args: Any, **options: Any) -> PreTrainedModel:
        model = AutoModelForSeq2SeqLM.from_pretrained(members(name)[0], *args, **options)
        model.name_or_path = name
        return model


def register() -> None:
    """Registers `pipeline("rnn-translation", ...)`."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=RnnTranslationPipeline, pt_model=_Checkpoint, type="text"
        )
