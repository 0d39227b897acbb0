"""Scores of classes, the bag of words beside them, and what the attention shows: pointing and deletion."""

import math
import random

import pytest
import torch

from hf_rnn_seq2seq import RnnClassifierConfig, RnnForSequenceClassification
from hf_rnn_seq2seq.data.labeled_texts import build_text_tokenizer, sentence_token_id
from hf_rnn_seq2seq.evaluation.bag_of_words import BagOfWords
from hf_rnn_seq2seq.evaluation.classification import class_scores, deletion, pointing
from hf_rnn_seq2seq.generation.batches import MAX_TOKENS
from hf_rnn_seq2seq.generation.classify import Classified, classify
from tests.helpers.models import randomize

TEXTS = ["a b c\nd e", "c\nc c d\na", "e d", "b\n\nd c b a"]


def build(**options: object) -> tuple:
    sentences = "lines" if options.pop("documents", True) else None
    tokenizer = build_text_tokenizer(TEXTS * 2, sentences=sentences, algorithm="word", vocab_size=30, min_frequency=1)
    config = RnnClassifierConfig(
        vocab_size=len(tokenizer),
        hidden_size=6,
        embedding_size=5,
        sentence_token_id=sentence_token_id(tokenizer),
        id2label={0: "x", 1: "y"},
        **options,
    )
    model = RnnForSequenceClassification(config).eval()
    randomize(model, deviation=1.0)
    return model, tokenizer


def test_scores_by_hand() -> None:
    scores = class_scores(["a", "a", "b", "c"], ["a", "b", "b", "a"])
    assert scores["accuracy"] == 50
    # a: 1 hit, 2 guessed, 2 true: 0.5; b: 1 hit, 1 guessed, 2 true: 2/3. c is never true and has no score.
    assert math.isclose(scores["macro_f1"], 100 * (0.5 + 2 / 3) / 2)


@pytest.mark.parametrize("documents", [True, False])
def test_each_text_is_classified_as_alone(documents: bool) -> None:
    model, tokenizer = build(documents=documents, attention_hops=2)
    together = classify(model, tokenizer, TEXTS, batch_size=3)
    for text, result in zip(TEXTS, together, strict=True):
        (alone,) = classify(model, tokenizer, [text])
        assert result.text == text and result.label == alone.label
        assert math.isclose(sum(result.probabilities.values()), 1, rel_tol=1e-5)
        torch.testing.assert_close(result.words, alone.words)
        assert result.words.shape == (2, len(result.spans))
        assert (result.sentences is None) != documents
    if documents:
        lines = together[3]
        assert lines.sentence_of == [0, -1, 1, 1, 1, 1, -1]
        torch.testing.assert_close(lines.sentences.sum(1), torch.ones(2))


def test_long_texts_are_read_in_smaller_batches() -> None:
    """A batch is limited in tokens, as in all that generates or scores, and not in texts alone."""
    model, tokenizer = build(documents=False)
    shapes: list[torch.Size] = []
    model.register_forward_pre_hook(lambda _, given: shapes.append(given[0].shape))
    texts = ["a b c d e " * 110] * 40
    results = classify(model, tokenizer, texts, batch_size=40)
    deletion(model, tokenizer, results, ["x"] * 40, batch_size=40)
    assert all(shape.numel() <= MAX_TOKENS for shape in shapes)
    assert sum(shape[0] for shape in shapes) == 4 * 40, "once each as a whole, and in the three rows of a deletion"


def test_pointing_by_hand() -> None:
    def result(*weights: float) -> Classified:
        return Classified("", {}, [], sentences=torch.tensor([weights]))

    assert pointing([result(0.1, 0.9), result(0.6, 0.4), result(0.2, 0.8)], [1, 1, 1]) == pytest.approx(200 / 3)
    assert pointing([Classified("", {}, [])], [0]) is None


