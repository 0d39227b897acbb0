"""Batches of token ids: which rows go together, how they are padded, and where a generated row ends."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.dropout import without_noise
from hf_rnn_seq2seq.model.search_options import end_tokens

MAX_TOKENS = 16384  # positions of a padded batch, beams included


def length_batches(lengths: Sequence[int], batch_size: int, max_tokens: int, beams: int = 1) -> list[list[int]]:
    """Row numbers in batches of similar length, longest first; empty rows are in no batch.

    A batch has at most `batch_size` rows and `max_tokens` padded positions, where each row counts once per beam. A
    longer row is a batch of its own. The longest batch comes first, so that a lack of memory shows at once.
    """
    if batch_size < 1 or max_tokens < 1:
        raise ArgumentError(f"batch_size is {batch_size}, max_tokens is {max_tokens}; both must be at least 1")
    batches: list[list[int]] = []
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (-lengths[i], i))
    for index in order:
        full = not batches or len(batches[-1]) == batch_size
        if full or (len(batches[-1]) + 1) * lengths[batches[-1][0]] * beams > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def pad(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    """(rows, longest row): the rows with `value` after their end."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], device=device)


def model_inputs(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` of source rows, padded, on the model's device."""
    return {
        "input_ids": pad(rows, model.config.pad_token_id or 0, model.device),
        "attention_mask": pad([[1] * len(row) for row in rows], 0, model.device),
    }


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Runs the block without dropout and gradients; afterwards each part of the model has the mode that it had."""
    with without_noise(model), torch.no_grad():
        yield


def produced_lengths(produced: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """(hypotheses,): number of tokens up to the end of sentence, or up to the padding where there is none.

    Args:
        produced: (hypotheses, time), what `generate()` wrote after the prompt.
        settings: of the call, as `generation_values` returns them.
    """
    places = torch.arange(1, produced.shape[1] + 1, device=produced.device)
    padded = produced == (-1 if settings["pad_token_id"] is None else int(settings["pad_token_id"]))
    unpadded = (~padded * places).amax(1)
    ends = torch.isin(produced, produced.new_tensor(end_tokens(settings["eos_token_id"])))
    first = torch.where(ends, places, produced.shape[1] + 1).amin(1)
    return torch.where(ends.any(1), first, unpadded)


def until_end(ids: Sequence[int], eos_token_id: int | Collection[int] | None) -> list[int]:
    """The row up to and including its first end of sentence; the whole row when it has none."""
    ends = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    stop = next((position + 1 for position, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:stop])
