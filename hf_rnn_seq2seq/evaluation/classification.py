"""A classifier on a test set: its scores, and whether its attention shows what it read."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.arguments import DataArguments
from hf_rnn_seq2seq.data.corpus import load_corpus
from hf_rnn_seq2seq.data.labeled_texts import sentence_token_id
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.evaluation.bag_of_words import BagOfWords
from hf_rnn_seq2seq.evaluation.results import format_table
from hf_rnn_seq2seq.evaluation.test_set import TestSet, read_test_set
from hf_rnn_seq2seq.generation.batches import MAX_TOKENS, length_batches
from hf_rnn_seq2seq.generation.classify import Classified, classify, sentence_numbers
from hf_rnn_seq2seq.run_directory import data_options, load_as

logger = logging.getLogger(__name__)


def class_scores(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """`accuracy` and `macro_f1`, the mean over the classes of the true labels, in percent."""
    hits = Counter(name for name, other in zip(found, wanted, strict=True) if name == other)
    guessed, true = Counter(found), Counter(wanted)
    scores = [2 * hits[name] / (guessed[name] + true[name]) for name in true]
    return {
        "accuracy": 100 * sum(hits.values()) / max(len(wanted), 1),
        "macro_f1": 100 * sum(scores) / max(len(scores), 1),
    }


def pointing(results: Sequence[Classified], deciding: Sequence[int]) -> float | None:
    """Percent of the documents in which the sentence with the most weight is the one that decides the label.

    Weights are averaged over the hops; None if there are none of sentences.
    """
    if any(result.sentences is None for result in results):
        return None
    tops = [int(result.sentences.mean(0).argmax()) for result in results]
    return 100 * sum(top == place for top, place in zip(tops, deciding, strict=True)) / max(len(tops), 1)


@dataclass(frozen=True)
class Deletion:
    """How much the loss grows, in nats a text, when a part is deleted: the one with most weight, and a random other.

    Attributes:
        unit: `sentence`, or `token` of a model without a level of sentences.
        texts: of two parts or more.
    """

    unit: str
    texts: int
    top: float
    random: float


def deletion(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    results: Sequence[Classified],
    labels: Sequence[str],
    *,
    most: int = 500,
    seed: int = 0,
    batch_size: int = 64,
) -> Deletion | None:
    """Deletes from each of the first texts the part with the most weight, and another one; None without attention.

    Args:
        results: what `classify` returned.
        labels: the true class of each text.
        most: texts at most.
    """
    if not results or results[0].words is None:
        return None
    end, chance = sentence_token_id(tokenizer), random.Random(seed)
    by_sentence = results[0].sentences is not None
    number = {name: place for place, name in model.config.id2label.items()}
    whole, without_top, without_other, targets = [], [], [], []
    for result, label in zip(results[:most], labels[:most], strict=True):
        ids = tokenizer(result.text, truncation=True)["input_ids"]
        parts = sentence_numbers(ids, end) if by_sentence else list(range(len(ids)))
        weights = (result.sentences if by_sentence else result.words).mean(0)
        real = sorted({part for part in parts if part >= 0})
        if not by_sentence:
            real = [part for part in real if result.spans[part][1] > result.spans[part][0]]
        if len(real) < 2:
            continue
        top = max(real, key=lambda part: float(weights[part]))
        other = chance.choice([part for part in real if part != top])
        whole.append(ids)
        without_top.append([token for token, part in zip(ids, parts, strict=True) if part != top])
        without_other.append([token for token, part in zip(ids, parts, strict=True) if part != other])
        targets.append(number[label])
    if not whole:
        return None
    losses = [_mean_loss(model, rows, targets, tokenizer, batch_size) for rows in (whole, without_top, without_other)]
    return Deletion("sentence" if by_sentence else "token", len(whole), losses[1] - losses[0], losses[2] - losses[0])


@torch.no_grad()
def _mean_loss(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    targets: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
) -> float:
    total = 0.0
    for chosen in length_batches(list(map(len, rows)), batch_size, MAX_TOKENS):
        batch = tokenizer.pad({"input_ids": [rows[row] for row in chosen]}, return_tensors="pt").to(model.device)
        logits = model(batch["input_ids"], batch["attention_mask"]).logits.float()
        wanted = torch.tensor([targets[row] for row in chosen], device=logits.device)
        total += float(F.cross_entropy(logits, wanted, reduction="sum"))
    return total / len(rows)


@dataclass(frozen=True)
class ClassifierEvaluation:
    """A classifier's figures on a test set, and those of the bag of words.

    Attributes:
        scores, baseline: of `class_scores`; the second is None if the training split is not known.
        pointing: of `pointing`, on documents that know which sentence decides.
        deletion: of `deletion`.
        samples: some texts with the class that was named and the true one.
        own: the test set is the run's own, so that its summary keeps the figures.
    """

    directory: str
    split: str
    texts: int
    scores: dict[str, float]
    baseline: dict[str, float] | None
    pointing: float | None
    deletion: Deletion | None
    samples: list[dict[str, str]]
    own: bool

    def facts(self) -> dict[str, Any]:
        """What the summary of the run keeps."""
        facts: dict[str, Any] = {"split": self.split, "test_texts": self.texts, **self.scores, "samples": self.samples}
        if self.baseline is not None:
            facts["bag_of_words"] = self.baseline["accuracy"]
        if self.pointing is not None:
            facts["sentence_pointing"] = self.pointing
        if self.deletion is not None:
            facts["deletion"] = vars(self.deletion)
        return facts

    def lines(self) -> list[str]:
        """The figures as they are printed."""
        rows = [["system", "accuracy", "macro F1"], _row(self.directory, self.scores)]
        if self.baseline is not None:
            rows.append(_row("bag of words and bigrams", self.baseline))
        lines = [format_table(rows), f"on {self.texts} texts of the {self.split} split"]
        if self.pointing is not None:
            lines.append(f"{self.pointing:.2f} % of the texts have most weight on the sentence that decides")
        if (found := self.deletion) is not None:
            lines.append(
                f"the loss grows by {found.top:.3f} nats without the {found.unit} of most weight, by "
                f"{found.random:.3f} without another one, drawn at random ({found.texts} texts)"
            )
        return lines


def _row(name: str, scores: Mapping[str, float]) -> list[str]:
    return [name, f"{scores['accuracy']:.2f}", f"{scores['macro_f1']:.2f}"]


def evaluate_classifier(
    directory: str,
    chosen: Mapping[str, Any],
    *,
    split: str = "test",
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 64,
) -> ClassifierEvaluation:
    """The figures of a run directory on its test set, or on the data that options name (see `read_test_set`).

    Raises:
        ArgumentError: the test set has a class that the model does not know.
    """
    model, tokenizer = load_as("SequenceClassification", directory, device=device, dtype=dtype)
    test_set = read_test_set(directory, chosen, split)
    names = model.config.id2label.values()
    if unknown := sorted(set(test_set.references) - {*names}):
        raise ArgumentError(
            f"{split} split: {directory} knows no class {unknown[0]!r}, only {', '.join(names)}; file_format and "
            "target_column say where a row has its class"
        )
    results = classify(model, tokenizer, test_set.sources, batch_size)
    found = [result.label for result in results]
    deciding = None
    if test_set.description.get("name") == "documents":
        from hf_rnn_seq2seq.data.cldr_documents import document

        options = data_options(directory) | {name: value for name, value in chosen.items() if value is not None}
        seed = options.get("data_seed", 0) if split == "train" else 0
        deciding = [document(split, seed, row).deciding for row in range(len(results))]
    count = len(results)
    places = sorted({(2 * number + 1) * count // 10 for number in range(5)})
    return ClassifierEvaluation(
        directory=directory.rstrip("/"),
        split=split,
        texts=count,
        scores=class_scores(found, test_set.references),
        baseline=_baseline(directory, test_set),
        pointing=None if deciding is None else pointing(results, deciding),
        deletion=deletion(model, tokenizer, results, test_set.references, batch_size=batch_size),
        samples=[
            {"source": results[row].text, "translation": found[row], "reference": test_set.references[row]}
            for row in places
        ],
        own=test_set.own,
    )


def _baseline(directory: str, test_set: TestSet) -> dict[str, float] | None:
    """The scores of a bag of words trained on the run's training split; None, with a warning, if it is not there."""
    options = data_options(directory)
    if not options:
        return None
    try:
        corpus = load_corpus(DataArguments(**options), splits=("train", "validation"))
    except DataError as error:
        logger.warning("no bag of words for comparison: %s", error)
        return None
    train, development = corpus.splits["train"], corpus.splits.get("validation")
    pair = None if development is None else (development["source"], development["target"])
    bag = BagOfWords(train["source"], train["target"], pair)
    return class_scores(bag.predict(test_set.sources), test_set.references)
