"""Tiny models with their tokenizers."""

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tests.helpers.checkpoints import tiny_bart, tiny_rnn, tiny_tokenizer

ModelAndTokenizer = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def rnn() -> ModelAndTokenizer:
    tokenizer = tiny_tokenizer()
    return tiny_rnn(tokenizer), tokenizer


@pytest.fixture(scope="module", params=["rnn", "rnn, two vocabularies", "bart"])
def pair(request: pytest.FixtureRequest) -> ModelAndTokenizer:
    """A recurrent model with one vocabulary or two, and a Transformer."""
    tokenizer = tiny_tokenizer(joint=request.param != "rnn, two vocabularies")
    return (tiny_bart(tokenizer) if request.param == "bart" else tiny_rnn(tokenizer)), tokenizer
