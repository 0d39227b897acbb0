"""Running text for a language model: documents, the split into training and held-out text, and the tokenizer.

A text is not cut into rows: the model reads on and on, and what it read before is in its state.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.arguments import SPLITS, DataArguments, TokenizerArguments
from hf_rnn_seq2seq.data.readers import open_bytes, require_text
from hf_rnn_seq2seq.data.tokenizer import SPECIAL_TOKENS, most_frequent, train_tokenizer
from hf_rnn_seq2seq.errors import ArgumentError, DataError, reading
from hf_rnn_seq2seq.files import digest
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqJointTokenizer

EMBEDDED = "pydoc"  # the language reference that comes with Python


@dataclass(frozen=True)
class RunningText:
    """The documents of each split, in order, and the description of the corpus with its fingerprint."""

    splits: dict[str, list[str]]
    description: dict[str, Any]

    def characters(self, split: str) -> int:
        """The length of a split."""
        return sum(map(len, self.splits[split]))


def load_text(data: DataArguments) -> RunningText:
    """Reads the text that the options name; without files of their own the held-out splits are its last parts.

    Raises:
        DataError: a file is missing, empty or not UTF-8, or the text is too short to be split.
    """
    named = data.files
    if data.dataset_name is not None:
        if data.dataset_name != EMBEDDED:
            raise DataError(
                f"dataset_name={data.dataset_name!r}: task='text' has {EMBEDDED!r}, the documentation of Python; give "
                "other texts as train_file"
            )
        splits = {"train": [python_documentation()]}
        facts: dict[str, Any] = {"name": EMBEDDED, "license": "PSF-2.0", "source_lang": "en"}
        facts["config"] = "Python {}.{}".format(*sys.version_info)
    else:
        if not any(named.values()):
            raise DataError(f"train_file=None: give a text file, or dataset_name={EMBEDDED!r}")
        splits = {split: [read_text(path) for path in value.split(",")] for split, value in named.items() if value}
        files = {split: [Path(path).name for path in str(named[split]).split(",")] for split in splits}
        facts = {"name": None, "files": files, "license": None}
    for split in SPLITS[:0:-1]:  # the test text is the last part, the validation text stands before it
        share = getattr(data, f"{split}_fraction")
        if split not in splits and share and "train" in splits:
            splits["train"], splits[split] = split_off(splits["train"], share, f"{split}_fraction")
    facts["characters"] = {split: sum(map(len, splits[split])) for split in SPLITS if split in splits}
    facts["fingerprint"] = digest([splits[split] for split in SPLITS if split in splits])
    return RunningText({split: splits[split] for split in SPLITS if split in splits}, facts)


def python_documentation() -> str:
    """The help topics of the running Python: half a million characters of technical English, without a download."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def read_text(path: str) -> str:
    """The content of a text file, which may be compressed; its line ends become newlines."""
    with reading(path, DataError), open_bytes(Path(path)) as file:
        content = file.read()
        require_text(path, content[:16])
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()
    if not text:
        raise DataError(f"{path}: is empty")
    return text


def split_off(documents: Sequence[str], share: float, option: str) -> tuple[list[str], list[str]]:
    """Cuts the last `share` of the characters off; the document at the cut is in both parts."""
    total = sum(map(len, documents))
    first = total - round(share * total)
    if not 0 < first < total:
        raise DataError(f"{option}={share}: leaves nothing of a text of {total} characters on one side")
    before: list[str] = []
    for number, document in enumerate(documents):
        if len(document) >= first:
            rest = [document[first:], *documents[number + 1 :]]
            return [*before, document[:first]], [part for part in rest if part]
        before.append(document)
        first -= len(document)
    raise AssertionError("the cut is inside the text")


# ------------------------------------------------------------------------------------------------ tokens


def build_tokenizer(texts: Iterable[str], options: TokenizerArguments) -> PreTrainedTokenizerBase:
    """A tokenizer trained on documents, which puts the start token before a text; `letter` has one entry a character.

    Raises:
        ArgumentError: the algorithm loses the spaces and line ends of a text.
    """
    if options.tokenizer_algorithm in ("word", "wordpiece"):
        raise ArgumentError(
            f"tokenizer_algorithm={options.tokenizer_algorithm!r}: loses spaces and line ends; choose letter "
            "(characters), bpe or unigram"
        )
    settings = {"vocab_size": options.vocab_size, "min_frequency": options.min_frequency}
    if options.tokenizer_algorithm == "letter":
        backend = _characters(texts, lowercase=options.lowercase, **settings)
    else:
        settings |= {"lowercase": options.lowercase, "algorithm": options.tokenizer_algorithm}
        backend = train_tokenizer(texts, **settings)
    start = SPECIAL_TOKENS["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A $B", special_tokens=[(start, backend.token_to_id(start))]
    )
    return RnnSeq2SeqJointTokenizer(
        tokenizer_object=backend,
        **SPECIAL_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",  # a text is continued at its right end
        clean_up_tokenization_spaces=False,
    )


def _characters(texts: Iterable[str], *, vocab_size: int, min_frequency: int, lowercase: bool) -> Tokenizer:
    """One entry for each character that the texts hold; others are unknown."""
    if lowercase:
        texts = map(normalizers.Lowercase().normalize_str, texts)
    names = list(SPECIAL_TOKENS.values())
    vocabulary = most_frequent(names, texts, vocab_size, min_frequency)
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_special_tokens(names)
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> np.ndarray:
    """The tokens of some documents in a row, int32; between two of them stands the end token."""
    end = tokenizer.eos_token_id
    parts: list[np.ndarray] = []
    for document in documents:
        ids = np.asarray(tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
        parts += [ids] if not parts or end is None else [np.asarray([end], dtype=np.int32), ids]
    return np.concatenate(parts)
