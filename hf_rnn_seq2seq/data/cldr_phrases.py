"""One phrase in one locale, from the patterns and names of CLDR, and which of its words express which value.

Each value that fills a place in a pattern is enclosed in marks with its name. They show which words express the day,
month, weekday, year, number, unit or currency, and are removed when the phrase is complete. Not marked are times of day
(two English words, "3:30" and "PM", express the hour of "15:30"), the units of relative times (CLDR has "{0} days ago"
as a whole), and the names of countries and languages.
"""

from __future__ import annotations

import datetime
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import babel
from babel import Locale
from babel.dates import (
    TIMEDELTA_UNITS,
    DateTimeFormat,
    format_time,
    format_timedelta,
    get_date_format,
    get_datetime_format,
    match_skeleton,
    parse_pattern,
)
from babel.lists import format_list
from babel.numbers import format_currency, get_currency_name
from babel.units import UnknownUnitError, format_unit

from hf_rnn_seq2seq.errors import DataError


def _codes(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COUNTRIES = _codes(
    "AR AT AU BD BE BG BO BR CA CH CL CM CN CO CR CU CZ DE DK DZ EC EE EG ES ET FI FR GB GE GH GR GT HN HR HU ID IE "
    "IL IN IQ IR IS IT JM JO JP KE KH KR KZ LA LB LK LT LU LV MA MG ML MM MN MT MX MY MZ NA NE NG NL NO NP NZ OM PA "
    "PE PH PK PL PT PY QA RO RS RU RW SE SG SI SK SN SO SY TD TG TH TN TR TZ UA UG US UY UZ VE VN YE ZA ZM ZW"
)
LANGUAGES = _codes(
    "ar bg bn ca cs cy da de el en es et eu fa fi fr ga he hi hr hu hy id is it ja ka kk km ko la lt lv mn ms mt nb "
    "ne nl pl pt ro ru sk sl so sq sr sv sw ta th tr uk ur uz vi yo zh zu"
)
CURRENCIES = _codes("AUD BRL CAD CHF CNY CZK DKK EGP EUR GBP HUF ILS INR JPY KRW MXN NOK PLN RUB SEK THB TRY USD ZAR")
UNITS = _codes(
    "area-hectare area-square-kilometer area-square-meter digital-byte digital-gigabyte digital-megabyte "
    "duration-day duration-hour duration-minute duration-month duration-second duration-week duration-year "
    "electric-volt energy-joule energy-kilowatt-hour frequency-hertz graphics-pixel length-centimeter length-foot "
    "length-inch length-kilometer length-meter length-mile length-millimeter mass-gram mass-kilogram mass-tonne "
    "power-kilowatt power-watt pressure-bar speed-kilometer-per-hour speed-meter-per-second temperature-celsius "
    "volume-cubic-meter volume-liter volume-milliliter"
)

Fact = tuple[Any, ...]

_SPACES = dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_PLAIN = _SPACES | dict.fromkeys([0x200E, 0x200F, 0x061C])
SECONDS = dict(TIMEDELTA_UNITS)


# Characters for private use in Unicode, which no text of a locale contains.
_OPEN, _NAMED, _CLOSE = "\ue000", "\ue001", "\ue002"
_MARKS = re.compile(f"({_OPEN}[^{_NAMED}]*{_NAMED}|{_CLOSE})")
_FIELDS = {"E": "weekday", "c": "weekday", "d": "day", "M": "month", "L": "month", "y": "year"}


class Phrase(NamedTuple):
    """A text and, for each value in it (named by a path), the numbers of its words (between white space)."""

    text: str
    words: dict[tuple[str, ...], list[int]]


def render(fact: Fact, locale: Locale) -> str:
    """A fact as text of a locale."""
    return _MARKS.sub("", _marked(fact, locale))


def phrase(fact: Fact, locale: Locale) -> Phrase:
    """A fact as text of a locale, with the words of its values.

    A word with two values (the number and the unit of "5公里") counts for neither.
    """
    text, names, owners = "", [], []
    for piece in _MARKS.split(_marked(fact, locale)):
        if piece.startswith(_OPEN):
            names.append(piece[1:-1])
        elif piece == _CLOSE:
            names.pop()
        else:
            text += piece
            owners += [tuple(names)] * len(piece)
    words: dict[tuple[str, ...], list[int]] = {}
    for number, word in enumerate(re.finditer(r"\S+", text)):
        # A path that ends in a number is a position in a list, which is not a value itself.
        values = {owner for owner in owners[word.start() : word.end()] if owner and not owner[-1].isdigit()}
        if len(values) == 1:
            words.setdefault(values.pop(), []).append(number)
    return Phrase(text, words)


def alignment(source: Phrase, target: Phrase) -> str:
    """The words for the same values in Pharaoh format: `1-2`, source word and target word, counted from 0."""
    shared = source.words.keys() & target.words.keys()
    pairs = sorted((s, t) for value in shared for s in source.words[value] for t in target.words[value])
    return " ".join(f"{s}-{t}" for s, t in pairs)


def _mark(text: str, name: str) -> str:
    return f"{_OPEN}{name}{_NAMED}{text}{_CLOSE}"


@lru_cache(maxsize=1 << 16)
def _marked(fact: Fact, locale: Locale) -> str:
    return _render(fact, locale).translate(_PLAIN).strip()


class _Fields(DateTimeFormat):
    """The marked fields of a date. A field that differs from the other end of an interval has the date in its mark."""

    def __init__(self, day: datetime.date, locale: Locale, other: datetime.date | None = None) -> None:
        super().__init__(day, locale)
        self.other = DateTimeFormat(other, locale) if other else None

    def __getitem__(self, field: str) -> str:
        text, name = super().__getitem__(field), _FIELDS.get(field[0])
        if name is None:
            return text
        shared = self.other is None or self.other[field] == text
        return _mark(text, name if shared else f"{name} {self.value}")


def _interval(first: datetime.date, last: datetime.date, locale: Locale) -> str:
    """As Babel's `format_interval` with yMMMd, but with marked fields."""
    ends = _Fields(first, locale, last), _Fields(last, locale, first)
    formats = locale.interval_formats
    skeleton = "yMMMd" if "yMMMd" in formats else match_skeleton("yMMMd", formats)
    for field in "yMd":  # the largest field that differs determines the pattern
        if skeleton and field in formats[skeleton] and ends[0].extract(field) != ends[1].extract(field):
            patterns = zip(formats[skeleton][field], ends, strict=False)
            return "".join(parse_pattern(pattern) % end for pattern, end in patterns)
    whole = locale.datetime_skeletons.get(skeleton) or get_date_format("medium", locale)
    texts = [parse_pattern(whole) % end for end in ends]
    return formats.get(None, "{0}-{1}").replace("{0}", texts[0]).replace("{1}", texts[1])


def _render(fact: Fact, locale: Locale) -> str:
    match fact:
        case ("date", form, day):
            return get_date_format(form, locale) % _Fields(day, locale)
        case ("time", time):
            return format_time(time, "short", locale=locale)
        case ("datetime", (_, form, _) as date, time):
            pattern = str(get_datetime_format(form, locale=locale)).replace("'", "")
            return pattern.replace("{0}", _marked(time, locale)).replace("{1}", _marked(date, locale))
        case ("interval", first, last):
            return _interval(first, last, locale)
        case ("period", skeleton, day):
            skeletons = locale.datetime_skeletons
            known = skeleton if skeleton in skeletons else match_skeleton(skeleton, skeletons)
            return parse_pattern(skeletons[known or skeleton]) % _Fields(day, locale)
        case ("relative", number, unit, direction):
            delta = datetime.timedelta(seconds=direction * number * SECONDS[unit])
            # An infinite threshold keeps the unit: "60 seconds", not "1 minute".
            text = format_timedelta(delta, unit, threshold=float("inf"), add_direction=True, locale=locale)
            return text.replace(str(number), _mark(str(number), "number"))  # CLDR's patterns have no digits
        case ("quantity", number, unit):
            form = _mark(locale.decimal_formats[None].pattern, "number")
            return _mark(_unit_text(number, unit, locale, form), "unit")
        case ("amount", number, code):
            form = _mark("#,##0" if isinstance(number, int) else "#,##0.00", "number")
            text = format_currency(number, code, form, locale, currency_digits=False, format_type="name")
            return _mark(text, "currency")
        case ("list", style, *items):
            texts = [_mark(_marked(item, locale), str(place)) for place, item in enumerate(items)]
            return format_list(texts, style, locale)
        case ("aside", main, aside):
            return f"{_marked(main, locale)} ({_marked(aside, locale)})"
        case ("territory", code):
            return locale.territories[code]
        case ("language", code):
            return locale.languages[code]
        case ("month", number):
            return _mark(_month_name(number, locale), "month")
    raise ValueError(f"fact={fact!r}: unknown kind")


def currency_name(code: str, locale: Locale) -> str | None:
    return get_currency_name(code, locale=locale) if code in locale.currencies else None


def _unit_text(number: int | Decimal, code: str, locale: Locale, form: str | None = None) -> str:
    """A quantity in the long form, or in the short one if a locale (Chinese, Persian) has no other in CLDR."""
    text = format_unit(number, code, "long", form, locale)
    return format_unit(number, code, "short", form, locale) if code in text else text


def unit_name(code: str, locale: Locale) -> str | None:
    """The locale's name of a unit, or None if it has no pattern for it."""
    try:
        text, root = (_unit_text(5, code, one) for one in (locale, Locale.parse("root")))
    except UnknownUnitError:
        return None
    return None if text == root or code in text or "None" in text else text.replace("5", "").strip()


def _month_name(number: int, locale: Locale) -> str:
    """The stand-alone name of a month. Most locales have one form only; Babel then returns the root's "M03"."""
    name = locale.months["stand-alone"]["wide"][number]
    return locale.months["format"]["wide"][number] if name == f"M{number:02}" else name


def require_data(locale: Locale) -> None:
    """Raises DataError unless the locale has its own names and patterns for every kind of phrase."""
    root = Locale.parse("root")
    ago = "relative", 3, "week", -1
    lacking = [
        what
        for what, there in (
            ("month names", locale.months["format"]["wide"] != root.months["format"]["wide"]),
            ("weekday names", locale.days["format"]["wide"] != root.days["format"]["wide"]),
            ("country names", sum(code in locale.territories for code in COUNTRIES) >= 50),
            ("language names", sum(code in locale.languages for code in LANGUAGES) >= 30),
            ("currency names", sum(code in locale.currencies for code in CURRENCIES) >= 12),
            ("units", sum(unit_name(code, locale) is not None for code in UNITS) >= 18),
            ("relative times", render(ago, locale) != render(ago, root)),
            ("list patterns", "standard" in locale.list_patterns),
        )
        if not there
    ]
    if lacking:
        raise DataError(f"locale {str(locale)!r}: CLDR as in Babel {babel.__version__} lacks its {', '.join(lacking)}")
