"""An existing tokenizer, of a folder or of the Hub, completed for the training of a translation model.

| the tokenizer has | `load_tokenizer` |
| --- | --- |
| no end token, but a separator (BERT) | uses the separator as end token |
| texts that do not end with the end token (GPT-2) | appends it; the rule is saved with the tokenizer |
| no pad token, or one that is also the end (GPT-2) | takes `<pad>` or `[PAD]`, or adds it to the vocabulary |
| no start token (T5, BERT) | leaves it: decoding starts with the class token or the pad token (`start_token_id`) |
| fields that these models do not read (`token_type_ids`) | removes them |

It refuses a tokenizer without a fast implementation, and one with neither an end token nor a separator.
"""

from collections.abc import Callable

from tokenizers import processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_rnn_seq2seq.errors import one_line
from hf_rnn_seq2seq.run_directory import read_tokenizer

INPUTS = ["input_ids", "attention_mask"]
PADS = ("<pad>", "[PAD]")


def load_tokenizer(
    name: str, log: Callable[[str], None] = lambda _: None, *, option: str = "tokenizer_name_or_path"
) -> PreTrainedTokenizerBase:
    """The completed tokenizer of that name, which `option` gave; `log` receives a message for each change.

    Raises:
        ValueError: it cannot be loaded or completed; the message says how to mend it.
    """
    option = f"{option}={name!r}"
    try:
        tokenizer = read_tokenizer(name)
    except Exception as error:  # tokenizers, json, a missing sentencepiece and the Hub each raise classes of their own
        raise ValueError(
            f"{option}: cannot be loaded; name a folder with a tokenizer.json, or a repository of the Hub that has one "
            f"({one_line(error, 300)})"
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"{option}: {type(tokenizer).__name__} is not a fast tokenizer, which alignments and pictures need; "
            "name one that has a tokenizer.json"
        )
    end = tokenizer.eos_token or tokenizer.sep_token
    if end is None:
        raise ValueError(
            f"{option}: has no end token, so that translations could not end; add one with "
            "tokenizer.add_special_tokens({'eos_token': '</s>'}) and tokenizer.save_pretrained(FOLDER), and name FOLDER"
        )
    done = _complete(tokenizer, end)
    if not done:
        return tokenizer
    for one in done:
        log(f"{option}: {one}")
    return _as_plain(tokenizer)


def _complete(tokenizer: PreTrainedTokenizerFast, end: str) -> list[str]:
    """Adds what is missing; returns a clause for each change."""
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
    """Appends the end token after the special tokens that the tokenizer already adds."""
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    before, after = whole[:start], whole[start + len(bare) :]
    names = {token: tokenizer.convert_ids_to_tokens(token) for token in (*before, *after, tokenizer.eos_token_id)}
    added = [[names[token] for token in tokens] for tokens in (before, after)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[*added[0], "$A", *added[1], end],
        pair=[*added[0], "$A", *added[1], end, "$B", end],
        special_tokens=[(name, token) for token, name in names.items()],
    )


def _as_plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same as a plain fast tokenizer, because a model's own class would restore its rules when it is loaded."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    # GPT-2 names its end token as the token of unknown pieces too, which do not occur.
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
