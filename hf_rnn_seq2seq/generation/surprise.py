"""How surprised a language model is by each token of a text: minus its log-probability, with the state carried on."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.running_text import token_ids
from hf_rnn_seq2seq.model.decoder_state import RnnSeq2SeqCache
from hf_rnn_seq2seq.model.loss import IGNORED_LABEL, perplexity

PIECE = 512  # tokens that are read together
WARM_UP = 1024  # tokens that a part of a text reads before its own
DYNAMIC_PIECE = 64  # tokens after which dynamic evaluation learns


@dataclass(frozen=True)
class TextScore:
    """The nats of a text, and what they are divided by."""

    nats: float
    tokens: int
    characters: int

    @property
    def bits_per_character(self) -> float:
        """The bits that the model needs to write a character of the text."""
        return self.nats / max(self.characters, 1) / math.log(2)

    def figures(self) -> dict[str, float]:
        """`loss` in nats per token, `perplexity`, and nats and bits per character."""
        loss = self.nats / max(self.tokens, 1)
        return {
            "loss": loss,
            "perplexity": perplexity(loss),
            "nats_per_character": self.nats / max(self.characters, 1),
            "bits_per_character": self.bits_per_character,
        }


def score_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: list[str],
    *,
    parts: int = 1,
    dynamic_learning_rate: float | None = None,
) -> TextScore:
    """The nats of some documents in a row; `parts` as in `token_nats`, a rate as in `dynamic_token_nats`."""
    tokens, start = token_ids(tokenizer, documents), tokenizer.bos_token_id
    if dynamic_learning_rate is None:
        nats = token_nats(model, tokens, start=start, parts=parts)
    else:
        nats = dynamic_token_nats(model, tokens, start=start, learning_rate=dynamic_learning_rate)
    return TextScore(float(nats.sum()), len(tokens), sum(map(len, documents)))


@torch.no_grad()
def token_nats(model: PreTrainedModel, tokens: np.ndarray, *, start: int, parts: int = 1) -> np.ndarray:
    """Minus the log-probability of each token after all tokens before it, float64 (tokens,), in nats.

    Args:
        model: a language model in evaluation mode.
        tokens: (tokens,), read after the token `start`.
        parts: 1 carries the state over the whole text. More parts are read side by side, which is faster; each but the
            first reads `WARM_UP` tokens before its own, and then differs little from the one.
    """
    device = next(model.parameters()).device
    size = -(-len(tokens) // parts)
    parts = -(-len(tokens) // size)
    tokens = tokens.astype(np.int64)
    before = np.concatenate([[start], tokens[:-1]])
    places = np.arange(parts)[:, None] * size + np.arange(size)
    labels = np.where(places < len(tokens), tokens[places.clip(max=len(tokens) - 1)], IGNORED_LABEL)
    inputs = torch.from_numpy(before[places.clip(max=len(tokens) - 1)]).to(device)
    cache = _warm(model, torch.from_numpy(before).to(device), size, parts)
    nats = np.zeros((parts, size))
    for at in range(0, size, PIECE):
        output = model(inputs[:, at : at + PIECE], cache=cache, use_cache=True)
        cache, here = output.cache, torch.from_numpy(labels[:, at : at + PIECE]).to(device)
        scores = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
        found = F.cross_entropy(scores.transpose(1, 2), here, ignore_index=IGNORED_LABEL, reduction="none")
        nats[:, at : at + PIECE] = found.cpu().double().numpy()
    return nats.reshape(-1)[: len(tokens)]


def dynamic_token_nats(model: PreTrainedModel, tokens: np.ndarray, *, start: int, learning_rate: float) -> np.ndarray:
    """The nats of each token, float64 (tokens,), by a model that learns each piece of the text after scoring it.

    Dynamic evaluation (Graves 2013, section 3; Mikolov 2010): after each `DYNAMIC_PIECE` tokens, which are scored
    first, the parameters make one step of gradient descent on their mean nats. The state is carried on and its
    gradient is not. So no token is scored by a model that has learned it.

    Args:
        model: a language model in evaluation mode; a copy of it learns.
        tokens: (tokens,), read after the token `start`.
        learning_rate: of the steps; choose it on a validation text.
    """
    model = copy.deepcopy(model)
    parameters = [parameter.requires_grad_() for parameter in model.parameters()]
    labels = torch.from_numpy(tokens.astype(np.int64)).to(model.device)
    inputs = torch.cat([labels.new_tensor([start]), labels[:-1]])
    cache, nats = None, []
    for inputs_here, labels_here in zip(inputs.split(DYNAMIC_PIECE), labels.split(DYNAMIC_PIECE), strict=True):
        output = model(inputs_here[None], cache=cache, use_cache=True)
        scores = output.logits[0].to(torch.promote_types(output.logits.dtype, torch.float32))
        found = F.cross_entropy(scores, labels_here, reduction="none")
        nats.append(found.detach().cpu().double().numpy())
        gradients = torch.autograd.grad(found.mean(), parameters)
        cache = output.cache
        cache.state = cache.state.map(Tensor.detach)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=learning_rate)
    return np.concatenate(nats)


def _warm(model: PreTrainedModel, before: Tensor, size: int, parts: int) -> RnnSeq2SeqCache | None:
    """The states before the first token of each part; None for one part, which starts from nothing."""
    if parts == 1:
        return None
    width = min(WARM_UP, size)
    starts = torch.arange(1, parts, device=before.device) * size
    read = before[starts[:, None] - width + torch.arange(width, device=before.device)]
    cache = None
    for piece in read.split(PIECE, 1):
        cache = model(piece, cache=cache, use_cache=True, logits_to_keep=1).cache
    # The first part has read nothing.
    cache.state = cache.state.map(lambda tensor: torch.cat([torch.zeros_like(tensor[:1]), tensor]))
    return cache
