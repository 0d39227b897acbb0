"""The sentences and table rows of a model card, written from the facts of a run; missing facts are left out."""

import json
from collections.abc import Mapping
from typing import Any

from hf_rnn_seq2seq.evaluation.describe import CELLS, attention_name


def reads_words(recipe: Mapping[str, Any]) -> bool:
    """Whether the run reads a word letter by letter."""
    return (recipe.get("source_tokenizer_algorithm") or recipe.get("tokenizer_algorithm")) == "letter" and (
        recipe.get("task") or "translation"
    ) == "translation"


def opening_sentence(
    config: Mapping[str, Any], summary: Mapping[str, Any], corpus: Mapping[str, Any], recipe: Mapping[str, Any]
) -> str:
    size = f", {summary['parameters']:,} parameters" if isinstance(summary.get("parameters"), int) else ""
    languages = [corpus.get("source_lang"), corpus.get("target_lang")]
    task = f" It translates {languages[0]} to {languages[1]}." if all(languages) else ""
    if not task and reads_words(recipe):
        task = " It reads words letter by letter"
        task += " and writes symbols." if recipe.get("target_tokenizer_algorithm") == "word" else "."
        if recipe.get("feature_column") is not None:
            task += " Features and a tab stand before each word."
    if "pictures" in summary:
        task = " It describes pictures."
    if "classes" in summary:
        task = f" It names one of {len(summary['classes'])} classes."
    if config.get("model_type") == "rnn_handwriting":
        task = " It writes a text by hand." if config.get("window_components") else " It writes by hand, what it likes."
    if config.get("model_type") == "rnn_causal":
        task = " It continues a text."
    return f"{_kind(config)}{size}.{task}"


def _kind(config: Mapping[str, Any]) -> str:
    cell = CELLS.get(config.get("cell_type", ""), "recurrent")
    if "pooling" in config:
        levels = " of documents, by words and by sentences" if config.get("sentence_token_id") is not None else ""
        return f"Recurrent classifier ({cell}){levels}"
    if config.get("model_type") == "rnn_handwriting":
        return f"Recurrent network ({cell}) over the points of a pen"
    if config.get("model_type") == "rnn_causal":
        return f"Recurrent language model ({cell})"
    if config.get("context") == "attention":
        return f"Recurrent encoder-decoder ({cell}) with {attention_name(config)} attention"
    return f"Recurrent encoder-decoder ({cell}) without attention"


def data_sentence(corpus: Mapping[str, Any]) -> str:
    if not corpus.get("name"):
        return "Not recorded."
    named = f"`{corpus['name']}`" + (f", configuration `{corpus['config']}`" if corpus.get("config") else "")
    license = corpus.get("licence") or corpus.get("license")
    return f"Trained on {named}" + (f", license {license}." if license else "; its license was not recorded.")


def data_rows(corpus: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = ("name", "config", "licence", "license", "source_lang", "target_lang", "streaming")
    rows = [(key.replace("_", " "), table_cell(value)) for key, value in corpus.items() if key not in known]
    return rows + ([("skipped rows", table_cell(summary["skipped"]))] if summary.get("skipped") else [])


def training_sentence(summary: Mapping[str, Any]) -> str:
    seconds = summary.get("train_seconds")
    if not isinstance(seconds, int | float):
        return "The run left no summary."
    machine = summary.get("hardware") or summary.get("device")
    if machine and summary.get("processes") and summary.get("threads"):
        counts = [(summary["processes"], "process", "processes"), (summary["threads"], "thread", "threads")]
        machine = f"{machine} ({' of '.join(f'{n} {one if n == 1 else many}' for n, one, many in counts)})"
    amounts = {
        "steps": "{:,} updates",
        "epochs": "{:.1f} epochs",
        "target_tokens_per_second": "{:,.0f} target tokens/s",
    }
    details = [words.format(summary[name]) for name, words in amounts.items() if summary.get(name)]
    where = f" on {table_cell(machine)}" if machine else ""
    what = f": {', '.join(details)}" if details else ""
    return f"{seconds / 60:.1f} minutes{where}{what}. All options are in `recipe.yaml`."


def samples(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """Up to five translations of the test split as table cells; `quoted` is the source as a Python string."""
    rows = []
    for sample in summary.get("samples") or []:
        if sample.get("source") and sample.get("translation"):
            # The string syntax of JSON is that of Python for any text without lone surrogates.
            quoted = json.dumps(sample["source"], ensure_ascii=False)
            cells = {key: table_cell(sample.get(key, "")) for key in ("source", "translation", "reference")}
            rows.append({**cells, "quoted": quoted})
    return rows[:5]


def software(summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    versions = summary.get("versions") or summary.get("software")
    if isinstance(versions, Mapping):
        return ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"transformers {config['transformers_version']}" if config.get("transformers_version") else ""


def table_cell(value: object) -> str:
    """A value as the text of a table cell: without line breaks, with pipes escaped, mappings and lists in words."""
    if isinstance(value, Mapping):
        text = ", ".join(f"{key} {table_cell(item)}" for key, item in value.items()) or "none"
    elif isinstance(value, list | tuple):
        text = ", ".join(map(table_cell, value))
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}" if value >= 10_000 else str(value)
    else:
        text = str(value)
    return " ".join(text.split()).replace("|", "\\|")
