"""Batches whose sources are the states of a frozen encoder: it reads each sentence once, not in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

KEPT_BYTES = 2 * 2**30  # of states; sentences beyond this are read again


class FrozenStates:
    """A collator that puts states of the encoder (`inputs_embeds`) in the place of `input_ids`.

    States are kept in memory in half precision. Sentences are encoded in an order of their own, by length, and not in
    the order of the training: so a resumed run has the same states.

    Args:
        collate: rows -> `input_ids`, `attention_mask` (padded on the right) and others.
        encode: ids (batch, source) and bool mask (batch, source) -> states (batch, source, width).
    """

    def __init__(self, collate: Callable[[Any], dict[str, Tensor]], encode: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.collate, self.encode = collate, encode
        self.kept: dict[tuple[int, ...], Tensor] = {}
        self.bytes = 0

    def read(self, sentences: Iterable[Sequence[int]], batch_size: int = 64) -> None:
        """Encodes the sentences in batches of similar length, and stops when `KEPT_BYTES` of states are kept."""
        different = sorted({tuple(sentence) for sentence in sentences}, key=lambda sentence: (len(sentence), sentence))
        for start in range(0, len(different), batch_size):
            batch = different[start : start + batch_size]
            self._read(batch)
            if batch[-1] not in self.kept:  # there is no room, and the others are no shorter
                return

    def __call__(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        batch = self.collate(rows)
        ids, lengths = batch.pop("input_ids"), batch["attention_mask"].sum(1).tolist()
        sentences = [tuple(row[:length]) for row, length in zip(ids.tolist(), lengths, strict=True)]
        states = [self.kept[words] if words in self.kept else self._read([words])[0] for words in sentences]
        return {**batch, "inputs_embeds": pad_sequence(states, batch_first=True).float()}

    @torch.no_grad()
    def _read(self, sentences: list[tuple[int, ...]]) -> list[Tensor]:
        """Encodes sentences together: the states (source, width) of each. They are kept while there is room."""
        ids = pad_sequence([torch.tensor(words) for words in sentences], batch_first=True)
        lengths = torch.tensor([len(words) for words in sentences]).unsqueeze(1)
        found = self.encode(ids, torch.arange(ids.shape[1]) < lengths).to("cpu", torch.float16)
        states = [row[: len(words)].clone() for row, words in zip(found, sentences, strict=True)]
        for words, state in zip(sentences, states, strict=True):
            if self.bytes + state.nbytes <= KEPT_BYTES:
                self.kept[words], self.bytes = state, self.bytes + state.nbytes
        return states
