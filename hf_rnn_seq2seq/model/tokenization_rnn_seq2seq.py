"""A fast tokenizer with two vocabularies, one for the source and one for the target.

One joint vocabulary needs no code: a plain `PreTrainedTokenizerFast` serves both sides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerFast

TARGET_TOKENIZER_FILE = "target_tokenizer.json"


class RnnSeq2SeqTokenizer(PreTrainedTokenizerFast):
    """Encodes text with the source vocabulary, `text_target` with the target's, and decodes with the target's.

    Saved as `tokenizer.json` (source) and `target_tokenizer.json`. `vocab_size`, `len()`, `get_vocab()` and
    `convert_ids_to_tokens` speak of the source; `target_vocab_size`, `get_target_vocab()` and
    `convert_target_ids_to_tokens` of the target. The special tokens have the same ids on both sides. Encoding a target
    swaps the vocabularies for the time of the call, so an instance belongs to one thread.

    Args:
        tokenizer_object, tokenizer_file: the source's `tokenizers.Tokenizer`, or its file.
        target_tokenizer_object, target_tokenizer_file: the target's.

    Raises:
        ValueError: no target vocabulary, or special tokens with other ids than the source's.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "target_tokenizer_file": TARGET_TOKENIZER_FILE}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        target = kwargs.pop("target_tokenizer_object", None)
        target_file = kwargs.pop("target_tokenizer_file", None)
        super().__init__(*args, **kwargs)
        if target is None:
            if target_file is None or not os.path.isfile(target_file):
                raise ValueError(f"{TARGET_TOKENIZER_FILE} is missing: the tokenizer needs a target vocabulary")
            target = type(self._tokenizer).from_file(str(target_file))
        self._source_backend = self._tokenizer
        self._target_backend = target
        for token in self.all_special_tokens:
            if target.token_to_id(token) != self._source_backend.token_to_id(token):
                raise ValueError(
                    f"special token {token!r} has id {self._source_backend.token_to_id(token)} in the source vocabulary "
                    f"and {target.token_to_id(token)} in the target vocabulary; they must agree"
                )

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        """Hands the files over unread: the default rebuilds the model from parts and drops the merges of BPE."""
        return kwargs

    def _switch_to_input_mode(self) -> None:
        self._tokenizer = self._source_backend

    def _switch_to_target_mode(self) -> None:
        self._tokenizer = self._target_backend

    @contextmanager
    def _target_mode(self) -> Iterator[None]:
        previous, self._tokenizer = self._tokenizer, self._target_backend
        try:
            yield
        finally:
            self._tokenizer = previous

    def __call__(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        try:
            return super().__call__(*args, **kwargs)
        finally:
            # An error while the target was encoded must not leave len() and the rest with the wrong vocabulary.
            self._switch_to_input_mode()

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        with self._target_mode():
            return super()._decode(*args, **kwargs)

    def decode_source(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """The text of source ids; `decode` and `batch_decode` read target ids."""
        return self._source_backend.decode(list(map(int, token_ids)), skip_special_tokens=skip_special_tokens)

    def convert_target_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str]:
        """`convert_ids_to_tokens` of the target vocabulary."""
        with self._target_mode():
            return self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)

    def get_target_vocab(self) -> dict[str, int]:
        """The target vocabulary, token to id."""
        return self._target_backend.get_vocab(with_added_tokens=True)

    @property
    def target_backend_tokenizer(self) -> Any:
        """The target's `tokenizers.Tokenizer`; `backend_tokenizer` is the source's."""
        return self._target_backend

    @property
    def target_vocab_size(self) -> int:
        """Entries of the target vocabulary, added tokens included."""
        return self._target_backend.get_vocab_size(with_added_tokens=True)

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = os.path.join(str(save_directory), prefix + TARGET_TOKENIZER_FILE)
        self._target_backend.save(path)
        return (*names, path)
