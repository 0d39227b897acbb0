"""The tokenizer of a pretrained encoder for the source, and one of our own for the target.

A model has one id of each special token for both sides. So the target's have the names and the ids of the source's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from hf_rnn_seq2seq.data.tokenizer import SPECIAL_TOKENS, Composed, train_tokenizer
from hf_rnn_seq2seq.model.tokenization_rnn_seq2seq import RnnSeq2SeqTokenizer


def pair_tokenizer(
    source: PreTrainedTokenizerFast, target_texts: Iterable[str], *, model_max_length: int, **options: Any
) -> RnnSeq2SeqTokenizer:
    """Reads sources with `source`, and targets with a tokenizer trained on `target_texts`.

    Args:
        source: as `load_tokenizer` returns it, with an end token and a pad token; it is not changed.
        target_texts: read once.
        model_max_length: tokens of the longest source; at most what `source` allows.
        options: of `train_tokenizer`.

    Raises:
        ValueError: as `train_tokenizer`; or the target vocabulary has no place for the ids of the special tokens.
    """
    special = {name: getattr(source, name) for name in SPECIAL_TOKENS}
    # Decoding starts with it where there is no start token (BERT), else with the pad token (T5).
    special["bos_token"] = special["bos_token"] or source.cls_token
    special = {name: token for name, token in special.items() if token is not None}
    composed = Composed(target_texts, options.get("unicode_form"))
    target = train_tokenizer(composed, **options)
    places = {name: (token, source.convert_tokens_to_ids(token)) for name, token in special.items()}
    reads = Tokenizer.from_str(source.backend_tokenizer.to_str())
    # Limits that the file of an encoder may hold; rows are cut and padded elsewhere.
    reads.no_truncation()
    reads.no_padding()
    return RnnSeq2SeqTokenizer(
        tokenizer_object=reads,
        target_tokenizer_object=_renumbered(target, places),
        **special,
        model_max_length=min(model_max_length, source.model_max_length),
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **composed.output(),
    )


def _renumbered(tokenizer: Tokenizer, places: dict[str, tuple[str, int]]) -> Tokenizer:
    """The tokenizer with special tokens of other names at other ids; all other entries keep their order.

    Args:
        tokenizer: of `train_tokenizer`.
        places: name and id of `pad_token`, `bos_token` and so on. A start token that is not among them loses its entry;
            the token of unknown words keeps its name.
    """
    places = dict(places)
    unknown = SPECIAL_TOKENS["unk_token"]
    taken = {number for _, number in places.values()}
    if "unk_token" not in places:
        places["unk_token"] = (unknown, next(n for n in range(len(taken) + 1) if n not in taken))
    at = {number: token for token, number in places.values()}
    old = set(SPECIAL_TOKENS.values())
    entries = tokenizer.get_vocab()
    others = [token for token in sorted(entries, key=entries.__getitem__) if token not in old]
    size = len(others) + len(at)
    if max(at) >= size:
        raise ValueError(
            f"special token {at[max(at)]!r} of the encoder has id {max(at)}, beyond the {size} entries of the target "
            "vocabulary, which must have it at the same id; raise vocab_size, or choose another encoder"
        )
    if clash := {*at.values()} & {*others}:
        raise ValueError(f"target vocabulary: has an entry {min(clash)!r}, which is a special token of the encoder")
    queue = iter(others)
    order = [at[number] if number in at else next(queue) for number in range(size)]
    ids = {token: number for number, token in enumerate(order)}

    names = {SPECIAL_TOKENS[name]: token for name, (token, _) in places.items()}
    text = json.loads(tokenizer.to_str())
    model = text["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = ids
    else:  # Unigram: entries with their scores, in the order of their ids
        scores = dict(model["vocab"])
        scores |= {names[token]: scores[token] for token in names if token in scores}
        model["vocab"] = [[token, scores[token]] for token in order]
        model["unk_id"] = ids[names[unknown]]
    if model.get("unk_token") == unknown:
        model["unk_token"] = names[unknown]
    kept = [entry for entry in text["added_tokens"] if entry["content"] in names]
    text["added_tokens"] = sorted(
        ({**entry, "content": names[entry["content"]], "id": ids[names[entry["content"]]]} for entry in kept),
        key=lambda entry: entry["id"],
    )
    for step in (text["normalizer"] or {}).get("normalizers", []):  # of `word`: a special token written in a text
        if step.get("content") == unknown:
            step["content"] = names[unknown]
    made = Tokenizer.from_str(json.dumps(text))
    end, number = places["eos_token"]
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, number)]
    )
    return made
