"""Tiny models and batches for the tests of the model family."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration

PAD, START, END = 0, 1, 2
VOCABULARY, SOURCE_VOCABULARY = 11, 13

# Rows of unequal length; the longest source and the longest target stand in different rows.
SOURCES = [[5, 7, 3, 2], [4, 6, 8, 9, 10, 2], [3, 2]]
TARGETS = [[6, 4, 3, 2], [9, 2], [3, 3, 5, 10, 2]]
SMALL_BERT = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}


def tiny_config(**options: Any) -> RnnSeq2SeqConfig:
    """A config of a few units a vector; `options` override."""
    sizes = {"vocab_size": VOCABULARY, "source_vocab_size": SOURCE_VOCABULARY, "embedding_size": 5, "hidden_size": 4}
    options = {**sizes, **options}
    if options.get("share_encoder_decoder_embeddings") or options.get("copy_mechanism"):
        options["source_vocab_size"] = options["vocab_size"]
    return RnnSeq2SeqConfig(**options)


def config_fields(config: type = RnnSeq2SeqConfig) -> dict[str, Any]:
    """The fields of a configuration that this package declares, and their annotations."""
    ours = [base for base in reversed(config.__mro__) if base.__module__.startswith("hf_rnn_seq2seq.")]
    return {name: hint for base in ours for name, hint in inspect.get_annotations(base).items()}


def tiny_model(
    config: RnnSeq2SeqConfig | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    deviation: float = 0.6,
    **options: Any,
) -> RnnSeq2SeqForConditionalGeneration:
    """A model in eval mode whose parameters, gains and biases included, are all far from zero and from each other."""
    model = RnnSeq2SeqForConditionalGeneration(config or tiny_config(**options)).to(dtype).eval()
    randomize(model, seed, deviation)
    return model


def randomize(module: nn.Module, seed: int = 0, deviation: float = 0.6) -> None:
    """Sets normally distributed parameters, equal for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(deviation * noise)


def pad(rows: list[list[int]], value: int = PAD, *, left: bool = False) -> Tensor:
    """(batch, longest row), the words at the left or at the right end."""
    width = max(map(len, rows))
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([gap + row if left else row + gap for row, gap in zip(rows, fill, strict=True)])


def mask(rows: list[list[int]], *, left: bool = False) -> Tensor:
    """1 at real words, 0 at padding."""
    return pad([[1] * len(row) for row in rows], left=left)


def batch(
    sources: list[list[int]] = SOURCES, targets: list[list[int]] = TARGETS, *, left: bool = False
) -> dict[str, Tensor]:
    """What a collator hands to the model; `left` puts the padding of the sources first."""
    return {
        "input_ids": pad(sources, left=left),
        "attention_mask": mask(sources, left=left),
        "labels": pad(targets, -100),
    }


def decoder_inputs(targets: list[list[int]] = TARGETS) -> list[list[int]]:
    """The inputs of the decoder: the start token, then each word but the last."""
    return [[START, *row[:-1]] for row in targets]
