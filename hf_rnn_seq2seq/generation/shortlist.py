"""Vocabulary shortlists: the target words a sentence may need, read off its source words (Jean 2015, section 3.2).

The output layer of a large vocabulary is most of a decoding step; a few hundred words are a fraction of it. What is
left out cannot be said, so the shortlist is learnt from the training pairs and costs what it misses.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_rnn_seq2seq.errors import ShortlistError
from hf_rnn_seq2seq.files import write_atomically
from hf_rnn_seq2seq.run_directory import vocabulary_hash


class Shortlist:
    """Target ids that go with source ids.

    Args:
        always: ids that every sentence may say.
        by_source: source id -> ids that go with it.
        vocabulary: `vocabulary_hash` of the tokenizer whose ids they are; None where nothing checks it.
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
        """The `frequent` commonest target ids, and for each source id the `per_word` that go with it best.

        Words go together by the Dice coefficient of the sentences they stand in: 2 both / (source + target).

        Raises:
            ShortlistError: no pairs, or not as many targets as sources.
        """
        if not sources or len(sources) != len(targets):
            raise ShortlistError(f"{len(sources)} sources for {len(targets)} targets; need as many, at least 1")
        in_source, in_target, total = Counter(), Counter(), Counter()
        together: dict[int, Counter] = {}
        for source, target in zip(sources, targets, strict=True):
            said = set(target)
            total.update(target)
            in_target.update(said)
            for word in set(source):
                in_source[word] += 1
                together.setdefault(word, Counter()).update(said)
        by_source = {}
        for word, counts in together.items():
            dice = {other: 2 * both / (in_source[word] + in_target[other]) for other, both in counts.items()}
            by_source[word] = sorted(dice, key=lambda other: (-dice[other], other))[:per_word]
        return cls((word for word, _ in total.most_common(frequent)), by_source, vocabulary)

    def words(self, source: Iterable[int]) -> list[int]:
        """Ids that a sentence with these source ids may say."""
        return sorted({*self.always, *(word for own in set(source) for word in self.by_source.get(own, ()))})

    def search(self, model: Any) -> Callable[..., Any]:
        """`model.search` under this shortlist, each sentence under its own."""

        def decode(input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
            rows = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
            lists = [self.words(row) for row in rows]
            return model.search(input_ids=input_ids, attention_mask=attention_mask, shortlist=lists, **options)

        return decode

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, whole or not at all."""
        content = {"vocabulary": self.vocabulary, "always": self.always, "by_source": self.by_source}
        write_atomically(path, json.dumps(content) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], tokenizer: Any) -> "Shortlist":
        """What `save` wrote, to be used with `tokenizer`.

        Raises:
            ShortlistError: the file is not a shortlist, or its ids are not those of the tokenizer.
        """
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            by_source = {int(word): words for word, words in content["by_source"].items()}
            found = cls(content["always"], by_source, content.get("vocabulary"))
        except OSError as error:
            raise ShortlistError(f"{path}: cannot be read ({error.strerror or error})") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ShortlistError(f"{path}: not a shortlist: {error}") from None
        if found.vocabulary != vocabulary_hash(tokenizer):
            made = "for another tokenizer" if found.vocabulary else "before shortlists named their tokenizer"
            raise ShortlistError(f"{path}: was made {made}; learn it again with learn_shortlist.py and this model")
        return found


__all__ = ["Shortlist"]
