"""The embedded corpus: aligned by construction, split by value, the same on every machine."""

import datetime
import random
import re
from collections import defaultdict
from functools import lru_cache
from itertools import product

import pytest
from babel.dates import format_interval, format_skeleton

from hf_rnn_seq2seq.data import cldr, cldr_phrases
from hf_rnn_seq2seq.data.cldr import HELD_OUT_PERCENT, PhraseBook, generate, phrase_book
from hf_rnn_seq2seq.data.cldr_phrases import alignment, phrase, render
from hf_rnn_seq2seq.errors import DataError

PAIRS = [("en", "fr"), ("en", "ko"), ("fr", "en"), ("de", "ar"), ("ja", "hu"), ("en", "pt_BR"), ("zh", "ru")]


def few(pairs):
    """The first pair in every run, all pairs in the long run."""
    return [pair if number < 1 else pytest.param(pair, marks=pytest.mark.long) for number, pair in enumerate(pairs)]


DAY = datetime.date(2026, 3, 12)


@lru_cache
def rows(source, target, split, count, seed=0):
    return list(generate(source, target, split, seed, [(0, count)]))


def words(text):
    """Words, numbers and punctuation marks; a number is a separate word even without a space."""
    return re.findall(r"\d+|[^\W\d]+|[^\w\s]", text)


def values(fact):
    """The values in a fact, which no two splits may share; independent of the code under test."""
    kind = fact[0]
    if kind == "date":
        return {("date", fact[2])}
    if kind == "time":
        return {fact}
    if kind == "interval":
        return {("date", fact[1]), ("date", fact[2])}
    if kind == "datetime":
        return values(fact[1]) | values(fact[2])
    if kind == "aside":
        return values(fact[2])
    if kind == "relative":
        return {fact[:3]}
    if kind == "list" and fact[2][0] in ("territory", "language", "month"):
        return {("list", frozenset(fact[2:]))}
    if kind == "list":
        return set().union(*(values(item) for item in fact[2:]))
    return {fact}


def facts(book, split, count):
    for row in range(count):
        chance = random.Random(f"{split}/0/{row}" if split == "train" else f"{split}/{row}")
        yield chance.choices(book.kinds, book.shares)[0](chance, split)


@pytest.mark.parametrize(
    ("fact", "locale", "text"),
    [
        (("date", "full", DAY), "en", "Thursday, March 12, 2026"),
        (("date", "full", DAY), "fr", "jeudi 12 mars 2026"),
        (("date", "full", DAY), "ko", "2026년 3월 12일 목요일"),
        (("date", "full", DAY), "hu", "2026. március 12., csütörtök"),
        (("relative", 3, "day", -1), "ru", "3 дня назад"),
        (("relative", 60, "second", 1), "en", "in 60 seconds"),
        (("quantity", 1, "length-kilometer"), "en", "1 kilometer"),
        (("quantity", 1500, "length-kilometer"), "fr", "1 500 kilomètres"),
        (("quantity", 5, "length-kilometer"), "zh", "5公里"),
        (("amount", 2, "EUR"), "ru", "2 евро"),
        (("list", "standard", ("territory", "FR"), ("territory", "PE")), "fr", "France et Pérou"),
        (
            ("list", "standard", ("language", "fr"), ("language", "ko"), ("language", "de")),
            "ja",
            "フランス語、韓国語、ドイツ語",
        ),
        (("list", "or", ("month", 1), ("month", 5)), "de", "Januar oder Mai"),
        (("aside", ("territory", "DE"), ("amount", 3, "USD")), "en", "Germany (3 US dollars)"),
        (("datetime", ("date", "long", DAY), ("time", datetime.time(15, 30))), "fr", "12 mars 2026, 15:30"),
    ],
)
def test_a_fact_is_rendered_in_each_language(fact, locale, text):
    assert render(fact, cldr.parse_locale(locale)) == text


RANGE, YEARS = ("interval", DAY, datetime.date(2026, 4, 20)), ("interval", DAY, datetime.date(2027, 5, 20))


