"""Corpus metrics of translations as one `evaluate.Metric` that needs no network.

`evaluate.load("hf_rnn_seq2seq/evaluation/metrics.py", "bleu")`: the second argument is a name in `scores.METRICS`.
sacrebleu computes BLEU, chrF, chrF++ and TER, jiwer computes WER and CER, rapidfuzz counts the edits of symbols, this
file computes GLEU, exact match and the share of wrong outputs.
`evaluate.load` reads the imports of this file line by line, so each import has one line.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import datasets
import evaluate
import jiwer
import rapidfuzz
from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.significance import _bootstrap_resample

from hf_rnn_seq2seq.evaluation.scores import METRICS, reference_streams
from hf_rnn_seq2seq.evaluation.sentence_scores import sentence_metric

SACREBLEU: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "bleu": (BLEU, {}),
    "char_bleu": (BLEU, {"tokenize": "char"}),
    "chrf": (CHRF, {}),
    "chrf++": (CHRF, {"word_order": 2}),
    "ter": (TER, {}),
}
DESCRIPTIONS = {
    "bleu": "BLEU (Papineni et al. 2002), 0 to 100, with sacrebleu's signature.",
    "char_bleu": "BLEU over characters, 0 to 100, for text without spaces.",
    "chrf": "chrF2 (Popovic 2015), 0 to 100.",
    "chrf++": "chrF2++ (Popovic 2017): chrF with word unigrams and bigrams, 0 to 100.",
    "ter": "Translation edit rate (Snover et al. 2006): edits per 100 reference words. Lower is better.",
    "gleu": "GLEU (Wu et al. 2016, section 5): mean over sentences, the best of several references, 0 to 100.",
    "wer": "Word error rate: edits of words per 100 reference words. Lower is better.",
    "cer": "Character error rate: edits of characters per 100 reference characters. Lower is better.",
    "exact_match": "Sentences of every 100 that equal a reference.",
    "sequence_error": "Outputs of every 100 that equal no reference, symbol by symbol (the word error rate of the "
    "SIGMORPHON shared tasks on pronunciation). Lower is better.",
    "symbol_error": "Edits of symbols between spaces per 100 symbols of the nearest reference (the phone error rate of "
    "the same tasks). Lower is better.",
}
CITATION = """@inproceedings{post-2018-call,
  title = {A Call for Clarity in Reporting {BLEU} Scores},
  author = {Post, Matt},
  booktitle = {Proceedings of the Third Conference on Machine Translation},
  year = {2018}
}"""
INPUTS = """
Args:
    predictions: list of strings, detokenized translations.
    references: list of strings, or of lists of strings where a prediction has several references.
    n_bootstrap: resamples of a 95 % interval (of sacrebleu's metrics); 0 for none.
    Options of the sacrebleu class, such as `lowercase` or `tokenize`, are passed on.
"""


class TranslationMetric(evaluate.Metric):
    """The corpus metric that `config_name` names; `compute` returns `score`, `signature` and details."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in METRICS:
            raise ValueError(f"config_name={self.config_name!r}: must be one of {', '.join(METRICS)}")
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTIONS[self.config_name],
            citation=CITATION if self.config_name in SACREBLEU else "",
            inputs_description=INPUTS,
            features=[
                datasets.Features(predictions=text, references=datasets.Sequence(text)),
                datasets.Features(predictions=text, references=text),
            ],
        )

    def _compute(
        self, predictions: list[str], references: list[str] | list[list[str]], **options: Any
    ) -> dict[str, Any]:
        rows = reference_rows(predictions, references)
        if self.config_name in SACREBLEU:
            make, defaults = SACREBLEU[self.config_name]
            if "use_effective_order" in options:  # its name in the metrics of `evaluate`
                options["effective_order"] = options.pop("use_effective_order")
            n_bootstrap = options.pop("n_bootstrap", 0)
            return sacrebleu_scores(make(**defaults | options), predictions, rows, n_bootstrap)
        if options:
            raise TypeError(f"{', '.join(options)}: not an option of the metric {self.config_name}")
        if self.config_name in ("wer", "cer"):
            return error_rate(self.config_name, predictions, rows)
        if self.config_name in ("sequence_error", "symbol_error"):
            return symbol_errors(self.config_name, predictions, rows)
        return mean_score(self.config_name, predictions, rows)


