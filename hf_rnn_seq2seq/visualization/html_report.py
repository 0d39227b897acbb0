"""The translations of a test set as one HTML file, which fetches nothing and treats the data as text, never as markup.

The page is `templates/report.html` with `report.css`, `report.js` and the data as JSON. Attention is stored as bytes
(weight x 255, rounded), one gzip stream per system: 5,000 sentences of 20 words take well under a megabyte. The content
security policy of the page allows its own script and style by their hashes, and no address.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from hf_rnn_seq2seq.data.pieces import source_pieces, target_pieces
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.evaluation.error_analysis import ERRORS, AnalyzedSystem, summary_table
from hf_rnn_seq2seq.evaluation.length_bins import score_by_length
from hf_rnn_seq2seq.evaluation.results import notes
from hf_rnn_seq2seq.evaluation.scores import TITLES, score
from hf_rnn_seq2seq.evaluation.test_set import TestSet, default_metrics
from hf_rnn_seq2seq.generation.attention import merge_words
from hf_rnn_seq2seq.visualization.pages import environment, read_template

_NAMES = {**TITLES, "bleu": "BLEU", "chrf": "chrF", "char_bleu": "BLEU over characters"}


def report_data(test_set: TestSet, systems: Sequence[AnalyzedSystem], *, words: bool = True) -> dict[str, Any]:
    """The data of the page as JSON values, one column per fact and one row per sentence.

    `words` merges the pieces of each word (see `generation.attention.merge_words`).
    """
    columns = [_system_data(test_set, system, words) for system in systems]
    # The pieces of a source are stored once, and again only for a system that splits it differently.
    base = columns[0]["source"] if columns else []
    for column in columns[1:]:
        pairs = zip(column["source"], base, strict=True)
        column["source"] = [None if pieces == stored else pieces for pieces, stored in pairs]
    if columns:
        columns[0]["source"] = [None] * len(base)
    references = [row if isinstance(row, str) else " | ".join(dict.fromkeys(row)) for row in test_set.scored]
    special = dict.fromkeys(token for system in systems for token in system.tokenizer.all_special_tokens)
    return {"source": base, "reference": references, "systems": columns, "special": list(special)}


def _system_data(test_set: TestSet, system: AnalyzedSystem, words: bool) -> dict[str, Any]:
    sources, targets, weights = [], [], []
    for text, hypothesis in zip(test_set.sources, system.hypotheses, strict=True):
        source = source_pieces(system.tokenizer, text, len(hypothesis.source_ids)) if hypothesis.source_ids else [text]
        target = target_pieces(system.tokenizer, hypothesis.token_ids)
        attention = hypothesis.attention
        matrix = torch.zeros(len(target), len(source)) if attention is None else attention.mean(0)
        if words and target:
            special = {*system.tokenizer.all_special_tokens}
            matrix, source, target = merge_words(matrix, source, target, special)
        sources.append(source)
        targets.append(target)
        if attention is not None:
            weights.append((matrix.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes())
    reports = system.reports
    has_attention = any(hypothesis.attention is not None for hypothesis in system.hypotheses)
    data: dict[str, Any] = {"name": system.name, "source": sources, "target": targets}
    data["text"] = [hypothesis.text for hypothesis in system.hypotheses]
    # A sentence without attention takes no bytes; the page finds the offset of a sentence from the sizes before it.
    data["attention"] = base64.b64encode(gzip.compress(b"".join(weights), mtime=0)).decode() if has_attention else None
    data["attended"] = [int(one.attention is not None and bool(one.token_ids)) for one in system.hypotheses]
    for name, digits in (("bleu", 1), ("chrf", 1), ("log_probability", 3), ("entropy", 3), ("coverage", 3)):
        data[name] = [_rounded(getattr(report, name), digits) for report in reports]
    for name in ("untranslated", "repeated", "unread"):
        data[name] = [list(getattr(report, name)) for report in reports]
    data["errors"] = [list(report.errors) for report in reports]
    data["length"] = [report.source_words for report in reports]
    return data


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def render_report(test_set: TestSet, systems: Sequence[AnalyzedSystem], *, title: str = "", words: bool = True) -> str:
    """Renders the page; the same translations give the same text.

    Raises:
        ArgumentError: there is no system or no sentence, or a number is not finite.
    """
    if not systems or not test_set.sources:
        raise ArgumentError(f"nothing to show: {len(systems)} systems, {len(test_set.sources)} sentences")
    languages = [str(test_set.description.get(key) or "") for key in ("source_lang", "target_lang")]
    title = title or "Translations, " + (" to ".join(languages) if all(languages) else f"{test_set.split} split")
    content = report_data(test_set, systems, words=words)
    try:
        data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise ArgumentError(
            "a score or an attention weight is not finite (nan or inf), and JSON cannot hold it"
        ) from None
    scores, signature = _score_rows(test_set, systems)
    style, script = read_template("report.css"), read_template("report.js")
    return (
        environment()
        .get_template("report.html")
        .render(
            title=title,
            policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'",
            style=style,
            script=script,
            about=_about(test_set, systems),
            source_lang=languages[0].replace("_", "-"),
            target_lang=languages[1].replace("_", "-"),
            scores=scores,
            signature=signature,
            error_table=summary_table({system.name: system.reports for system in systems}),
            lengths=_length_rows(test_set, systems),
            systems=[system.name for system in systems],
            errors=ERRORS,
            # "<" would end the script element; JSON reads the escapes as the same characters.
            data=data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
        )
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _about(test_set: TestSet, systems: Sequence[AnalyzedSystem]) -> str:
    facts = [f"{len(test_set.sources):,} sentences of the {test_set.split} split"]
    for key in ("name", "config", "license"):
        if test_set.description.get(key):
            facts.append(f"{test_set.description[key]}")
    beams = sorted({system.num_beams for system in systems})
    search = " and ".join("greedy" if beam == 1 else f"beam {beam}" for beam in beams)
    return "; ".join([", ".join(facts), search, *notes(test_set, systems)])


def _score_rows(test_set: TestSet, systems: Sequence[AnalyzedSystem]) -> tuple[list[list[str]], str]:
    metrics = default_metrics(test_set)
    rows = [["system", *(_NAMES.get(name, name) for name in metrics)]]
    signature = ""
    for system in systems:
        texts = [hypothesis.text for hypothesis in system.hypotheses]
        scores = score(texts, test_set.scored, metrics)
        rows.append([system.name, *(f"{scores[name]:.2f}" for name in metrics)])
        signature = "; ".join(f"{_NAMES.get(name, name)} {scores[f'{name}_signature']}" for name in metrics)
    return rows, signature


def _length_rows(test_set: TestSet, systems: Sequence[AnalyzedSystem]) -> list[list[str]]:
    """BLEU by source length, a row for each bin that is not empty."""
    by_system = []
    for system in systems:
        texts = [hypothesis.text for hypothesis in system.hypotheses]
        by_system.append(score_by_length(test_set.sources, texts, test_set.scored))
    rows = [["source words", "sentences", *(f"BLEU, {system.name}" for system in systems)]]
    for bins in zip(*by_system, strict=True):
        scores = [f"{one.bleu:.1f}" for one in bins]
        rows.append([f"{bins[0].low} to {bins[0].high}", str(bins[0].sentences), *scores])
    return rows