@pytest.mark.parametrize(
    ("fact", "pair", "expected"),
    [
        (("date", "full", DAY), "en-fr", "Thursday,>jeudi 12,>12 March>mars 2026>2026"),
        (("date", "full", DAY), "en-ko", "Thursday,>목요일 12,>12일 March>3월 2026>2026년"),
        (("date", "full", DAY), "ko-hu", "2026년>2026. 3월>március 12일>12., 목요일>csütörtök"),
        (("date", "full", DAY), "en-ja", ""),
        (("date", "full", DAY), "ar-he", "الخميس،>יום الخميس،>חמישי, 12>12 مارس>במרץ 2026>2026"),
        (
            ("datetime", ("date", "medium", DAY), ("time", datetime.time(15, 30))),
            "en-fr",
            "12,>12 Mar>mars 2026,>2026,",
        ),
        (RANGE, "en-fr", "12>12 Mar>mars 20,>20 Apr>avr. 2026>2026"),
        (RANGE, "de-fr", "12.>12 März>mars 20.>20 Apr.>avr. 2026>2026"),
        (YEARS, "en-fr", "12,>12 Mar>mars 2026>2026 20,>20 May>mai 2027>2027"),
        (("interval", DAY, datetime.date(2026, 3, 19)), "en-fr", "Mar>mars 2026>2026"),  # "12–19" is two days
        (("period", "yMMMM", DAY), "en-ko", "March>3월 2026>2026년"),
        (("relative", 3, "day", -1), "en-fr", "3>3"),
        (("quantity", 1500, "length-kilometer"), "en-fr", "1,500>1 1,500>500 kilometers>kilomètres"),
        (("quantity", 3, "length-kilometer"), "en-ko", ""),  # "3킬로미터" is number and unit
        (
            ("quantity", 3, "temperature-celsius"),
            "en-fr",
            "3>3 degrees>degrés degrees>Celsius Celsius>degrés Celsius>Celsius",
        ),
        (
            ("list", "or", ("quantity", 2, "mass-gram"), ("quantity", 2, "length-meter")),
            "en-fr",
            "2>2 grams>grammes 2>2 meters>mètres",
        ),
        (("list", "standard", ("territory", "FR"), ("territory", "PE")), "en-fr", ""),
        (("list", "or", ("month", 1), ("month", 5)), "en-de", "January>Januar May>Mai"),
        (("aside", ("territory", "DE"), ("amount", 3, "EUR")), "en-fr", "(3>(3 euros)>euros)"),
    ],
)
def test_the_words_of_a_value_are_aligned(fact, pair, expected):
    source, target = (phrase(fact, cldr.parse_locale(name)) for name in pair.split("-"))
    pairs = [map(int, found.split("-")) for found in alignment(source, target).split()]
    words = source.text.split(), target.text.split()
    assert sorted(f"{words[0][s]}>{words[1][t]}" for s, t in pairs) == sorted(expected.split())


@pytest.mark.thinned(3)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_aligned_words_have_the_same_digits(pair):
    """Words aligned with a number have its digits; they differ in punctuation and in attached letters only."""
    count = 0
    for row in rows(*pair, "train", 2000):
        sides = row["source"].split(), row["target"].split()
        for found in row["alignment"].split():
            source, target = (re.sub(r"\D", "", side[int(n)]) for side, n in zip(sides, found.split("-"), strict=True))
            count += 1
            # "1 500" is two words; a month may be a name here and a number there.
            assert not source or not target or source in target or target in source, row
    assert count > (20 if {"ja", "zh"} & {*pair} else 2000)


@pytest.mark.parametrize("locale", ["en", "fr", "ko", "ja", "de", "hu", "ar", "he", "zh", "ru", "pt_BR", "th", "hi"])
def test_intervals_and_periods_are_those_of_babel(locale):
    locale = cldr.parse_locale(locale)
    for last in (datetime.date(2026, 3, 19), datetime.date(2026, 4, 12), datetime.date(2027, 3, 12)):
        text = format_interval(DAY, last, "yMMMd", locale=locale).translate(cldr_phrases._PLAIN).strip()
        assert render(("interval", DAY, last), locale) == text
    for skeleton in ("yMMMM", "yQQQQ"):
        text = format_skeleton(skeleton, DAY, locale=locale).translate(cldr_phrases._PLAIN).strip()
        assert render(("period", skeleton, DAY), locale) == text


@pytest.mark.parametrize("pair", few(PAIRS), ids="-".join)
def test_no_sentence_occurs_in_two_splits(pair):
    splits = {split: rows(*pair, split, 5000 if split == "train" else 400) for split in cldr.SPLITS}
    for side in ("source", "target"):
        texts = {split: {row[side] for row in found} for split, found in splits.items()}
        for split, other in [("train", "validation"), ("train", "test"), ("validation", "test")]:
            assert not texts[split] & texts[other]


