"""The baseline of a classifier: logistic regression on the words and pairs of neighbors of a text, without their order.

The features are tf-idf, (1 + log count) x (1 + log((1 + texts) / (1 + texts with it))), scaled to length 1 in each
text. Every figure of another model is to be read against it.

It is trained by torch, not by scikit-learn, which needs SciPy: transformers imports that wherever it is installed, and
every command that loads a model would start a quarter of a second later.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

FEATURES = 200_000  # the most frequent ones
STRENGTHS = (1.0, 4.0, 16.0)  # C, the inverse of the penalty on the weights
_WORDS = re.compile(r"\w+|[^\w\s]")


class BagOfWords:
    """Trained on texts and their classes; the penalty on the weights is chosen on a development set if there is one.

    Args:
        texts, classes: of the training split.
        development: texts and classes.
    """

    def __init__(
        self,
        texts: Sequence[str],
        classes: Sequence[str],
        development: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> None:
        self.names = sorted(set(classes))
        bags = [_bag(text) for text in texts]
        counts = Counter(feature for bag in bags for feature in bag)
        kept = [feature for feature, count in counts.most_common(FEATURES) if count > 1]
        self.index = {feature: number for number, feature in enumerate(kept)}
        self.idf = [math.log((1 + len(bags)) / (1 + counts[feature])) + 1 for feature in kept]
        labels = torch.tensor([self.names.index(name) for name in classes])
        table = self._table(bags)
        best, weights = -1.0, torch.zeros(len(kept) + 1, len(self.names))
        for strength in STRENGTHS if development else STRENGTHS[1:2]:
            weights = _fit(table, labels, weights, strength)
            found = self._predict(self._table(map(_bag, development[0])), weights) if development else []
            share = sum(a == b for a, b in zip(found, development[1], strict=True)) if development else 0.0
            if share > best:
                best, self.weights, self.strength = share, weights, strength

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The most probable class of each text."""
        return self._predict(self._table(map(_bag, texts)), self.weights)

    def _predict(self, table: Tensor, weights: Tensor) -> list[str]:
        return [self.names[number] for number in (table @ weights[:-1] + weights[-1]).argmax(1).tolist()]

    def _table(self, bags: Iterable[Counter[str]]) -> Tensor:
        """Sparse (texts, features)."""
        rows, columns, values, count = [], [], [], 0
        for count, bag in enumerate(bags, start=1):
            pairs = [
                (self.index[f], (1 + math.log(n)) * self.idf[self.index[f]]) for f, n in bag.items() if f in self.index
            ]
            length = math.sqrt(sum(value * value for _, value in pairs)) or 1.0
            rows += [count - 1] * len(pairs)
            columns += [column for column, _ in pairs]
            values += [value / length for _, value in pairs]
        places = torch.tensor([rows, columns])
        table = torch.sparse_coo_tensor(places, torch.tensor(values), (count, len(self.index)), check_invariants=False)
        return table.coalesce()


def _bag(text: str) -> Counter[str]:
    words = _WORDS.findall(text.lower())
    return Counter(words + [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)])


def _fit(table: Tensor, labels: Tensor, start: Tensor, strength: float) -> Tensor:
    """Weights (features + 1, classes) of least cross entropy with a penalty; the last row is the bias."""
    weights, classes = start.clone().requires_grad_(), start.shape[1]
    transposed = table.t().coalesce()
    optimizer = torch.optim.LBFGS([weights], max_iter=40, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        # By hand: autograd would transpose the table each time.
        with torch.no_grad():
            logits = table @ weights[:-1] + weights[-1]
            error = (logits.softmax(1) - F.one_hot(labels, classes)) / len(labels)
            decay = 1 / (strength * len(labels))
            weights.grad = torch.cat([transposed @ error + decay * weights[:-1], error.sum(0, keepdim=True)])
            return F.cross_entropy(logits, labels) + decay / 2 * weights[:-1].square().sum()

    optimizer.step(closure)
    return weights.detach()
