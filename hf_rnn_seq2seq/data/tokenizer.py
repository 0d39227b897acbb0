"""Trains `tokenizers` models and wraps them for `transformers`, with one joint vocabulary or one for each side.

| algorithm | pieces | round trip `decode(encode(text))` |
| --- | --- | --- |
| `bpe` | merged bytes (Sennrich 2016, over bytes as in GPT-2) | exact for any Unicode text |
| `unigram` | most probable pieces (Kudo 2018), over bytes | exact for any Unicode text |
| `char` | characters; those not seen in training as bytes | exact for any Unicode text |
| `wordpiece` | pieces of words and punctuation marks (BERT) | spacing is normalized, unseen characters become `<unk>` |
| `word` | words between white space | spacing is normalized, unseen words become `<unk>` |
| `letter` | characters; exactly those seen in training | exact, unseen characters become `<unk>` |

`word` keeps the words of text that is already tokenized, or symbols between spaces. `letter` is for words whose letters
are the whole vocabulary. Features and a tab may precede the word (`V;PST<tab>walk`); `;` and `+` separate the features,
and each is one token. `lowercase=True` loses the case with each algorithm. A special token that is written in a text
(`"</s>"`) is text (for `word`, an unknown word).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.arguments import ALGORITHMS, FORMS
from hf_rnn_seq2seq.errors import quoted
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqJointTokenizer, RnnSeq2SeqTokenizer

logger = logging.getLogger(__name__)

LOSSLESS = ("bpe", "unigram", "char")
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_BYTES = 256
_FORMS = dict(zip(FORMS, (normalizers.NFC(), normalizers.NFD(), normalizers.NFKC(), normalizers.NFKD()), strict=True))


def train_tokenizer(
    texts: Iterable[str],
    *,
    algorithm: str = "bpe",
    vocab_size: int = 8000,
    min_frequency: int = 2,
    lowercase: bool = False,
    unicode_form: str | None = None,
) -> Tokenizer:
    """A `tokenizers` model that ends every text with `</s>`; ids 0 to 3 are `<pad>`, `<s>`, `</s>`, `<unk>`.

    Args:
        texts: read once, one at a time.
        algorithm: one of ALGORITHMS.
        vocab_size: most entries, including special tokens (4) and, if the algorithm has them, bytes (256).
        min_frequency: rarer words (`word`), characters (`char`, `letter`) and merges (`bpe`, `wordpiece`) get no entry;
            `unigram` weighs pieces by likelihood and does not use it.
        lowercase: change the text to lower case first.
        unicode_form: bring the text into this form first: one of FORMS.

    Raises:
        ValueError: unknown algorithm or form, a vocabulary too small for its fixed entries, no text.
    """
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm={algorithm!r}: allowed are {', '.join(ALGORITHMS)}")
    if unicode_form is not None and unicode_form not in FORMS:
        raise ValueError(f"unicode_form={unicode_form!r}: allowed are {', '.join(FORMS)}")
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

    steps: list[normalizers.Normalizer] = [_FORMS[unicode_form]] if unicode_form else []
    steps += [normalizers.Lowercase()] if lowercase else []
    if algorithm in ("char", "letter"):
        make = _characters if algorithm == "char" else _letters
        tokenizer = make(texts, vocab_size, min_frequency, steps)
    else:
        tokenizer, trainer = _untrained(algorithm, vocab_size, min_frequency)
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


def most_frequent(names: list[str], pieces: Iterable[Iterable[str]], size: int, min_frequency: int) -> dict[str, int]:
    """`names` and the most frequent pieces, to their ids."""
    counts: Counter[str] = Counter()
    for text in pieces:
        counts.update(text)
    frequent = sorted(piece for piece, count in counts.items() if count >= min_frequency)
    frequent.sort(key=counts.__getitem__, reverse=True)
    return {name: number for number, name in enumerate([*names, *frequent[: size - len(names)]])}


def _letters(
    texts: Iterable[str], vocab_size: int, min_frequency: int, steps: list[normalizers.Normalizer]
) -> Tokenizer:
    """One entry for each character, and for each feature with the tab that ends it."""
    between = normalizers.Replace(Regex(r"[;+](?=[^\t]*\t)"), "\t")
    normalizer = normalizers.Sequence([*steps, between, normalizers.Replace(Regex(r"^\t+|(?<=\t)\t+"), "")])
    pieces = pre_tokenizers.Split(Regex(r"[^\t]+\t|[^\t]"), "isolated")
    found = ([piece for piece, _ in pieces.pre_tokenize_str(normalizer.normalize_str(text))] for text in texts)
    vocabulary = most_frequent(list(SPECIAL_TOKENS.values()), found, vocab_size, min_frequency)
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = normalizer, pieces, decoders.Fuse()
    return tokenizer


def _characters(
    texts: Iterable[str], vocab_size: int, min_frequency: int, steps: list[normalizers.Normalizer]
) -> Tokenizer:
    """One entry for each character: byte-pair encoding without merges; byte fallback covers all other characters."""
    normalizer = normalizers.Sequence(steps) if steps else None
    names = [*SPECIAL_TOKENS.values(), *(f"<0x{byte:02X}>" for byte in range(_BYTES))]
    normal = (normalizer.normalize_str(text) if normalizer else text for text in texts)
    vocabulary = most_frequent(names, normal, vocab_size, min_frequency)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[],
            unk_token=SPECIAL_TOKENS["unk_token"],
            byte_fallback=True,
        )
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    if normalizer:
        tokenizer.normalizer = normalizer
    return tokenizer


def build_tokenizer(
    source_texts: Iterable[str],
    target_texts: Iterable[str],
    *,
    algorithm: str = "bpe",
    source_algorithm: str | None = None,
    target_algorithm: str | None = None,
    vocab_size: int = 8000,
    source_vocab_size: int | None = None,
    joint: bool = True,
    min_frequency: int = 2,
    lowercase: bool = False,
    source_unicode_form: str | None = None,
    target_unicode_form: str | None = None,
    model_max_length: int = 512,
) -> RnnSeq2SeqJointTokenizer:
    """A tokenizer for both sides, trained on them; `AutoTokenizer` loads it after saving.

    Args:
        source_texts, target_texts: the training split, each read once.
        source_algorithm, target_algorithm: of one side, where it is not `algorithm`.
        source_unicode_form, target_unicode_form: bring each side into this form (one of FORMS) first. Outputs are
            composed again (NFC) if every target text, brought into the form and composed, is what it was.
        vocab_size: entries of the joint vocabulary, or of the target's.
        source_vocab_size: entries of the source's vocabulary when not joint; default `vocab_size`.
        joint: one vocabulary for both sides, whose files load without this package.
        model_max_length: tokens of the longest source; saved with the tokenizer.

    Raises:
        ValueError: as train_tokenizer; `source_vocab_size`, or sides that differ, with a joint vocabulary.
    """
    options: dict[str, Any] = {"min_frequency": min_frequency, "lowercase": lowercase}
    of_source = {"algorithm": source_algorithm or algorithm, "unicode_form": source_unicode_form}
    of_target = {"algorithm": target_algorithm or algorithm, "unicode_form": target_unicode_form}
    for name in of_source if joint else ():
        if of_source[name] != of_target[name]:
            raise ValueError(
                f"source and target have {name} {of_source[name]!r} and {of_target[name]!r}: one vocabulary has one of "
                "them; choose joint_vocabulary=False"
            )
    composed = Composed(target_texts, target_unicode_form)
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
        backend = train_tokenizer(chain(source_texts, composed), vocab_size=vocab_size, **options, **of_target)
        return RnnSeq2SeqJointTokenizer(tokenizer_object=backend, **wrapping, **composed.output())
    source = train_tokenizer(source_texts, vocab_size=source_vocab_size or vocab_size, **options, **of_source)
    target = train_tokenizer(composed, vocab_size=vocab_size, **options, **of_target)
    return RnnSeq2SeqTokenizer(tokenizer_object=source, target_tokenizer_object=target, **wrapping, **composed.output())


class Composed:
    """Texts that are read once, and whether composing (NFC) undoes a form on all of them."""

    def __init__(self, texts: Iterable[str], form: str | None) -> None:
        self.texts, self.form = texts, form
        self.changes = False
        self.exception: str | None = None  # the first text on which it does not

    def __iter__(self) -> Iterator[str]:
        for text in self.texts:
            if self.form is not None:
                changed = _FORMS[self.form].normalize_str(text)
                if self.exception is None and _FORMS["nfc"].normalize_str(changed) != text:
                    self.exception = text
                self.changes = self.changes or changed != text
            yield text

    def output(self) -> dict[str, str]:
        """The form that outputs are brought into, as an argument of the tokenizer."""
        if not self.changes:
            return {}
        if self.exception is None:
            return {"output_form": "NFC"}
        logger.warning(
            "target_unicode_form=%r: outputs stay in this form and equal no composed reference, because the training "
            "target %s is not in NFC; bring the targets into NFC to have outputs composed",
            self.form,
            quoted(self.exception),
        )
        return {}


def feature_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The entries of the source's vocabulary that are features, which a tab ends; only `letter` has such."""
    return sorted(number for token, number in tokenizer.get_vocab().items() if token[1:].endswith("\t"))


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