def reference_rows(predictions: list[str], references: list[str] | list[list[str]]) -> list[list[str]]:
    """The references of each prediction as a list.

    Raises:
        ValueError: a text is missing, or a prediction has no reference.
    """
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if prediction is None or reference is None:
            raise ValueError(f"sentence {index}: prediction and reference must be strings, one of them is None")
        if isinstance(reference, list) and not reference:
            raise ValueError(f"sentence {index}: references are an empty list; at least one is needed")
    return [[row] if isinstance(row, str) else list(row) for row in references]


def sacrebleu_scores(
    metric: BLEU | CHRF | TER, predictions: list[str], rows: list[list[str]], n_bootstrap: int
) -> dict[str, Any]:
    """`score` (0 to 100), `signature` and details; with `n_bootstrap` also `mean` and `interval` (half of the 95 %).

    Resamples are sacrebleu's own (seed `SACREBLEU_SEED`, default 12345).
    """
    if n_bootstrap < 0 or n_bootstrap == 1:
        raise ValueError(f"n_bootstrap={n_bootstrap}: must be 0 (no interval) or at least 2 (resamples)")
    statistics = metric._extract_corpus_statistics(list(predictions), reference_streams(rows))
    score = metric._aggregate_and_compute(statistics)
    if n_bootstrap:
        # The steps of corpus_score(n_bootstrap=...), which fails on a resample that scores exactly 0: that score is a
        # float among numpy's.
        metric.n_bootstrap = n_bootstrap
        metric.seed, resampled = _bootstrap_resample(statistics, metric, n_bootstrap)
        for sample in resampled:
            sample.score = float(sample.score)
        score.estimate_ci(resampled)
    result = {"score": score.score, "signature": str(metric.get_signature())}
    if n_bootstrap:
        result |= {"mean": float(score._mean), "interval": float(score._ci)}
    details = ("counts", "totals", "precisions", "bp", "sys_len", "ref_len", "num_edits", "ref_length")
    return result | {name: getattr(score, name) for name in details if hasattr(score, name)}


def error_rate(name: str, predictions: list[str], rows: list[list[str]]) -> dict[str, Any]:
    """jiwer's `wer` or `cer`: edits per 100 words or characters of the references; it can exceed 100."""
    if any(len(row) > 1 for row in rows):
        raise ValueError(f"references: {name} takes exactly one reference a sentence")
    process, unit = (jiwer.process_words, "word") if name == "wer" else (jiwer.process_characters, "character")
    output = process([row[0] for row in rows], predictions)
    details = {edit: getattr(output, edit) for edit in ("hits", "substitutions", "deletions", "insertions")}
    signature = f"{name}|unit:{unit}|tool:jiwer|version:{version('jiwer')}"
    return {"score": 100.0 * getattr(output, name), "signature": signature, **details}


def symbol_errors(name: str, predictions: list[str], rows: list[list[str]]) -> dict[str, Any]:
    """`sequence_error` or `symbol_error`, in percent; symbols stand between spaces.

    Of several references the one with the fewest edits per symbol counts.
    """
    edits = symbols = wrong = 0
    for text, references in zip(predictions, rows, strict=True):
        found = text.split()
        pairs = [(rapidfuzz.distance.Levenshtein.distance(found, one.split()), len(one.split())) for one in references]
        distance, length = min(pairs, key=lambda pair: pair[0] / max(1, pair[1]))
        edits, symbols, wrong = edits + distance, symbols + length, wrong + (distance > 0)
    rate = wrong / len(rows) if name == "sequence_error" else edits / max(1, symbols)
    signature = f"{name}|unit:between spaces|references:nearest|tool:rapidfuzz|version:{version('rapidfuzz')}"
    return {"score": 100.0 * rate, "signature": signature, "edits": edits, "symbols": symbols, "wrong": wrong}


def mean_score(name: str, predictions: list[str], rows: list[list[str]]) -> dict[str, Any]:
    """`gleu` or `exact_match`: the mean over sentences of the score against the best reference."""
    if name == "gleu":
        score = sentence_metric("gleu")
        signature = f"gleu|order:1-4|mean of sentences|tok:13a|tool:sacrebleu|version:{version('sacrebleu')}"
    else:
        score, signature = str.__eq__, "exact_match|case:mixed"
    best = [max(score(text, reference) for reference in row) for text, row in zip(predictions, rows, strict=True)]
    return {"score": 100.0 * sum(best) / len(best), "signature": signature}
