"""Vocabulary shortlists: the target words that may be generated, by source word (Jean 2015, section 3.2).

The output layer of a large vocabulary takes most of the time of a decoding step; a few hundred words take a fraction.
Words outside the shortlist cannot be generated, so it is learned from the training pairs.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.files import write_atomically
from hf_rnn_seq2seq.run_directory import vocabulary_hash

if TYPE_CHECKING:
    from hf_rnn_seq2seq.model.search import SearchMixin, SearchOutput


class Shortlist:
    """Target ids that go with source ids.

    Args:
        always: ids that are allowed in every sentence.
        by_source: source id -> ids that go with it.
        vocabulary: `vocabulary_hash` of the tokenizer that made the ids; None if it is not checked.
    """

    def __init__(
        self, always: Iterable[int], by_source: Mapping[int, Sequence[int]], vocabulary: str | None = None
    ) -> None:
        self.always = tuple(sorted(set(always)))
        self.by_source = {int(word): tuple(words) for word, words in by_source.items()}
        self.vocabulary = vocabulary

    @classmethod
    def learn(
        cls,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        per_word: int = 30,
        frequent: int = 200,
        vocabulary: str | None = None,
    ) -> "Shortlist":
        """The `frequent` commonest target ids, and for each source id the `per_word` that match it best.

        A match is the Dice coefficient over sentences: 2 * sentences with both / (with the source + with the target).

        Raises:
            DataError: there are no pairs, or the sides differ in number.
        """
        if not sources or len(sources) != len(targets):
            raise DataError(
                f"{len(sources)} sources for {len(targets)} targets; both must have the same length, at least 1"
            )
        in_source, in_target, total = Counter(), Counter(), Counter()
        together: dict[int, Counter] = {}
        for source, target in zip(sources, targets, strict=True):
            target_words = set(target)
            total.update(target)
            in_target.update(target_words)
            for word in set(source):
                in_source[word] += 1
                together.setdefault(word, Counter()).update(target_words)
        by_source = {}
        for word, counts in together.items():
            dice = {other: 2 * both / (in_source[word] + in_target[other]) for other, both in counts.items()}
            by_source[word] = sorted(dice, key=lambda other: (-dice[other], other))[:per_word]
        return cls((word for word, _ in total.most_common(frequent)), by_source, vocabulary)

    def words(self, source: Iterable[int]) -> list[int]:
        """Ids that are allowed for a sentence with these source ids."""
        matches = (word for source_id in set(source) for word in self.by_source.get(source_id, ()))
        return sorted({*self.always, *matches})

    def search(self, model: "SearchMixin") -> "Callable[..., Tensor | SearchOutput]":
        """`model.search` that allows each sentence the ids of `words`."""

        def decode(input_ids: Tensor, attention_mask: Tensor, **options: Any) -> "Tensor | SearchOutput":
            rows = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
            lists = [self.words(row) for row in rows]
            return model.search(input_ids=input_ids, attention_mask=attention_mask, shortlist=lists, **options)

        return decode

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON file atomically."""
        content = {"vocabulary": self.vocabulary, "always": self.always, "by_source": self.by_source}
        write_atomically(path, json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> "Shortlist":
        """Reads a file that `save` wrote, for use with `tokenizer`.

        Raises:
            DataError: the file is not a shortlist, or its ids are not those of the tokenizer.
        """
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            by_source = {int(word): words for word, words in content["by_source"].items()}
            shortlist = cls(content["always"], by_source, content.get("vocabulary"))
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{path}: not a shortlist: {error}") from None
        if shortlist.vocabulary != vocabulary_hash(tokenizer):
            made = "for another tokenizer" if shortlist.vocabulary else "before shortlists named their tokenizer"
            raise DataError(f"{path}: was made {made}; learn it again with learn_shortlist.py and this model")
        return shortlist