@pytest.mark.parametrize("documents", [True, False])
def test_deletion_is_the_loss_without_the_part(documents: bool) -> None:
    model, tokenizer = build(documents=documents)
    results, labels = classify(model, tokenizer, TEXTS), ["x", "y", "y", "x"]
    found = deletion(model, tokenizer, results, labels, seed=3)
    chance, losses, count = random.Random(3), [0.0, 0.0, 0.0], 0
    for result, label in zip(results, labels, strict=True):
        ids = tokenizer(result.text)["input_ids"]
        weights = result.sentences[0] if documents else result.words[0]
        end = tokenizer.sep_token_id if documents else tokenizer.eos_token_id
        parts, part = [], 0
        for token in ids:
            parts.append(part if token != end else None)
            part += 1 if not documents else token == end
        real = sorted({part for part in parts if part is not None})
        if len(real) < 2:
            continue
        count += 1
        top = max(real, key=lambda part: float(weights[part]))
        other = chance.choice([part for part in real if part != top])
        for number, gone in enumerate((None, top, other)):
            kept = [token for token, part in zip(ids, parts, strict=True) if part is None or part != gone]
            with torch.no_grad():
                logits = model(torch.tensor([kept])).logits[0]
            losses[number] -= float(logits.log_softmax(0)["xy".index(label)])
    assert found.texts == count and found.unit == ("sentence" if documents else "token")
    assert found.top == pytest.approx((losses[1] - losses[0]) / count, abs=1e-5)
    assert found.random == pytest.approx((losses[2] - losses[0]) / count, abs=1e-5)


def test_without_attention_nothing_is_deleted() -> None:
    model, tokenizer = build(pooling="max")
    assert deletion(model, tokenizer, classify(model, tokenizer, TEXTS), ["x"] * 4) is None


def test_a_bag_of_words_knows_words_and_pairs_but_no_order() -> None:
    draw = random.Random(0)
    words = ["red", "green", "blue", "one", "two"]
    texts = [" ".join(draw.choices(words, k=6)) for _ in range(300)]
    counts = ["many" if text.count("red") > 1 else "few" for text in texts]
    bag = BagOfWords(texts[:200], counts[:200], (texts[200:250], counts[200:250]))
    found = bag.predict(texts[250:])
    assert sum(a == b for a, b in zip(found, counts[250:], strict=True)) >= 45
    assert bag.predict(["red green", "RED Green"])[0] == bag.predict(["RED Green"])[0]
    pairs = ["yes" if "one two" in text else "no" for text in texts]
    bag = BagOfWords(texts[:200], pairs[:200], (texts[200:250], pairs[200:250]))
    assert sum(a == b for a, b in zip(bag.predict(texts[250:]), pairs[250:], strict=True)) >= 45, "neighbors are seen"
    first = [
        "red" if text.index("red") < text.index("green") else "green"
        for text in texts
        if "red" in text and "green" in text
    ]
    both = [text for text in texts if "red" in text and "green" in text]
    bag = BagOfWords(both[: len(both) // 2], first[: len(both) // 2])
    share = sum(a == b for a, b in zip(bag.predict(both), first, strict=True)) / len(both)
    assert share < 0.9, "which of two words is first it can only guess from their neighbors"


def test_the_weights_of_a_bag_are_those_of_least_loss() -> None:
    """The gradient that is computed by hand vanishes at the solution, by autograd."""
    texts, classes = ["a b", "b c", "a a c", "c d", "d a b"] * 3, ["x", "y", "x", "y", "z"] * 3
    bag = BagOfWords(texts, classes)
    from hf_rnn_seq2seq.evaluation.bag_of_words import _bag

    table = bag._table(map(_bag, texts)).to_dense()
    torch.testing.assert_close(table.norm(dim=1), torch.ones(15))
    weights = bag.weights.clone().requires_grad_()
    labels = torch.tensor([bag.names.index(name) for name in classes])
    loss = torch.nn.functional.cross_entropy(table @ weights[:-1] + weights[-1], labels)
    (loss + weights[:-1].square().sum() / (2 * bag.strength * len(texts))).backward()
    assert weights.grad.abs().max() < 1e-4
