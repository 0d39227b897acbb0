"""Trains `tokenizers` models and wraps them for `transformers`, with one joint vocabulary or one for each side.

| algorithm | pieces | round trip `decode(encode(text))` |
| --- | --- | --- |
| `bpe` | merged bytes (Sennrich 2016, over bytes as in GPT-2) | exact for any Unicode text |
| `unigram` | most probable pieces (Kudo 2018), over bytes | exact for any Unicode text |
| `char` | characters; those not seen in training as bytes | exact for any Unicode text |
| `wordpiece` | pieces of words and punctuation marks (BERT) | spacing is normalized, unseen characters become `<unk>` |
| `word` | words between white space | spacing is normalized, unseen words become `<unk>` |

`word` keeps the words of text that is already tokenized. `lowercase=True` loses the case with each algorithm. A special
token that is written in a text (`"</s>"`) is text (for `word`, an unknown word).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqJointTokenizer, RnnSeq2SeqTokenizer

ALGORITHMS = ("bpe", "unigram", "wordpiece", "word", "char")
LOSSLESS = ("bpe", "unigram", "char")
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_BYTES = 256


def train_tokenizer(
    texts: Iterable[str],
    *,
    algorithm: str = "bpe",
    vocab_size: int = 8000,
    min_frequency: int = 2,
    lowercase: bool = False,
) -> Tokenizer:
    """A `tokenizers` model that ends every text with `</s>`; ids 0 to 3 are `<pad>`, `<s>`, `</s>`, `<unk>`.

    Args:
        texts: read once, one at a time.
        algorithm: one of ALGORITHMS.
        vocab_size: most entries, including special tokens (4) and, if the algorithm has them, bytes (256).
        min_frequency: rarer words (`word`), characters (`char`) and merges (`bpe`, `wordpiece`) get no entry; `unigram`
            weighs pieces by likelihood and does not use it.
        lowercase: change the text to lower case first.

    Raises:
        ValueError: unknown algorithm, a vocabulary too small for its fixed entries, no text.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r}: allowed are {', '.join(ALGORITHMS)}")
    smallest = len(SPECIAL_TOKENS) + (_BYTES if algorithm in LOSSLESS else 1)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size}: {algorithm} needs at least {smallest} (special tokens, bytes)")
    if min_frequency < 1:
        raise ValueError(f"min_frequency={min_frequency}: must be at least 1")
    iterator = iter(texts)
    first = next(iterator, None)
    if first is None:
        raise ValueError("texts: no text to train a tokenizer on")
    texts = chain([first], iterator)

    if algorithm == "char":
        tokenizer = _characters(texts, vocab_size, min_frequency, lowercase)
    else:
        tokenizer, trainer = _untrained(algorithm, vocab_size, min_frequency)
        steps: list[normalizers.Normalizer] = [normalizers.Lowercase()] if lowercase else []
        if algorithm == "word":
            # Only this algorithm would find a special token that is written in a text in the vocabulary.
            steps.append(normalizers.Replace(Regex(r"(?<!\S)<(pad|s|/s)>(?!\S)"), SPECIAL_TOKENS["unk_token"]))
            # If such a word were counted, it would get a second entry, and the special token that entry's id.
            written_out = re.compile(r"(?<!\S)<(pad|s|/s|unk)>(?!\S)", re.IGNORECASE if lowercase else 0)
            texts = (written_out.sub(" ", text) for text in texts)
        if steps:
            tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    end = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, tokenizer.token_to_id(end))]
    )
    return tokenizer


