"""Fast tokenizers that read `</s>` in a text as text, not as a special token: with one vocabulary, and with two.

A saved tokenizer with a joint vocabulary needs no code of ours: transformers loads it as a plain fast tokenizer.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .config_checks import LOWEST_TRANSFORMERS  # noqa: F401 - checks the library before its newer names are imported

from transformers import AddedToken, BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Backend = Any  # a `tokenizers.Tokenizer`; that library is none of those that this folder imports

TARGET_TOKENIZER_FILE = "target_tokenizer.json"
# The model's config has one id of each, for both sides.
_SHARED_TOKENS = ("pad_token", "bos_token", "eos_token", "unk_token")


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The first input of the decoder: the start token, else the class token, else the pad token."""
    ids = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id)
    return next((token for token in ids if token is not None), None)


def target_ids(encoding: BatchEncoding) -> list[Any]:
    """The tokens of what was encoded as `text_target`: a tokenizer with two vocabularies calls them labels."""
    return encoding["labels"] if "labels" in encoding else encoding["input_ids"]


class RnnSeq2SeqJointTokenizer(PreTrainedTokenizerFast):
    """One vocabulary for both sides; its own special tokens (`</s>`) are plain text if a text contains them.

    Special tokens added later, by `add_special_tokens`, are recognized in text, because users write them on purpose. For
    `tokenizers` they are ordinary added tokens, since it recognizes either all special tokens in a text or none.

    Args:
        output_form: the Unicode form (`NFC`) that decoded text is brought into, where the vocabulary has another one.
    """

    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{**kwargs, "split_special_tokens": True})
        self.output_form = kwargs.get("output_form")

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: object) -> dict[str, object]:
        """Passes the files on without parsing: the default rebuilds the model from parts and drops the merges of BPE."""
        return kwargs

    def _backends(self) -> list[Backend]:
        return [self._tokenizer]

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        return max(self._add_to(backend, new_tokens) for backend in self._backends())

    @staticmethod
    def _add_to(backend: Backend, new_tokens: Sequence[str | AddedToken]) -> int:
        """Adds tokens to a vocabulary; returns the number of new entries."""
        special = {str(token) for token in backend.get_added_tokens_decoder().values() if token.special}
        kinds = ("single_word", "lstrip", "rstrip", "normalized")
        added = [
            AddedToken(str(token), **{kind: getattr(token, kind) for kind in kinds}, special=False)
            if isinstance(token, AddedToken)
            else token
            for token in new_tokens
            if str(token) not in special
        ]
        before = backend.get_vocab_size()
        backend.add_tokens(added)
        return backend.get_vocab_size() - before

    def _decode(
        self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, *args: object, **kwargs: object
    ) -> str:
        if skip_special_tokens:
            special = {*self.all_special_ids}
            ids = [token_ids] if isinstance(token_ids, int) else token_ids
            token_ids = [token for token in ids if token not in special]
        text = super()._decode(token_ids, skip_special_tokens, *args, **kwargs)
        return unicodedata.normalize(self.output_form, text) if self.output_form else text

    def save_pretrained(self, *args: object, **kwargs: object) -> tuple[str, ...]:
        """As in transformers. If special tokens were added, a plain tokenizer that loads the files without this class
        recognizes all special tokens in text, because it cannot distinguish the two kinds."""
        special = {token for token in self.backend_tokenizer.get_added_tokens_decoder().values() if token.special}
        self.split_special_tokens = {*self.all_special_tokens} <= {str(token) for token in special}
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.split_special_tokens = True


class RnnSeq2SeqTokenizer(RnnSeq2SeqJointTokenizer):
    """Encodes text with the source vocabulary, `text_target` with the target's, and decodes with the target's.

    Saved as `tokenizer.json` (source) and `target_tokenizer.json`. `vocab_size`, `len()`, `get_vocab()` and
    `convert_ids_to_tokens` are about the source; `target_vocab_size`, `get_target_vocab()` and
    `convert_target_ids_to_tokens` about the target. The special tokens have the same ids on both sides. Encoding a target
    swaps the vocabularies during the call, so an instance must be used by one thread only.

    `add_tokens` and `add_special_tokens` add the same number of entries to both vocabularies: if one side already has a
    token, it gets an unused entry instead. So `model.resize_token_embeddings(len(tokenizer))` determines both sizes.

    Args:
        tokenizer_object, tokenizer_file: the source's `tokenizers.Tokenizer`, or its file.
        target_tokenizer_object, target_tokenizer_file: the target's.

    Raises:
        ValueError: no target vocabulary, or special tokens with other ids than the source's.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "target_tokenizer_file": TARGET_TOKENIZER_FILE}

    def __init__(self, *args: object, **kwargs: object) -> None:
        target = kwargs.pop("target_tokenizer_object", None)
        target_file = kwargs.pop("target_tokenizer_file", None)
        super().__init__(*args, **kwargs)
        if target is None:
            if target_file is None or not os.path.isfile(target_file):
                raise ValueError(f"{TARGET_TOKENIZER_FILE} is missing: the tokenizer needs a target vocabulary")
            target = type(self._tokenizer).from_file(str(target_file))
        self._source_backend = self._tokenizer
        self._target_backend = target
        self._add_to(target, [token for token in self.all_special_tokens if target.token_to_id(token) is None])
        self._check_shared_tokens()

    def train_new_from_iterator(self, *args: object, **kwargs: object) -> NoReturn:
        """Not supported: it learns one vocabulary, and this tokenizer has two.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "train_new_from_iterator: learns one vocabulary; scripts/train_tokenizer.py learns those of both sides"
        )

    def _check_shared_tokens(self) -> None:
        for token in [token for name in _SHARED_TOKENS if (token := getattr(self, name)) is not None]:
            source, target = (backend.token_to_id(token) for backend in self._backends())
            if source != target:
                raise ValueError(
                    f"special token {token!r} has id {source} in the source vocabulary and {target} in the target "
                    "vocabulary; they must agree"
                )

    def _backends(self) -> list[Backend]:
        # transformers adds special tokens that the source's file lacks before the target's vocabulary is set.
        return [self._source_backend, self._target_backend] if hasattr(self, "_target_backend") else [self._tokenizer]

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        backends = self._backends()
        added = [self._add_to(backend, new_tokens) for backend in backends]
        for backend, count in zip(backends, added, strict=True):
            size = backend.get_vocab_size()
            self._add_to(backend, [f"<unused {size + number}>" for number in range(max(added) - count)])
        if len(backends) > 1:
            self._check_shared_tokens()
        return max(added)

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

    def __call__(self, *args: object, **kwargs: object) -> BatchEncoding:
        try:
            return super().__call__(*args, **kwargs)
        finally:
            # An error while the target was encoded must not leave len() and the rest with the wrong vocabulary.
            self._switch_to_input_mode()

    def _decode(self, *args: object, **kwargs: object) -> str:
        with self._target_mode():
            return super()._decode(*args, **kwargs)

    def decode_source(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of source ids; `decode` and `batch_decode` read target ids."""
        return super()._decode(list(map(int, token_ids)), skip_special_tokens)

    def convert_target_ids_to_tokens(
        self, ids: int | Sequence[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """`convert_ids_to_tokens` of the target vocabulary."""
        with self._target_mode():
            return self.convert_ids_to_tokens(ids, skip_special_tokens=skip_special_tokens)

    def get_target_vocab(self) -> dict[str, int]:
        """The target vocabulary, token to id."""
        return self._target_backend.get_vocab(with_added_tokens=True)

    @property
    def target_backend_tokenizer(self) -> Backend:
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
