"""Texts whose words are shaded by the attention of a classifier, as one HTML page without scripts.

After figure 5 of Yang 2016: a sentence has a red bar, as dark as its weight relative to the highest of the document; a
word is as blue as its weight relative to the highest of its sentence, times the square root of its sentence's shade, so
that the words of a sentence that matters little are pale. With several hops the shade is their mean, and a row for each
hop follows.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from torch import Tensor

from hf_rnn_seq2seq.generation.classify import Classified
from hf_rnn_seq2seq.visualization.pages import plain_page

_WORD, _BAR = "31, 119, 180", "214, 39, 40"  # red, green and blue of the shades
_DARKEST = 0.6  # of a word; on more blue its letters are hard to read
_STYLE = """
body { font: 16px/1.7 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { font-size: 1rem; margin: 2rem 0 0.5rem; }
p { margin: 0; padding-left: 1.2rem; border-left: 0.6rem solid transparent; overflow-wrap: anywhere; }
p.hop { font-size: 0.8rem; color: #555; }
span { border-radius: 3px; padding: 0.1rem 0; }
"""


def shaded_page(results: Sequence[Classified]) -> str:
    """The page of some classified texts; it fetches nothing, and treats texts as text."""
    return plain_page("What decided the class", _STYLE, "\n".join(map(_section, results)))


def _section(result: Classified) -> str:
    lines = [f"<h2>{html.escape(result.label)} {result.probabilities[result.label]:.3f}</h2>"]
    if result.words is None:
        return "\n".join([*lines, f"<p>{html.escape(result.text)}</p>"])
    lines += _paragraphs(result, result.words.mean(0), result.sentences)
    if len(result.words) > 1:
        for number, weights in enumerate(result.words, start=1):
            lines.append(f'<p class="hop">hop {number}</p>')
            lines += [line.replace("<p", '<p class="hop"', 1) for line in _paragraphs(result, weights, None)]
    return "\n".join(lines)


def _paragraphs(result: Classified, weights: Tensor, sentences: Tensor | None) -> list[str]:
    """One paragraph for each sentence, or one for the whole text."""
    places = result.sentence_of or [0] * len(result.spans)
    shares = None if sentences is None else sentences.mean(0)
    lines = []
    for sentence in dict.fromkeys(place for place in places if place >= 0):
        tokens = [token for token, place in enumerate(places) if place == sentence]
        tokens = [token for token in tokens if result.spans[token][1] > result.spans[token][0]]
        if not tokens:
            continue
        highest = max(float(weights[token]) for token in tokens) or 1.0
        style, opacity = "", 1.0
        if shares is not None:
            share = float(shares[sentence])
            opacity = share / (float(shares.max()) or 1.0)
            style = f' style="border-color: rgba({_BAR}, {opacity:.3f})" title="{share:.3f}"'
        words, end = [], result.spans[tokens[0]][0]
        for token in tokens:
            start, stop = result.spans[token]
            weight = float(weights[token])
            shade = f"background: rgba({_WORD}, {_DARKEST * weight / highest * opacity**0.5:.3f})"
            text = html.escape(result.text[start:stop])
            words.append(html.escape(result.text[end:start]))
            words.append(f'<span style="{shade}" title="{weight:.3f}">{text}</span>')
            end = stop
        lines.append(f"<p{style}>{''.join(words)}</p>")
    return lines
