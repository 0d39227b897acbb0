"""A tokenizer of somebody else's, of a folder or of the Hub, made ready to train a translator with.

| what is missing | what is done |
| --- | --- |
| no end token, but a separator (BERT) | the separator is the end |
| texts do not end with the end token (GPT-2) | it is appended, in training and ever after: the rule is saved |
| no pad token, or it is also the end (GPT-2) | `<pad>` or `[PAD]`, a new entry where the vocabulary has neither |
| no start token (T5, BERT) | decoding starts with the class token, or else with the pad token: see `start_token_id` |
| fields that translators do not read (`token_type_ids`) | left out |

Two things are refused, as nobody but the user can supply them: a tokenizer without a fast implementation, and one that
names neither an end token nor a separator.
"""

from collections.abc import Callable

from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_rnn_seq2seq.run_directory import read_tokenizer

INPUTS = ["input_ids", "attention_mask"]
PADS = ("<pad>", "[PAD]")


def load_tokenizer(name: str, say: Callable[[str], None] = lambda _: None) -> PreTrainedTokenizerBase:
    """The tokenizer of that name, completed; `say` is told what was done.

    Raises:
        ValueError: it cannot be loaded, or cannot be completed; the message says how to mend it.
    """
    option = f"tokenizer_name_or_path={name!r}"
    try:
        tokenizer = read_tokenizer(name)
    except Exception as error:  # tokenizers, json, a missing sentencepiece and the Hub each raise classes of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{option}: cannot be loaded; name a folder with a tokenizer.json, or a repository of the Hub that has one "
            f"({reason[:300]})"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{option}: {type(tokenizer).__name__} is not a fast tokenizer, which aligning and drawing need; "
            "name one that has a tokenizer.json"
        )
    end = tokenizer.eos_token or tokenizer.sep_token
    if end is None:
        raise ValueError(
            f"{option}: has no end token, so no translation could end; add one with "
            "tokenizer.add_special_tokens({'eos_token': '</s>'}) and tokenizer.save_pretrained(FOLDER), and name FOLDER"
        )
    done = _complete(tokenizer, end)
    if not done:
        return tokenizer
    for one in done:
        say(f"{option}: {one}")
    return _as_plain(tokenizer)


def start_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """What the decoder reads before the first word: the start token, else the class token, else the pad token."""
    ids = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.pad_token_id)
    return next((token for token in ids if token is not None), None)


def _complete(tokenizer: PreTrainedTokenizerFast, end: str) -> list[str]:
    """Adds what is missing; returns what was done, a clause each."""
    done = []
    if tokenizer.eos_token is None:
        tokenizer.eos_token = end
        done.append(f"the separator {end!r} ends a sentence")
    if tokenizer.pad_token is None or tokenizer.pad_token == end:
        known = tokenizer.get_vocab()
        pad = next((token for token in PADS if token in known), PADS[0])
        tokenizer.add_special_tokens({"pad_token": pad})
        done.append(f"the pad token is {pad!r}" + ("" if pad in known else ", a new entry"))
    if any(ids[-1:] != [tokenizer.eos_token_id] for ids in tokenizer(["a", ""])["input_ids"]):
        _append(tokenizer, end)
        done.append(f"the end token {end!r} is appended to every text")
    if tokenizer.model_input_names != INPUTS:
        done.append(f"{', '.join(sorted({*tokenizer.model_input_names} - {*INPUTS}))} are left out")
    return done


def _append(tokenizer: PreTrainedTokenizerFast, end: str) -> None:
    """Puts the end token behind what a text is written as already."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before, behind = whole[:start], whole[start + len(bare) :]
    names = {token: tokenizer.convert_ids_to_tokens(token) for token in (*before, *behind, tokenizer.eos_token_id)}
    own = [[names[token] for token in tokens] for tokens in (before, behind)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*own[0], "$A", *own[1], end],
        pair=[*own[0], "$A", *own[1], end, "$B", end],
        special_tokens=[(name, token) for token, name in names.items()],
    )


def _as_plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same as a plain fast tokenizer: a class of one model's would make its own rules again when it is loaded."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    # To GPT-2's the end stands for unknown pieces as well, of which it has none.
    if special.get("unk_token") in (special["eos_token"], special["pad_token"], special.get("bos_token")):
        del special["unk_token"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **special,
        model_max_length=tokenizer.model_max_length,
        model_input_names=INPUTS,
        padding_side="right",
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
        split_special_tokens=tokenizer.split_special_tokens,
    )


__all__ = ["load_tokenizer", "start_token_id"]
