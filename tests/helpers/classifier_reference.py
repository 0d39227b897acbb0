"""The classifiers of Lin 2017 and Yang 2016 restated slowly: one text, one sentence, one word at a time."""

import torch
from torch import Tensor

from hf_rnn_seq2seq import RnnClassifierConfig
from tests.helpers.reference_model import encode
from tests.helpers.references import Weights, affine, softmax, under


def attention(config: RnnClassifierConfig, weights: Weights, states: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
    """The vector of a sequence, and for each hop the weights of its states.

    Lin 2017, equations 5 to 7: a = softmax(w_2 . tanh(W_1 h)), m = sum a h, one w_2 a hop, the m side by side. With one
    hop it is Yang 2016, equations 5 to 7 (words) and 8 to 10 (sentences): w_2 is their context vector. The numbers of
    the equations are from memory.
    """
    averages, rows = [], []
    for hop in range(config.attention_hops):
        context = weights["context.weight"][hop]
        row = softmax([context @ torch.tanh(affine(weights, "project", state)) for state in states])
        rows.append(row)
        averages.append(sum(weight * state for weight, state in zip(row, states, strict=True)))
    return torch.cat(averages), rows


def penalty(rows: list[list[Tensor]]) -> Tensor:
    """Lin 2017, equation 8 (from memory): the sum of the squares of all entries of A A^T - I."""
    total = torch.zeros((), dtype=torch.float64)
    for first, left in enumerate(rows):
        for second, right in enumerate(rows):
            product = sum(a * b for a, b in zip(left, right, strict=True))
            total = total + (product - float(first == second)) ** 2
    return total


def level(config: RnnClassifierConfig, weights: Weights, vectors: list[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
    """The vector of a sequence of vectors, and the weights of its members; [] for the poolings that have none."""
    source = encode(config, under(weights, "encoder"), vectors)
    if config.pooling == "attention":
        return attention(config, under(weights, "attention"), source.states)
    if config.pooling == "last":
        return torch.cat([end[0] for end in source.ends[-1]]), []
    table = torch.stack(source.states)
    return (table.max(0).values if config.pooling == "max" else table.sum(0) / len(table)), []


def sentences(ids: list[int], token: int) -> list[list[int]]:
    """The words of each sentence of a document; sentences without words are there, too."""
    found: list[list[int]] = [[]]
    for word in ids:
        if word == token:
            found.append([])
        else:
            found[-1].append(word)
    return found


def classify(
    config: RnnClassifierConfig, weights: Weights, ids: list[int]
) -> tuple[Tensor, list[list[list[Tensor]]], list[list[Tensor]]]:
    """Logits of one text; the weights of the words, sentence by sentence (one of a text without); of its sentences."""
    words, above = under(weights, "model.words"), []
    table = words["encoder.embed_tokens.weight"]
    parts = [ids] if config.sentence_token_id is None else sentences(ids, config.sentence_token_id)
    read = [level(config, words, [table[word] for word in part]) for part in parts if part]
    if config.sentence_token_id is None:
        vector = read[0][0]
    else:
        vector, above = level(config, under(weights, "model.sentences"), [vector for vector, _ in read])
    if config.classifier_size is not None:
        vector = affine(weights, "hidden", vector).clamp(min=0)
    return affine(weights, "classifier", vector), [rows for _, rows in read], above
