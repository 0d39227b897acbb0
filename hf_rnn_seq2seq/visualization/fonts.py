"""Fonts for labels in any script: the families that Matplotlib falls back on, glyph by glyph."""

import contextlib
import functools
import re
import unicodedata
import warnings
from collections.abc import Iterable
from pathlib import Path

MAIN_FONT = "DejaVu Sans"  # part of Matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew, symbols
PREFERRED = ("Noto Sans", "Noto", "Nanum", "Source Han Sans", "WenQuanYi", "IPA", "Symbola")
# Fonts without outlines, of mathematics, for large sizes only, or with a box for every character.
UNUSABLE = re.compile("Color Emoji|Last ?Resort|STIX|DejaVu (Sans|Serif) Display|cm|Adobe")
REGIONS = {"HANGUL": " KR", "HIRAGANA": " JP", "KATAKANA": " JP"}  # of a font for Chinese characters; else " SC"


class MissingGlyphWarning(UserWarning):
    """No installed font has some of the characters; they are drawn as boxes."""


@functools.cache
def _characters(path: str, face: int = 0) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset((FT2Font(path, face_index=face) if face else FT2Font(path)).get_charmap())
    except (OSError, RuntimeError, TypeError):  # unreadable, or a face that this Matplotlib cannot open
        return frozenset()


@functools.cache
def _installed() -> tuple[tuple[str, str, int], ...]:
    """(family, path, face) of regular fonts, one for each family, preferred families first."""
    from matplotlib import font_manager

    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:  # installed after Matplotlib wrote its cache
        with contextlib.suppress(Exception):  # a broken font file
            font_manager.fontManager.addfont(path)
    families: dict[str, tuple[str, str, int]] = {}
    for font in font_manager.fontManager.ttflist:
        if font.style == "normal" and str(font.weight) in ("400", "normal", "regular", "book"):
            families.setdefault(font.name, (font.name, font.fname, getattr(font, "index", 0)))
    rank = lambda name: next((n for n, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))  # noqa: E731
    return tuple(families[name] for name in sorted(families, key=lambda n: (rank(n), n)) if not UNUSABLE.match(name))


def choose_fonts(texts: Iterable[str], font_file: str | Path | None = None) -> list[str]:
    """Families, in order of fallback, that hold the characters of `texts`; `font_file` comes before installed fonts.

    Warns once, with MissingGlyphWarning, about characters that no font has. Raises ValueError for a bad `font_file`.
    """
    from matplotlib import font_manager

    needed = {ord(character) for text in texts for character in text if not _is_invisible(character)}
    names = {unicodedata.name(chr(code), "").split(" ")[0] for code in needed}
    region = next((region for script, region in REGIONS.items() if script in names), " SC")
    fonts = [(MAIN_FONT, font_manager.findfont(MAIN_FONT), 0)]
    fonts += sorted(_installed(), key=lambda font: region not in font[0])
    if font_file is not None:
        if not Path(font_file).is_file() or not _characters(str(font_file)):
            raise ValueError(f"font_file={str(font_file)!r}: not a readable TrueType or OpenType font file")
        font_manager.fontManager.addfont(str(font_file))
        fonts.insert(0, (font_manager.FontProperties(fname=str(font_file)).get_name(), str(font_file), 0))
    families = []
    for family, path, face in fonts:
        if family == MAIN_FONT or path == str(font_file) or (needed and needed & _characters(path, face)):
            families.append(family)
            needed -= _characters(path, face)
    if needed:
        warnings.warn(
            f"no installed font has {len(needed)} of the characters, drawn as boxes: "
            f"{' '.join(map(chr, sorted(needed)[:20]))}; install one that has them, such as Noto, or name its file",
            MissingGlyphWarning,
            stacklevel=3,
        )
    return families


def _is_invisible(character: str) -> bool:
    """White space, controls, joiners and variation selectors: no font needs a glyph for them."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f"
