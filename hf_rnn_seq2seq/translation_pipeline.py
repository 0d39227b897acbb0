"""`pipeline("rnn-translation", model=...)`: texts in, translations out; the names transformers had are reserved."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from hf_rnn_seq2seq.alignment import hard_alignment, source_pieces, target_pieces

TASK = "rnn-translation"


class RnnTranslationPipeline(Pipeline):
    """Translates texts with a model of this package, in batches.

    A call takes a text or a list of texts (or anything a transformers pipeline iterates over) and

    Args:
        n_best: hypotheses per text; more than one needs as many beams.
        return_alignments: also return tokens, attention and hard alignment.
        batch_size: texts per batch.
        max_source_length: tokens a text is cut at (default: the tokenizer's limit).
        generation: whatever `model.search` and `model.generate` take, such as `num_beams`.

    Returns:
        for each text a dictionary, or with `n_best` a list of them, best first: `translation_text`, `score` (what
        hypotheses are ranked by), `log_probability`; with `return_alignments` also `source_tokens`, `target_tokens`,
        `attention` (target rows, source columns) and `alignment` ([source, target] positions). A text without a word
        translates to "".
    """

    _load_tokenizer = True
    _load_processor = False
    _load_feature_extractor = False
    _load_image_processor = False

    def _sanitize_parameters(
        self,
        n_best: int | None = None,
        return_alignments: bool = False,
        max_source_length: int | None = None,
        truncation: Any = None,
        **generation: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if n_best is not None:
            generation["num_return_sequences"] = n_best
        generation["return_alignments"] = return_alignments
        return {"max_source_length": max_source_length}, generation, {"n_best": n_best}

    def preprocess(self, text: str, max_source_length: int | None = None) -> dict[str, Any]:
        from hf_rnn_seq2seq.evaluation import encode_sources

        if not isinstance(text, str):
            raise ValueError(f"input of type {type(text).__name__}: must be a text or a list of texts")
        ids = encode_sources(self.tokenizer, [text], max_source_length).ids[0]
        # A batch has no room for a missing row: the end of sentence alone is read, and its translation dropped.
        ids = torch.tensor([ids or [self.tokenizer.eos_token_id]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "text": text}

    def _forward(self, inputs: dict[str, Any], **generation: Any) -> dict[str, Any]:
        texts = inputs.pop("text")
        found = self.model.search(**inputs, **generation, return_dict_in_generate=True)
        rows = len(inputs["input_ids"])
        output = {"text": texts, "length": found.lengths, "score": found.sequences_scores}
        output |= {"log_probability": found.log_probabilities, "sequence": found.sequences[:, -found_width(found) :]}
        if found.alignments is not None:
            output["attention"] = found.alignments
            output["source_length"] = inputs["attention_mask"].sum(1)
        return {
            name: value.unflatten(0, (rows, -1)) if isinstance(value, Tensor) else value
            for name, value in output.items()
        }

    def postprocess(self, found: dict[str, Any], n_best: int | None = None) -> Any:
        text = found["text"]
        if not text.strip():
            empty = {"translation_text": "", "score": 0.0, "log_probability": 0.0}
            return empty if n_best is None else [empty]
        rows = []
        for number, length in enumerate(found["length"][0].tolist()):
            ids = found["sequence"][0, number, :length].tolist()
            row = {"translation_text": self.tokenizer.decode(ids, skip_special_tokens=True)}
            row |= {name: float(found[name][0, number]) for name in ("score", "log_probability")}
            if "attention" in found:
                width = int(found["source_length"].flatten()[0])
                weights = found["attention"][0, number, :length, :width]
                row |= {
                    "source_tokens": source_pieces(self.tokenizer, text, width),
                    "target_tokens": target_pieces(self.tokenizer, ids),
                    "attention": weights.tolist(),
                    "alignment": [list(pair) for pair in hard_alignment(weights)],
                }
            rows.append(row)
        return rows[0] if n_best is None else rows


def found_width(found: Any) -> int:
    """Produced columns of the sequences, without the prompt."""
    return int(found.lengths.max())


def register() -> None:
    """Makes `pipeline("rnn-translation", ...)` known."""
    if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
        PIPELINE_REGISTRY.register_pipeline(
            TASK, pipeline_class=RnnTranslationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
        )


__all__ = ["RnnTranslationPipeline", "register"]
