"""Sources as the model reads them: texts as token ids, pictures; and which texts it cannot read completely."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakSet

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import splits_letters
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.generation.batches import evaluation_mode, model_inputs
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import target_ids

logger = logging.getLogger(__name__)
# Tokenizers whose first unseen letter was named; the later ones are counted.
_warned: WeakSet[PreTrainedTokenizerBase] = WeakSet()

NO_LIMIT = 1_000_000_000  # transformers writes 1e30 into model_max_length for "no limit"


@dataclass(frozen=True)
class Encoded:
    """Token ids of sources, and the positions of the sources that were not read completely."""

    ids: list[list[int]]
    truncated: list[int]  # longer than the limit: the end was cut off
    unknown: list[int]  # all tokens are unknown: the model reads nothing of the text
    unseen: list[int] = field(default_factory=list)  # with letters or features that training never saw

    @property
    def lengths(self) -> list[int]:
        """Tokens of each source; 0 for one without text."""
        return list(map(len, self.ids))

    def inputs(self, model: PreTrainedModel, rows: Sequence[int]) -> dict[str, Tensor]:
        """What the model reads of some sources, padded."""
        return model_inputs(model, [self.ids[row] for row in rows])

    def source_ids(self, row: int) -> tuple[int, ...]:
        """The tokens of a source."""
        return tuple(self.ids[row])

    def counts(self) -> Counter[str]:
        """`sources` and those with a problem as numbers; the counts of several batches can be added."""
        counts = {"truncated": self.truncated, "unknown": self.unknown, "unseen": self.unseen}
        return Counter(sources=len(self.ids), **{name: len(found) for name, found in counts.items()})


def source_problems(counts: Mapping[str, int]) -> list[str]:
    """One warning for each kind of source that was not read completely, from `Encoded.counts`; usually none."""
    clauses = {
        "truncated": "are longer than the limit and were cut",
        "unknown": "hold nothing but unknown tokens",
        "unseen": "hold letters or features that training never saw, read as unknown",
    }
    return [
        f"{counts[name]} of {counts['sources']} sources {clause}" for name, clause in clauses.items() if counts[name]
    ]


def has_words(source: str, letters: bool) -> bool:
    """Whether a source has text. With `letters`, features and a tab alone are not text."""
    return bool((source.rpartition("\t")[2] if letters else source).strip())


def encode_sources(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], max_source_length: int | None = None
) -> Encoded:
    """Token ids of each source, and which sources were not read completely.

    A source of more than `max_source_length` tokens (default: the tokenizer's `model_max_length`) keeps its beginning
    and its final special token. A source of white space only, or of features alone, gives an empty list.
    """
    if max_source_length is not None and max_source_length < 2:
        raise ArgumentError(f"max_source_length is {max_source_length}; allowed: at least 2 tokens")
    tokenizer_limit = tokenizer.model_max_length
    limit = max_source_length or (tokenizer_limit if tokenizer_limit and tokenizer_limit < NO_LIMIT else None)
    letters = splits_letters(tokenizer)
    filled = [index for index, source in enumerate(sources) if has_words(source, letters)]
    encoded: list[list[int]] = [[] for _ in sources]
    truncated, unknown, unseen = [], [], []
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    if filled:
        rows = tokenizer([sources[index] for index in filled], verbose=False)["input_ids"]
        for index, row in zip(filled, rows, strict=True):
            if limit is not None and len(row) > limit:
                closing = row[-1:] if row[-1] in tokenizer.all_special_ids else []
                row = row[: limit - len(closing)] + closing
                truncated.append(index)
            encoded[index] = row
            if {*row} - special == {tokenizer.unk_token_id}:
                unknown.append(index)
            elif letters and tokenizer.unk_token_id in row:
                unseen.append(index)
    if unseen and tokenizer not in _warned:
        _warned.add(tokenizer)
        symbol = _first_unknown(tokenizer, sources[unseen[0]])
        logger.warning("source %r: training never saw %r, which is read as unknown", sources[unseen[0]], symbol)
    return Encoded(encoded, truncated, unknown, unseen)


def _first_unknown(tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    encoding = tokenizer(source, return_offsets_mapping=True, verbose=False)
    start, end = encoding["offset_mapping"][encoding["input_ids"].index(tokenizer.unk_token_id)]
    return source[start:end]


@dataclass(frozen=True)
class PictureSources:
    """Pictures in the place of encoded texts: their names, what reads them, and the regions that the model sees."""

    names: Sequence[str]
    read: Callable[[Sequence[str]], dict[str, Tensor]]
    regions: int

    @classmethod
    def of(
        cls, model: PreTrainedModel, names: Sequence[str], read: Callable[[Sequence[str]], dict[str, Tensor]]
    ) -> "PictureSources":
        """The pictures as `model` sees them, which is found with the first one."""
        with evaluation_mode(model):
            inputs = {name: tensor.to(model.device) for name, tensor in read(names[:1]).items()}
            return cls(names, read, model.model.encode(**inputs).last_hidden_state.shape[1])

    @property
    def lengths(self) -> list[int]:
        """Regions of each picture."""
        return [self.regions] * len(self.names)

    def inputs(self, model: PreTrainedModel, rows: Sequence[int]) -> dict[str, Tensor]:
        """What the model reads of some pictures."""
        inputs = self.read([self.names[row] for row in rows])
        return {name: tensor.to(model.device) for name, tensor in inputs.items()}

    def source_ids(self, row: int) -> tuple[int, ...]:
        """Empty: a picture has no tokens."""
        return ()

    def counts(self) -> Counter[str]:
        """As those of `Encoded`: every picture is read completely."""
        return Counter(sources=len(self.names))


def encoded_sources(
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded | PictureSources,
    max_source_length: int | None = None,
) -> Encoded | PictureSources:
    """Encodes texts, and logs a warning about sources that were not read completely.

    Sources that are encoded already, and pictures, are returned as they are: the caller has their counts.
    """
    if isinstance(sources, Encoded | PictureSources):
        return sources
    encoded = encode_sources(tokenizer, sources, max_source_length)
    for problem in source_problems(encoded.counts()):
        logger.warning(problem)
    return encoded


def encode_targets(tokenizer: PreTrainedTokenizerBase, targets: Sequence[str]) -> list[list[int]]:
    """Token ids of each target text, end of sentence included."""
    if not targets:
        return []
    return target_ids(tokenizer(text_target=list(targets), verbose=False))
