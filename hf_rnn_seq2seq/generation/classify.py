"""Classes of texts, with the words and the sentences that a classifier's attention reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.labeled_texts import sentence_token_id
from hf_rnn_seq2seq.generation.batches import MAX_TOKENS, length_batches


@dataclass
class Classified:
    """A text, the probability of each class, and what the attention weighed.

    Attributes:
        text: as it was given.
        probabilities: by the name of the class.
        spans: of each token its first character and the one after its last; (0, 0) for a special token.
        words: (hops, tokens), their weights; None without attention.
        sentences: (hops, sentences), their weights; None without a level of sentences.
        sentence_of: of each token the number of its sentence, -1 for the token that ends one; None without that level.
    """

    text: str
    probabilities: dict[str, float]
    spans: list[tuple[int, int]]
    words: Tensor | None = None
    sentences: Tensor | None = None
    sentence_of: list[int] | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


@torch.no_grad()
def classify(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 64
) -> list[Classified]:
    """Classifies texts, in batches of similar length; the results are in the order of the texts.

    A text is cut at the tokenizer's `model_max_length`.
    """
    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    encoded = tokenizer(list(texts), truncation=True, return_offsets_mapping=True)
    ids, end = encoded["input_ids"], sentence_token_id(tokenizer)
    found: dict[int, Classified] = {}
    # A text without any token is classified too.
    for rows in length_batches([max(len(row), 1) for row in ids], batch_size, MAX_TOKENS):
        batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt").to(model.device)
        output = model(batch["input_ids"], batch["attention_mask"], output_attentions=True)
        probabilities = output.logits.float().softmax(-1).tolist()
        for place, row in enumerate(rows):
            one = Classified(
                texts[row], dict(zip(names, probabilities[place], strict=True)), encoded["offset_mapping"][row]
            )
            if output.attentions:
                one.words = output.attentions[0][place, :, : len(ids[row])].float().cpu()
            if len(output.attentions or ()) > 1:
                one.sentence_of = sentence_numbers(ids[row], end)
                one.sentences = output.attentions[1][place, :, : max(one.sentence_of, default=0) + 1].float().cpu()
            found[row] = one
    return [found[row] for row in range(len(texts))]


def sentence_numbers(ids: Sequence[int], end: int | None) -> list[int]:
    """Of each token the number of its sentence, -1 for the token that ends one."""
    numbers, number = [], 0
    for token in ids:
        numbers.append(-1 if token == end else number)
        number += token == end
    return numbers
