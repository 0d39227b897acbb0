"""A language model on a held-out text: nats and bits per character, with the state carried over the whole text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.arguments import OF_TASKS, DataArguments
from hf_rnn_seq2seq.data.running_text import load_text
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.generation.surprise import TextScore, score_text
from hf_rnn_seq2seq.run_directory import data_options, load_as


@dataclass(frozen=True)
class TextEvaluation:
    """The figures of a language model on a text.

    Attributes:
        sample: a text that the model wrote.
        own: the text is the run's own, so that its summary keeps the figures.
        dynamic: the score while the model learns the text, with `dynamic_learning_rate`; None without.
    """

    directory: str
    split: str
    score: TextScore
    sample: str
    own: bool
    dynamic: TextScore | None = None
    dynamic_learning_rate: float | None = None

    def facts(self) -> dict[str, Any]:
        """What the summary of the run keeps."""
        figures = {name: value for name, value in self.score.figures().items() if name.endswith("_per_character")}
        facts = {"split": self.split, "test_characters": self.score.characters, **figures, "sample": self.sample}
        if self.dynamic is not None:
            facts["dynamic_learning_rate"] = self.dynamic_learning_rate
            facts["dynamic_bits_per_character"] = self.dynamic.bits_per_character
        return facts

    def lines(self) -> list[str]:
        """The figures as they are printed."""
        lines = [f"{self.directory}: {_shown(self.score)}"]
        if self.dynamic is not None:
            lines.append(f"learning the text as it goes (rate {self.dynamic_learning_rate:g}): {_shown(self.dynamic)}")
        count = self.score.characters
        return [*lines, f"on {count:,} characters of the {self.split} split, the state carried over all of them"]


def _shown(score: TextScore) -> str:
    figures = score.figures()
    return (
        f"{figures['bits_per_character']:.4f} bits ({figures['nats_per_character']:.4f} nats) a character, perplexity "
        f"{figures['perplexity']:.3f} a token"
    )


def evaluate_language_model(
    directory: str,
    chosen: Mapping[str, Any],
    *,
    split: str = "test",
    device: str | None = None,
    dtype: str | None = None,
    dynamic_learning_rate: float | None = None,
) -> TextEvaluation:
    """The figures of a run directory on its own text, or on the text that data options name.

    Args:
        directory: of the run.
        chosen: data options that name a text; none are those of the run.
        split: `train`, `validation` or `test`; a run without a test text is measured on its validation text.
        dynamic_learning_rate: measures dynamic evaluation in addition, see `dynamic_token_nats`; None does not.

    Raises:
        ArgumentError: neither the run nor the options have such a text, or an option is not for texts.
    """
    model, tokenizer = load_as("CausalLM", directory, device=device, dtype=dtype)
    given = {name: value for name, value in chosen.items() if value is not None}
    for name, value in given.items():
        if "text" not in OF_TASKS.get(name, ("text",)):
            raise ArgumentError(f"{name}={value!r}: has no effect with task='text'; leave it out")
    options = given or data_options(directory)
    if not options:
        raise ArgumentError(f"{directory}: has no recipe.yaml that names a text; give --test_file")
    text = load_text(DataArguments(**{**options, "task": "text"}))
    own = not given and split == "test"
    if split == "test" and split not in text.splits and "validation" in text.splits:
        split = "validation"
    if split not in text.splits:
        raise ArgumentError(f"{directory}: its text has no {split} split, but {', '.join(text.splits)}")
    score = score_text(model, tokenizer, text.splits[split])
    dynamic = None
    if dynamic_learning_rate is not None:
        dynamic = score_text(model, tokenizer, text.splits[split], dynamic_learning_rate=dynamic_learning_rate)
    sample = write_text(model, tokenizer, 300)
    return TextEvaluation(directory.rstrip("/"), split, score, sample, own, dynamic, dynamic_learning_rate)


def write_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int) -> str:
    """A text of at most so many tokens, sampled from nothing."""
    start = torch.full((1, 1), tokenizer.bos_token_id, device=model.device)
    ids = model.generate(start, do_sample=True, max_new_tokens=tokens)
    return tokenizer.decode(ids[0], skip_special_tokens=True)
