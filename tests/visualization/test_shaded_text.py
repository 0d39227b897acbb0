"""The page of shaded words: every word once, the shades of the weights, and texts as text."""

import re

import torch

from hf_rnn_seq2seq.generation.classify import Classified
from hf_rnn_seq2seq.visualization.shaded_text import shaded_page

TEXT = "a <b> c\nd & e"
SPANS = [(0, 1), (2, 5), (6, 7), (0, 0), (8, 9), (10, 11), (12, 13), (0, 0)]


def result(hops: int = 1) -> Classified:
    words = torch.tensor([0.1, 0.2, 0.7, 0, 0.5, 0.25, 0.25, 0]).repeat(hops, 1)
    places = [0, 0, 0, -1, 1, 1, 1, -1]
    return Classified(
        TEXT, {"good": 0.75, "bad": 0.25}, SPANS, words, torch.tensor([[0.2, 0.8]]).repeat(hops, 1), places
    )


def test_words_and_sentences_have_the_shades_of_their_weights() -> None:
    """The first sentence has a quarter of the highest weight, so its words have half the shade; 0.6 is the darkest."""
    page = shaded_page([result()])
    assert "<h2>good 0.750</h2>" in page
    shades = re.findall(r'<span style="background: rgba\(31, 119, 180, ([\d.]+)\)" title="([\d.]+)">(.*?)</span>', page)
    assert shades == [
        ("0.043", "0.100", "a"),
        ("0.086", "0.200", "&lt;b&gt;"),
        ("0.300", "0.700", "c"),
        ("0.600", "0.500", "d"),
        ("0.300", "0.250", "&amp;"),
        ("0.300", "0.250", "e"),
    ]
    assert re.findall(r"border-color: rgba\(214, 39, 40, ([\d.]+)\)", page) == ["0.250", "1.000"]
    paragraphs = [re.sub("<.*?>", "", line) for line in page.splitlines() if line.startswith("<p")]
    assert paragraphs == ["a &lt;b&gt; c", "d &amp; e"], "nothing but the text, and nothing of it twice"


def test_a_row_for_each_of_several_hops() -> None:
    page = shaded_page([result(hops=3)])
    assert len(re.findall(r"hop \d</p>", page)) == 3 and page.count("<span") == 4 * 6


def test_a_text_without_attention_is_shown_plain() -> None:
    page = shaded_page([Classified("1 < 2", {"yes": 1.0}, [])])
    assert "<p>1 &lt; 2</p>" in page and "<span" not in page
    assert "script" not in page and "http-equiv" in page
