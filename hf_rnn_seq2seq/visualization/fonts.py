"""Labels in any script: which installed fonts hold their characters, and what to write where none does.

matplotlib draws an empty box for a character its fonts lack. Here the fonts are chosen by what the labels need; what no
font holds is written in letters (from the character's Unicode name) or as its code point, and reported.
"""

import functools
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

MAIN_FONT = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew, symbols
# Fonts of pictures without outlines, of mathematics, or of boxes for every character there is.
UNUSABLE = (
    "Color Emoji",
    "LastResort",
    "Last Resort",
    "STIX",
    "DejaVu Sans Display",
    "DejaVu Serif Display",
    "cm",
    "Adobe",
)
PREFERRED = ("Noto Sans", "Noto Emoji", "Noto Naskh", "Nanum", "Source Han Sans", "WenQuanYi", "IPA", "Symbola")


class MissingGlyphWarning(UserWarning):
    """Some characters are in no installed font and were written in another form."""


@functools.cache
def _characters(path: str, face: int = 0) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset((FT2Font(path, face_index=face) if face else FT2Font(path)).get_charmap())
    except (OSError, RuntimeError, TypeError):  # unreadable, or a face this matplotlib cannot open
        return frozenset()


@functools.cache
def _candidates() -> tuple[tuple[str, str, int], ...]:
    """(family, path, face) of upright regular fonts, preferred families first, one for each family."""
    from matplotlib import font_manager

    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():  # fonts installed after matplotlib wrote its cache
        if path not in known:
            try:
                font_manager.fontManager.addfont(path)
            except Exception:  # a broken font file is no reason to draw nothing
                continue
    families: dict[str, tuple[str, str, int]] = {}
    for entry in font_manager.fontManager.ttflist:
        if entry.style != "normal" or str(entry.weight) not in ("400", "normal", "regular", "book"):
            continue
        if not any(entry.name.startswith(name) or name in entry.name for name in UNUSABLE):
            families.setdefault(entry.name, (entry.name, entry.fname, getattr(entry, "index", 0)))
    rank = {name: position for position, name in enumerate(PREFERRED)}
    order = lambda font: next((rank[name] for name in PREFERRED if font[0].startswith(name)), len(rank))  # noqa: E731
    return tuple(sorted(families.values(), key=lambda font: (order(font), font[0])))


def _ignorable(character: str) -> bool:
    """White space, controls, joiners and variation selectors: they have no picture of their own."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f"


def _clusters(text: str) -> list[str]:
    """Characters with the marks that follow them: matplotlib takes a whole cluster from one font."""
    clusters: list[str] = []
    for character in text:
        if clusters and unicodedata.category(character).startswith("M"):
            clusters[-1] += character
        elif not _ignorable(character):
            clusters.append(character)
    return clusters


def _holds(characters: frozenset[int], cluster: str) -> bool:
    return all(ord(character) in characters or _ignorable(character) for character in cluster)


def choose_fonts(texts: Iterable[str], font_file: str | Path | None = None) -> tuple[list[str], set[str]]:
    """Families, in order of fallback, that together hold the characters of `texts`; and what none holds.

    The second value has single characters, and characters with marks that no one font holds together.

    `font_file` is tried before the installed fonts. Raises ValueError when it is not a font.
    """
    from matplotlib import font_manager

    needed = {form for text in texts for cluster in _clusters(text) for form in (cluster, cluster[0])}
    families: list[str] = []
    if font_file is not None:
        if not Path(font_file).is_file() or not _characters(str(font_file)):
            raise ValueError(f"font {str(font_file)!r}: not a readable TrueType or OpenType font file")
        font_manager.fontManager.addfont(str(font_file))
        families.append(font_manager.FontProperties(fname=str(font_file)).get_name())
        needed = {form for form in needed if not _holds(_characters(str(font_file)), form)}
    main = font_manager.findfont(MAIN_FONT)
    families.append(MAIN_FONT)
    needed = {form for form in needed if not _holds(_characters(str(main)), form)}
    while needed:
        hint = _han_hint(needed)
        fonts = sorted(_candidates(), key=lambda font: hint not in font[0])
        counts = [sum(_holds(_characters(path, face), form) for form in needed) for _, path, face in fonts]
        best = max(range(len(fonts)), key=counts.__getitem__, default=None)
        if best is None or not counts[best]:
            break
        name, path, face = fonts[best]
        families.append(name)
        needed = {form for form in needed if not _holds(_characters(path, face), form)}
    return families, needed


def _han_hint(characters: Iterable[str]) -> str:
    """The regional form of Chinese characters that the other characters ask for."""
    names = [unicodedata.name(character[0], "") for character in characters]
    if any(name.startswith("HANGUL") for name in names):
        return " KR"
    return " JP" if any(name.startswith(("HIRAGANA", "KATAKANA")) for name in names) else " SC"


def _respell(text: str, missing: set[str]) -> str:
    """`text` with what no font holds in other characters."""
    for cluster in sorted(missing.intersection(_clusters(text)), key=len, reverse=True):
        base = spell(cluster[0]) if cluster[0] in missing else cluster[0]
        text = text.replace(cluster, base + "".join(map(spell, cluster[1:])))
    return text


def spell(character: str) -> str:
    """A character no font holds, in characters every font holds: its Latin reading or its name, or its code point."""
    name = unicodedata.name(character, "")
    if name.startswith("REGIONAL INDICATOR SYMBOL LETTER "):  # two of them make a flag
        return name[-1]
    if unicodedata.category(character) == "So" and name:
        return f":{name.lower()}:"
    for prefix in ("HANGUL SYLLABLE ", "HIRAGANA LETTER ", "KATAKANA LETTER ", "HANGUL LETTER "):
        if name.startswith(prefix):
            return name.removeprefix(prefix).removeprefix("SMALL ").lower()
    return f"U+{ord(character):04X}"


def is_right_to_left(texts: Iterable[str]) -> bool:
    """Whether most letters of `texts` belong to a script written from right to left."""
    kinds = [unicodedata.bidirectional(character) for text in texts for character in text]
    return sum(kind in ("R", "AL") for kind in kinds) > sum(kind == "L" for kind in kinds)


def printable_labels(tokens: Sequence[str], missing: set[str], longest: int = 24) -> list[str]:
    """Tokens as they are drawn: white space trimmed or shown, long ones shortened, missing characters spelt out."""
    from matplotlib import ft2font

    shapes = hasattr(ft2font, "__libraqm_version__")
    labels = []
    for token in tokens:
        text = " ".join(token.split()) or ("␣" if token else "·")
        text = _respell(text, missing)
        text = "".join(spell(mark) if unicodedata.category(mark) == "Cc" else mark for mark in text)
        text = "".join(character for character in text if not ("\ufe00" <= character <= "\ufe0f"))
        if len(text) > longest:
            text = text[: longest - 1] + "…"
        if not shapes and is_right_to_left([text]):  # before 3.11 matplotlib draws letters in the order of reading
            text = text[::-1]
        labels.append(text)
    return labels


def warn_about(missing: set[str]) -> None:
    """Report characters that no font holds, once for a picture."""
    if missing:
        shown = " ".join(sorted(missing)[:20]) + (" ..." if len(missing) > 20 else "")
        warnings.warn(
            f"no installed font has {len(missing)} character(s), drawn as letters or code points: {shown} "
            "(install a font that has them, for example the Noto fonts, or name its file)",
            MissingGlyphWarning,
            stacklevel=3,
        )
