"""The published systems as settings of one configuration; each docstring names the source of every choice."""

from collections.abc import Callable
from typing import Any

PRESETS: dict[str, Callable[[], dict[str, Any]]] = {}

__all__ = ["PRESETS"]
