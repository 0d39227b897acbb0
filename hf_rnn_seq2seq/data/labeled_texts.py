"""What a classifier reads: the tokenizer of one side, rows of token ids with a class, and their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_rnn_seq2seq.data.batching import Collator
from hf_rnn_seq2seq.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from hf_rnn_seq2seq.errors import DataError

SENTENCE = "<sentence>"
# Where a sentence ends: at a line break (also of HTML); or there and behind a full stop with white space after it.
BOUNDARIES = {
    "lines": r"\s*(?:\n|<br\s*/?>)(?:\s|<br\s*/?>)*",
    "punctuation": r"\s*(?:\n|<br\s*/?>)(?:\s|<br\s*/?>)*|(?<=[.!?])\s+",
}


def build_text_tokenizer(
    texts: Sequence[str], *, sentences: str | None = None, model_max_length: int = 512, **options: Any
) -> PreTrainedTokenizerFast:
    """A tokenizer of the texts, which ends each with `</s>`; `AutoTokenizer` loads it where this package is missing.

    Args:
        texts: the training split, read once.
        sentences: a key of BOUNDARIES: each sentence ends with `<sentence>`, and a text with that of its last sentence.
        model_max_length: tokens of the longest text; saved with the tokenizer.
        options: of `train_tokenizer`.

    Raises:
        ValueError: as `train_tokenizer`.
    """
    backend = train_tokenizer(texts, **options)
    if sentences is not None:
        _separate(backend, BOUNDARIES[sentences])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **SPECIAL_TOKENS,
        **({"sep_token": SENTENCE} if sentences else {}),
        model_max_length=model_max_length,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _separate(tokenizer: Tokenizer, boundary: str) -> None:
    """Puts `<sentence>` at every boundary and at the end of a text."""
    step = normalizers.Replace(Regex(boundary), f" {SENTENCE} ")
    before = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([*before, step])
    # It is looked for in the normalized text, where the step has put it.
    tokenizer.add_special_tokens([AddedToken(SENTENCE, special=True, normalized=True, lstrip=True, rstrip=True)])
    place = tokenizer.token_to_id(SENTENCE)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SENTENCE}", pair=f"$A {SENTENCE} $B {SENTENCE}", special_tokens=[(SENTENCE, place)]
    )


def sentence_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a sentence in the texts of `build_text_tokenizer`; None if it does not mark sentences."""
    return tokenizer.sep_token_id if tokenizer.sep_token == SENTENCE else None


def class_names(splits: Mapping[str, Dataset]) -> list[str]:
    """The classes of the training split, in the order of their names.

    Raises:
        DataError: there is one class only, or another split has one that training never sees.
    """
    names = sorted(
        set(splits["train"]["target"]), key=lambda name: (len(name), name) if name.isdecimal() else (0, name)
    )
    if len(names) < 2:
        raise DataError(f"train: every row has the class {names[0]!r}; a classifier needs two")
    for split, rows in splits.items():
        if unknown := sorted(set(rows["target"]) - {*names}):
            raise DataError(f"{split}: class {unknown[0]!r} is not in the training split, which has {', '.join(names)}")
    return names


def labeled_rows(
    texts: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    classes: Sequence[str],
    max_length: int,
    num_proc: int | None = None,
) -> tuple[Dataset, int]:
    """`input_ids`, `labels` (the number of the class), `source_length`, `target_length` (1) and `id`.

    Returns:
        the rows, and the number of texts that were cut at `max_length` tokens.
    """
    number = {name: place for place, name in enumerate(classes)}
    options: dict[str, Any] = {
        "batched": True,
        "remove_columns": texts.column_names,
        "features": Features(
            {
                "id": Value("int64"),
                "input_ids": List(Value("int32")),
                "labels": Value("int32"),
                "source_length": Value("int32"),
                "target_length": Value("int32"),
                "cut": Value("bool"),
            }
        ),
        "fn_kwargs": {"tokenizer": tokenizer, "number": number, "max_length": max_length},
        "num_proc": num_proc if num_proc and num_proc > 1 and len(texts) >= 2 * num_proc else None,
        "desc": "Tokenizing",
    }
    rows = texts.map(_encode, **options)
    return rows.remove_columns("cut"), sum(rows["cut"])


def _encode(
    batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, number: Mapping[str, int], max_length: int
) -> dict[str, list[Any]]:
    options = {"return_attention_mask": False, "verbose": False}
    whole = tokenizer(batch["source"], **options)["input_ids"]
    long = [len(ids) > max_length for ids in whole]
    if any(long):
        whole = tokenizer(batch["source"], truncation=True, max_length=max_length, **options)["input_ids"]
    return {
        "id": batch["id"],
        "input_ids": whole,
        "labels": [number[name] for name in batch["target"]],
        "source_length": list(map(len, whole)),
        "target_length": [1] * len(whole),
        "cut": long,
    }


class TextCollator(Collator):
    """Rows, or a dict of their columns -> `input_ids` and `attention_mask` (batch, source), `labels` (batch,)."""

    def labels(self, rows: Sequence[int]) -> Tensor:
        """The numbers of the classes, (batch,)."""
        return torch.as_tensor(rows, dtype=torch.int64)
