"""Batches whose sources are the states of a frozen encoder: it reads each sentence once, not in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

KEPT_BYTES = 2 * 2**30  # sentences beyond this are read again


class FrozenStates:
    """Makes `inputs_embeds` of `input_ids`, in half precision in memory.

    Each sentence is read alone, so that its states do not depend on its batch: a resumed run has the same ones.

    Args:
        collate: rows -> `input_ids`, `attention_mask` (padded on the right) and others.
        encode: ids (1, source) and mask (1, source) -> states (1, source, width).
    """

    def __init__(self, collate: Callable[[Any], dict[str, Tensor]], encode: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.collate, self.encode = collate, encode
        self.kept: dict[bytes, Tensor] = {}
        self.bytes = 0

    def __call__(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        batch = self.collate(rows)
        ids, lengths = batch.pop("input_ids"), batch["attention_mask"].sum(1).tolist()
        states = [self._states(row[:length]) for row, length in zip(ids, lengths, strict=True)]
        return {**batch, "inputs_embeds": pad_sequence(states, batch_first=True).float()}

    @torch.no_grad()
    def _states(self, words: Tensor) -> Tensor:
        """(source, width) of one sentence."""
        key = words.numpy().tobytes()
        if (found := self.kept.get(key)) is not None:
            return found
        ids = words.unsqueeze(0)
        found = self.encode(ids, torch.ones_like(ids, dtype=torch.bool))[0].to("cpu", torch.float16)
        if self.bytes + found.nbytes <= KEPT_BYTES:
            self.kept[key], self.bytes = found, self.bytes + found.nbytes
        return found