def _untrained(algorithm: str, vocab_size: int, min_frequency: int) -> tuple[Tokenizer, trainers.Trainer]:
    unknown = SPECIAL_TOKENS["unk_token"]
    options: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": list(SPECIAL_TOKENS.values())}
    options["show_progress"] = False
    if algorithm in ("bpe", "unigram"):
        options["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
    if algorithm == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer: trainers.Trainer = trainers.UnigramTrainer(unk_token=unknown, **options)
    elif algorithm == "bpe":
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(min_frequency=min_frequency, **options)
    elif algorithm == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        trainer = trainers.WordPieceTrainer(min_frequency=min_frequency, **options)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
        trainer = trainers.WordLevelTrainer(min_frequency=min_frequency, **options)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if algorithm in ("bpe", "unigram"):
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainer


def _characters(texts: Iterable[str], vocab_size: int, min_frequency: int, lowercase: bool) -> Tokenizer:
    """One entry for each character: byte-pair encoding without merges; byte fallback covers all other characters."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.lower() if lowercase else text)
    names = [*SPECIAL_TOKENS.values(), *(f"<0x{byte:02X}>" for byte in range(_BYTES))]
    frequent = sorted((character for character, count in counts.items() if count >= min_frequency))
    frequent.sort(key=counts.__getitem__, reverse=True)
    names += frequent[: vocab_size - len(names)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[],
            unk_token=SPECIAL_TOKENS["unk_token"],
            byte_fallback=True,
        )
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def build_tokenizer(
    source_texts: Iterable[str],
    target_texts: Iterable[str],
    *,
    algorithm: str = "bpe",
    vocab_size: int = 8000,
    source_vocab_size: int | None = None,
    joint: bool = True,
    min_frequency: int = 2,
    lowercase: bool = False,
    model_max_length: int = 512,
) -> RnnSeq2SeqJointTokenizer:
    """A tokenizer for both sides, trained on them; `AutoTokenizer` loads it after saving.

    Args:
        source_texts, target_texts: the training split, each read once.
        vocab_size: entries of the joint vocabulary, or of the target's.
        source_vocab_size: entries of the source's vocabulary when not joint; default `vocab_size`.
        joint: one vocabulary for both sides, whose files load without this package.
        model_max_length: tokens of the longest source; saved with the tokenizer.

    Raises:
        ValueError: as train_tokenizer; `source_vocab_size` with a joint vocabulary.
    """
    options: dict[str, Any] = {"algorithm": algorithm, "min_frequency": min_frequency, "lowercase": lowercase}
    if model_max_length < 1:
        raise ValueError(f"model_max_length={model_max_length}: must be at least 1")
    wrapping: dict[str, Any] = {
        **SPECIAL_TOKENS,
        "model_max_length": model_max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    if joint:
        if source_vocab_size not in (None, vocab_size):
            raise ValueError(f"source_vocab_size={source_vocab_size}: a joint vocabulary has one size, vocab_size")
        backend = train_tokenizer(chain(source_texts, target_texts), vocab_size=vocab_size, **options)
        return RnnSeq2SeqJointTokenizer(tokenizer_object=backend, **wrapping)
    source = train_tokenizer(source_texts, vocab_size=source_vocab_size or vocab_size, **options)
    target = train_tokenizer(target_texts, vocab_size=vocab_size, **options)
    return RnnSeq2SeqTokenizer(tokenizer_object=source, target_tokenizer_object=target, **wrapping)


def source_vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Entries of the source embedding, including added tokens."""
    return len(tokenizer)


def target_vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Entries of the target embedding and the output layer, including added tokens."""
    return int(getattr(tokenizer, "target_vocab_size", len(tokenizer)))


def source_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The pieces of a source as readable text, also those that are bytes in the vocabulary."""
    return _readable(getattr(tokenizer, "decode_source", tokenizer.decode), tokenizer.convert_ids_to_tokens, ids)


def target_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The pieces of a target as readable text."""
    convert = getattr(tokenizer, "convert_target_ids_to_tokens", tokenizer.convert_ids_to_tokens)
    return _readable(tokenizer.decode, convert, ids)


def _readable(
    decode: Callable[[list[int]], str], convert: Callable[[list[int]], list[str]], ids: Sequence[int]
) -> list[str]:
    """One string for each token. A token that is part of a character has no text and keeps its vocabulary name."""
    names = convert(list(ids))
    texts = [decode([i]) for i in ids]
    return [name if "\ufffd" in text or not text else text for name, text in zip(names, texts, strict=True)]
