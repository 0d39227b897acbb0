"""Tiny checkpoints for the tests of evaluation, translation and pictures."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer, source_vocabulary_size, target_vocabulary_size

MODEL_FOLDER = Path(__file__).resolve().parents[2] / "hf_rnn_seq2seq" / "model"
OF_OTHER_MODELS = ("*_rnn_classifier.py", "*_rnn_causal.py")
OF_OTHER_MODELS += ("*_rnn_handwriting.py", "mixture_density.py", "pen_points.py")


def translator_files() -> set[str]:
    """The files of model/ that an encoder-decoder's checkpoint carries; tokenizers and processors bring their own."""
    others = {path for pattern in OF_OTHER_MODELS for path in MODEL_FOLDER.glob(pattern)}
    brought = {"__init__.py", "tokenization_rnn_seq2seq.py", "processing_rnn_seq2seq.py"}
    return {path.name for path in set(MODEL_FOLDER.glob("*.py")) - others} - brought


SOURCES = [
    "three days ago",
    "Thursday, March 12, 2026",
    "in an hour",
    "naïve café",
    "日本語 이틀 전",
    "😀 three",
    "2 kg",
]
TARGETS = ["il y a trois jours", "jeudi 12 mars 2026", "dans une heure", "café naïf", "три дня", "2 kilogrammes"]


def tiny_tokenizer(algorithm: str = "bpe", *, joint: bool = True) -> PreTrainedTokenizerBase:
    return build_tokenizer(
        SOURCES * 3,
        TARGETS * 3,
        algorithm=algorithm,
        vocab_size=330,
        source_vocab_size=None if joint else 320,
        joint=joint,
        min_frequency=1,
        model_max_length=64,
    )


def tiny_rnn(tokenizer: PreTrainedTokenizerBase, **options: Any) -> PreTrainedModel:
    """A random model whose greedy and beam outputs differ and end at different lengths."""
    sizes = {"embedding_size": 16, "hidden_size": 24}
    config = RnnSeq2SeqConfig(
        vocab_size=target_vocabulary_size(tokenizer),
        source_vocab_size=source_vocabulary_size(tokenizer),
        **{**sizes, **options},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _spread(RnnSeq2SeqForConditionalGeneration(config), deviation=0.5)


def save_encoder(folder: Path, texts: list[str]) -> None:
    """A BERT of some units with its tokenizer, as a folder of the Hub; its table has 3 rows more than needed."""
    tokenizer = build_tokenizer(texts, texts, algorithm="wordpiece", vocab_size=120)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=len(tokenizer) + 3, **sizes)).save_pretrained(folder)


def tiny_bart(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Transformer with two layers of four attention heads."""
    width = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = BartConfig(
        vocab_size=len(tokenizer),
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="eager",
        **width,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return _spread(BartForConditionalGeneration(config), deviation=0.4)


def _spread(model: PreTrainedModel, deviation: float) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (one for one in model.parameters() if one.dim() > 1):
            parameter.copy_(deviation * torch.randn(parameter.shape, generator=generator))
    model.generation_config.max_new_tokens = 12
    return model.eval()


def save_checkpoint(directory: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
