"""The baseline of a classifier: logistic regression on the words and pairs of neighbors of a text, without their order.

Every figure of another model is to be read against it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

STRENGTHS = (1.0, 4.0, 16.0)  # C, the inverse of the penalty on the weights


def train_bag_of_words(
    texts: Sequence[str],
    classes: Sequence[str],
    development: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Pipeline:
    """A classifier of lists of texts, by `predict`.

    Args:
        texts, classes: of the training split.
        development: texts and classes, which choose the penalty on the weights; None: the middle one of STRENGTHS.
    """
    features = TfidfVectorizer(
        token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=200_000
    )
    table = features.fit_transform(texts)
    strengths = STRENGTHS if development else STRENGTHS[1:2]
    with warnings.catch_warnings():
        # To the end it takes minutes where words say little about the class, and moves the accuracy by half a point.
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = [LogisticRegression(C=strength, tol=1e-3, max_iter=50).fit(table, classes) for strength in strengths]
    if development is None:
        return make_pipeline(features, models[0])
    seen, names = features.transform(development[0]), development[1]
    return make_pipeline(features, max(models, key=lambda model: model.score(seen, names)))
