"""One phrase in one locale: CLDR's patterns and names as Babel gives them, and what it lacks."""

from __future__ import annotations

import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

import babel
from babel import Locale
from babel.dates import (
    TIMEDELTA_UNITS,
    format_date,
    format_interval,
    format_skeleton,
    format_time,
    format_timedelta,
    get_datetime_format,
)
from babel.lists import format_list
from babel.numbers import format_currency, get_currency_name
from babel.units import UnknownUnitError, format_unit

from .readers import DataError


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


@lru_cache(maxsize=1 << 16)
def render(fact: Fact, locale: Locale) -> str:
    """A fact as text of a locale."""
    return _render(fact, locale).translate(_PLAIN).strip()


def _render(fact: Fact, locale: Locale) -> str:
    match fact:
        case ("date", form, day):
            return format_date(day, form, locale)
        case ("time", time):
            return format_time(time, "short", locale=locale)
        case ("datetime", (_, form, _) as date, time):
            pattern = str(get_datetime_format(form, locale=locale)).replace("'", "")
            return pattern.replace("{0}", render(time, locale)).replace("{1}", render(date, locale))
        case ("interval", first, last):
            return format_interval(first, last, "yMMMd", locale=locale)
        case ("period", skeleton, day):
            return format_skeleton(skeleton, day, locale=locale)
        case ("relative", number, unit, direction):
            delta = datetime.timedelta(seconds=direction * number * SECONDS[unit])
            # An endless threshold keeps the unit: "60 seconds", not "1 minute".
            return format_timedelta(delta, unit, threshold=float("inf"), add_direction=True, locale=locale)
        case ("quantity", number, unit):
            return _unit_text(number, unit, locale)
        case ("amount", number, code):
            form = "#,##0" if isinstance(number, int) else "#,##0.00"
            return format_currency(number, code, form, locale, currency_digits=False, format_type="name")
        case ("list", style, *items):
            return format_list([render(item, locale) for item in items], style, locale)
        case ("aside", main, aside):
            return f"{render(main, locale)} ({render(aside, locale)})"
        case ("territory", code):
            return locale.territories[code]
        case ("language", code):
            return locale.languages[code]
        case ("month", number):
            return _month_name(number, locale)
    raise ValueError(f"fact {fact!r} is of no known kind")


def currency_name(code: str, locale: Locale) -> str | None:
    return get_currency_name(code, locale=locale) if code in locale.currencies else None


def _unit_text(number: int | Decimal, code: str, locale: Locale) -> str:
    """A quantity in the long form, which in CLDR is the short one where a locale (Chinese, Persian) has no other."""
    text = format_unit(number, code, "long", locale=locale)
    return format_unit(number, code, "short", locale=locale) if code in text else text


def unit_name(code: str, locale: Locale) -> str | None:
    """What the locale calls a unit, or None where it has no pattern of its own for it."""
    try:
        text, root = (_unit_text(5, code, one) for one in (locale, Locale.parse("root")))
    except UnknownUnitError:
        return None
    return None if text == root or code in text or "None" in text else text.replace("5", "").strip()


def _month_name(number: int, locale: Locale) -> str:
    """The name of a month standing alone; most locales have one form only, and Babel then gives the root's "M03"."""
    name = locale.months["stand-alone"]["wide"][number]
    return locale.months["format"]["wide"][number] if name == f"M{number:02}" else name


def require_data(locale: Locale) -> None:
    """Raises DataError, naming the locale, unless it has names and patterns of its own for every kind of phrase."""
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
            (
                "relative times",
                render(ago, locale) != render(ago, root),
            ),
            ("list patterns", "standard" in locale.list_patterns),
        )
        if not there
    ]
    if lacking:
        raise DataError(f"locale {str(locale)!r}: CLDR as in Babel {babel.__version__} lacks its {', '.join(lacking)}")
