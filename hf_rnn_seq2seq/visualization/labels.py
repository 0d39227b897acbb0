"""Tokens and titles as they are drawn."""

import unicodedata
from collections.abc import Iterable, Sequence


def is_right_to_left(texts: Iterable[str]) -> bool:
    """Whether most letters of `texts` belong to a script written from right to left."""
    kinds = [unicodedata.bidirectional(character) for text in texts for character in text]
    return sum(kind in ("R", "AL") for kind in kinds) > sum(kind == "L" for kind in kinds)


def printable_label(text: str, longest: int = 24) -> str:
    """White space trimmed or shown, controls replaced, variation selectors dropped, a long text shortened."""
    from matplotlib import ft2font

    text = " ".join(text.split()) or ("␣" if text else "·")
    text = "".join("\ufffd" if unicodedata.category(one) == "Cc" else one for one in text)
    text = "".join(one for one in text if not "\ufe00" <= one <= "\ufe0f")
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    # Matplotlib before 3.11 draws letters in the order they are stored.
    is_reversed = not hasattr(ft2font, "__libraqm_version__") and is_right_to_left([text])
    return text[::-1] if is_reversed else text


def printable_labels(texts: Sequence[str]) -> list[str]:
    """`printable_label` of each."""
    return [printable_label(text) for text in texts]