@pytest.mark.parametrize("pair", few(PAIRS[:3]), ids="-".join)
def test_no_date_amount_or_list_occurs_in_two_splits(pair):
    book = phrase_book(*pair)
    found = {s: set().union(*map(values, facts(book, s, 6000 if s == "train" else 800))) for s in cldr.SPLITS}
    assert {kind for kind, *_ in found["test"]} >= {"date", "time", "relative", "quantity", "amount", "list"}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


@pytest.mark.long  # twenty thousand sentences
@pytest.mark.parametrize("pair", PAIRS[:4], ids="-".join)
def test_every_word_of_the_held_out_splits_occurs_in_train(pair):
    train = rows(*pair, "train", 20_000)
    for side in ("source", "target"):
        known = {word for row in train for word in words(row[side])}
        for split in ("validation", "test"):
            assert {word for row in rows(*pair, split, 1000) for word in words(row[side])} <= known


@pytest.mark.parametrize("pair", few(PAIRS), ids="-".join)
def test_one_source_has_one_translation(pair):
    translations = defaultdict(set)
    for split in cldr.SPLITS:
        for row in rows(*pair, split, 4000 if split == "train" else 500):
            translations[row["source"]].add(row["target"])
    assert {source: found for source, found in translations.items() if len(found) > 1} == {}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_text_is_plain_and_complete(pair):
    for row, side in product(rows(*pair, "train", 2000), ("source", "target")):
        text = row[side]
        assert text == text.strip() != ""
        assert not re.search(r"[\u00a0\u2000-\u200a\u202f\u3000\u200e\u200f\t\n]|M\d\d|\bNone\b|[{}]|-\w+-kilo", text)


def test_the_longer_corpus_begins_with_the_shorter_and_shards_do_not_matter():
    whole = rows("en", "fr", "train", 300)
    assert whole[:100] == rows("en", "fr", "train", 100)
    assert whole == list(generate("en", "fr", "train", 0, [(0, 150), (150, 300)]))
    assert [row["id"] for row in whole] == list(range(300))


def test_the_seed_affects_the_train_rows_only():
    assert rows("en", "fr", "train", 50, seed=1) != rows("en", "fr", "train", 50)
    for split in ("validation", "test"):
        assert rows("en", "fr", split, 50, seed=1) == rows("en", "fr", split, 50)


def test_held_out_splits_repeat_no_sentence_and_end_with_an_error():
    test = rows("en", "fr", "test", 2000)
    assert len({row["source"] for row in test}) == 2000

    class Poor(PhraseBook):
        def pair(self, split, key):
            return {"source": key[-1], "target": "x"}

    with pytest.raises(DataError, match="test has about 10 different sentences, 11 were requested"):
        list(cldr._distinct(Poor("en", "fr"), "test", 0, 11))


def test_a_word_form_of_one_number_is_never_held_out():
    book = phrase_book("en", "ar")  # Arabic counts: one, two, 3-10, 11-99, hundreds
    assert {1, 2} <= book.rare_plurals
    assert all(book.split_of(("quantity", 2, unit)) == "train" for unit in book.units)
    shares = [book.split_of(("amount", n, code)) == "test" for n in range(11, 90) for code in book.currencies]
    assert abs(100 * sum(shares) / len(shares) - HELD_OUT_PERCENT) < 2


def test_sentences_are_of_many_kinds_and_mostly_short():
    sources = [row["source"] for row in rows("en", "fr", "train", 2000)]
    lengths = [len(words(source)) for source in sources]
    assert sum(3 <= length <= 20 for length in lengths) > 0.8 * len(lengths)
    assert max(lengths) < 30
    for pattern in (r"^\w+day, ", r" ago$", r"^in \d", r"kilometers", r"\(.*\)", r" and ", r" or ", r"[AP]M$", r" – "):
        assert sum(bool(re.search(pattern, source)) for source in sources) >= 10, pattern


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("en", "xx", "locale 'xx': not known to CLDR"),
        ("en", "aa", "locale 'aa': CLDR as in Babel .* lacks its country names, .*units"),
        ("en_US", "en-US", "source_lang='en_US': is the target locale too"),
        ("", "fr", "locale '': not known"),
    ],
)
def test_locales_without_data_are_refused(source, target, message):
    with pytest.raises(DataError, match=message):
        PhraseBook(source, target)


@pytest.mark.parametrize("name", ["en", "en-", "en-pt-BR", ""])
def test_a_pair_is_two_locales_and_one_hyphen(name):
    with pytest.raises(DataError, match="must be two locales and one hyphen"):
        cldr.parse_pair(name)
