"""A test set's translations as one HTML file: nothing is fetched when it is opened, and nothing of the data is markup.

The page is `templates/report.html` with `report.css` and `report.js` in it, and the data as JSON. Attention travels as
bytes (weight x 255, rounded), one gzip stream a system: 5,000 sentences of 20 words take well under a megabyte. The
page's content security policy allows its own script and style by their hashes, and no address.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch

from hf_rnn_seq2seq.errors import EvaluationError
from hf_rnn_seq2seq.evaluation.error_analysis import ERRORS, AnalysedSystem, summary_table
from hf_rnn_seq2seq.evaluation.results import TestSet, default_metrics, notes
from hf_rnn_seq2seq.evaluation.significance import score_by_length
from hf_rnn_seq2seq.generation.attention import SPECIAL, merge_words, source_pieces, target_pieces
from hf_rnn_seq2seq.generation.translate import score

_NAMES = {"bleu": "BLEU", "chrf": "chrF", "char_bleu": "BLEU over characters"}


def report_data(test_set: TestSet, systems: Sequence[AnalysedSystem], *, words: bool = True) -> dict[str, Any]:
    """What the page shows, as JSON values; a column a fact, a row a sentence.

    `words` merges the pieces of a word (see `alignment.merge_words`); otherwise tokens stand as the model reads them.
    """
    columns = [_system_data(test_set, system, words) for system in systems]
    # Systems mostly cut the source alike: it is kept once, and again only where a system cuts it in another way.
    base = columns[0]["source"] if columns else []
    for column in columns[1:]:
        column["source"] = [None if own == first else own for own, first in zip(column["source"], base, strict=True)]
    if columns:
        columns[0]["source"] = [None] * len(base)
    return {"source": base, "reference": test_set.references, "systems": columns, "special": list(SPECIAL)}


def _system_data(test_set: TestSet, system: AnalysedSystem, words: bool) -> dict[str, Any]:
    sources, targets, weights = [], [], []
    for text, hypothesis in zip(test_set.sources, system.hypotheses, strict=True):
        source = source_pieces(system.tokenizer, text, len(hypothesis.source_ids)) if hypothesis.source_ids else [text]
        target = target_pieces(system.tokenizer, hypothesis.token_ids)
        attention = hypothesis.attention
        matrix = torch.zeros(len(target), len(source)) if attention is None else attention.mean(0)
        if words and target:
            matrix, source, target = merge_words(matrix, source, target)
        sources.append(source)
        targets.append(target)
        if attention is not None:
            weights.append((matrix.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes())
    reports = system.reports
    has_attention = any(hypothesis.attention is not None for hypothesis in system.hypotheses)
    data: dict[str, Any] = {"name": system.name, "source": sources, "target": targets}
    data["text"] = [hypothesis.text for hypothesis in system.hypotheses]
    # A sentence without rows takes no room, so the page finds every other one's place by counting.
    data["attention"] = base64.b64encode(gzip.compress(b"".join(weights), mtime=0)).decode() if has_attention else None
    data["attended"] = [int(found.attention is not None and bool(found.token_ids)) for found in system.hypotheses]
    for name, digits in (("bleu", 1), ("chrf", 1), ("log_probability", 3), ("entropy", 3), ("coverage", 3)):
        data[name] = [_rounded(getattr(report, name), digits) for report in reports]
    for name in ("untranslated", "repeated", "unread"):
        data[name] = [list(getattr(report, name)) for report in reports]
    data["errors"] = [list(report.errors) for report in reports]
    data["length"] = [report.source_words for report in reports]
    return data


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def render_report(test_set: TestSet, systems: Sequence[AnalysedSystem], *, title: str = "", words: bool = True) -> str:
    """The whole page as text; the same for the same translations.

    Raises:
        EvaluationError: there is no system, or no sentence.
    """
    if not systems or not test_set.sources:
        raise EvaluationError(f"nothing to show: {len(systems)} systems, {len(test_set.sources)} sentences")
    languages = [str(test_set.description.get(key) or "") for key in ("source_lang", "target_lang")]
    title = title or "Translations, " + (" to ".join(languages) if all(languages) else f"{test_set.split} split")
    content = report_data(test_set, systems, words=words)
    try:
        data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise EvaluationError(
            "a score or an attention weight is not finite (nan or inf), and no page can show it"
        ) from None
    scores, signature = _score_rows(test_set, systems)
    style, script = _template("report.css"), _template("report.js")
    parts = {
        "title": html.escape(title),
        "policy": f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "about": html.escape(_about(test_set, systems)),
        "source_lang": html.escape(languages[0].replace("_", "-"), quote=True),
        "target_lang": html.escape(languages[1].replace("_", "-"), quote=True),
        "scores": _table(scores),
        "signature": html.escape(signature),
        "errors": _table(summary_table({system.name: system.reports for system in systems})),
        "lengths": _table(_length_rows(test_set, systems)),
        "system_options": "".join(
            f'<option value="{number}">{html.escape(system.name)}</option>' for number, system in enumerate(systems)
        ),
        "error_options": "".join(f'<option value="{name}">{name.replace("_", " ")}</option>' for name in ERRORS),
        # "<" would end the script element; the escape means the same to JSON.
        "data": data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    }
    # One pass: what stands in a part is never read as a place for another.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _template("report.html"))


def _template(name: str) -> str:
    return (resources.files("hf_rnn_seq2seq.visualization") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _about(test_set: TestSet, systems: Sequence[AnalysedSystem]) -> str:
    facts = [f"{len(test_set.sources):,} sentences of the {test_set.split} split"]
    for key in ("name", "config", "licence"):
        if test_set.description.get(key):
            facts.append(f"{test_set.description[key]}")
    beams = sorted({system.num_beams for system in systems})
    search = " and ".join("greedy" if beam == 1 else f"beam {beam}" for beam in beams)
    return "; ".join([", ".join(facts), search, *notes(test_set, systems)])


def _score_rows(test_set: TestSet, systems: Sequence[AnalysedSystem]) -> tuple[list[list[str]], str]:
    metrics = default_metrics(test_set)
    rows = [["system", *(_NAMES.get(name, name) for name in metrics)]]
    signature = ""
    for system in systems:
        texts = [hypothesis.text for hypothesis in system.hypotheses]
        found = score(texts, test_set.references, metrics)
        rows.append([system.name, *(f"{found[name]:.2f}" for name in metrics)])
        signature = "; ".join(f"{_NAMES.get(name, name)} {found[f'{name}_signature']}" for name in metrics)
    return rows, signature


def _length_rows(test_set: TestSet, systems: Sequence[AnalysedSystem]) -> list[list[str]]:
    """BLEU by source length, a row for each bin that holds sentences."""
    found = []
    for system in systems:
        texts = [hypothesis.text for hypothesis in system.hypotheses]
        found.append(score_by_length(test_set.sources, texts, test_set.references))
    header = ["source words", "sentences", *(f"BLEU, {system.name}" for system in systems)]
    rows = [header]
    for bins in zip(*found, strict=True):
        scores = [f"{one.bleu:.1f}" for one in bins]
        rows.append([f"{bins[0].low} to {bins[0].high}", str(bins[0].sentences), *scores])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table; the first row and the first column are headers."""
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in rows[0])
    body = ""
    for first, *cells in rows[1:]:
        data = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{html.escape(first)}</th>{data}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
