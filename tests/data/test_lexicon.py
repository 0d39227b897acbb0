"""Lexicon formats: what is written is what is read, and what speech programs write is read."""

import pytest

from hf_rnn_seq2seq.data.lexicon import LEXICONS, Entry, format_entries, looked_up, parse_entry, read_lexicon

LINES = {
    "cmudict": [";;; a comment", "", "READ  R EH D", "READ(2)  R IY D # a note", "'EM  AH M"],
    "kaldi": ["READ R EH D", "READ R IY  D", "'EM AH M"],
    "kaldi_probabilities": ["READ 1.0 R EH D", "READ 0.25 R IY D", "'EM 1.0 AH M"],
    "mfa": ["READ\t1.0\tR EH D", "READ\t0.25\t0.1\t1.2\tR IY D", "'EM\tAH M"],
    "ipa": ["READ\tR EH D", "READ\tR IY D", "'EM\tAH M"],
}


@pytest.mark.parametrize("kind", LEXICONS)
def test_the_lines_of_each_program_are_read(kind: str) -> None:
    found = read_lexicon(LINES[kind], kind)
    phones = {word: [entry.phones for entry in entries] for word, entries in found.items()}
    assert phones == {"READ": ["R EH D", "R IY D"], "'EM": ["AH M"]}
    probabilities = [entry.probability for entry in found["READ"]]
    assert probabilities == ([1.0, 0.25] if kind in ("kaldi_probabilities", "mfa") else [None, None])


@pytest.mark.parametrize("kind", LEXICONS)
def test_what_is_written_is_read(kind: str) -> None:
    lines = list(format_entries("read", [("R EH D", 0.6), ("R IY D", 0.3)], kind))
    expected = [0.5] if kind in ("kaldi_probabilities", "mfa") else [None]
    first, second = (parse_entry(line, kind) for line in lines)
    assert (first.word, first.phones, second.word, second.phones) == ("read", "R EH D", "read", "R IY D")
    assert [second.probability] == expected  # relative to the best
    (_, rare) = (parse_entry(line, kind) for line in format_entries("a", [("A", 0.9), ("B", 1e-9)], kind))
    assert rare.probability is None or rare.probability > 0, "Kaldi takes no probability of 0"


def test_what_is_missing_is_empty() -> None:
    assert parse_entry("WORD", "cmudict") == Entry("WORD", "")
    assert parse_entry("word", "ipa") == Entry("word", "")
    assert parse_entry("word 0.5", "kaldi_probabilities") == Entry("word", "", 0.5)
    assert read_lexicon(["WORD", "A  AH"], "cmudict") == {"A": [Entry("A", "AH")]}
    # A word may be a number, and a phone too.
    assert parse_entry("7 s 7", "kaldi") == Entry("7", "s 7") and parse_entry("a\t1", "mfa") == Entry("a", "1")


def test_a_word_is_looked_up_in_any_case() -> None:
    lexicon = read_lexicon(["READ 1.0 R EH D", "READ 0.25 R IY D", "a 1.0 AH"], "kaldi_probabilities")
    assert looked_up(lexicon, "read") == [("R EH D", 0.8), ("R IY D", 0.2)]
    twice = read_lexicon(["read  R EH D", "read  R EH D", "read  R IY D"], "cmudict")
    assert looked_up(twice, "read") == [("R EH D", 0.5), ("R IY D", 0.5)]
    assert looked_up(lexicon, "A") == [("AH", 1.0)] and looked_up(lexicon, "b") == []


def test_white_space_of_other_releases() -> None:
    """Kaldi takes tabs, and one release of CMUdict has one space after the word."""
    assert parse_entry("bonjour\tb O Z", "kaldi") == Entry("bonjour", "b O Z")
    assert parse_entry("bonjour\t0.5\tb O Z", "kaldi_probabilities") == Entry("bonjour", "b O Z", 0.5)
    assert parse_entry("read(2) R IY1 D # a note", "cmudict") == Entry("read", "R IY1 D")
    assert parse_entry("New York\tN UW", "cmudict") == Entry("New York", "N UW")
    assert parse_entry("fish and chips  F IH", "cmudict") == Entry("fish and chips", "F IH")


def test_numbers_of_every_form_and_columns_that_are_none() -> None:
    assert parse_entry("a 1e-05 X", "kaldi_probabilities") == Entry("a", "X", 1e-5)
    assert parse_entry("a\t1.\tX", "mfa") == Entry("a", "X", 1.0)
    assert parse_entry("a\tX Y\tfre", "ipa") == Entry("a", ""), "a third column is no part of a pronunciation"


def test_a_word_is_looked_up_in_any_unicode_form() -> None:
    for written, asked in (("\u00e9", "e\u0301"), ("e\u0301", "\u00c9")):
        assert looked_up(read_lexicon([f"{written}\tX Y"], "ipa"), asked) == [("X Y", 1.0)]
