"""Errors of a configuration in one line that names field, value and what is allowed."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

from huggingface_hub.errors import StrictDataclassError

C = TypeVar("C", bound=type)


class ConfigError(ValueError):
    """A config field holds a value that cannot work; the message names field, value and what is allowed."""


def plain_errors(cls: C) -> C:
    """Makes a `@strict` config class raise `ConfigError`.

    `@strict` wraps whatever a check raises in a class that is no ValueError, and in a message of two lines that names
    a method.
    """
    checked_setattr, checks = cls.__setattr__, cls.validate

    def __setattr__(self: Any, name: str, value: Any) -> None:
        try:
            checked_setattr(self, name, value)
        except StrictDataclassError:
            raise ConfigError(f"{name}={value!r}: must be {_allowed(_field_type(cls, name))}") from None

    cls.__setattr__ = __setattr__
    cls.validate = _unwrapped(checks)
    return cls


def _unwrapped(checks: Callable[[Any], None]) -> Callable[[Any], None]:
    # `@strict` knows its own method by an attribute, which `wraps` carries over, so that a subclass can be strict too.
    @functools.wraps(checks)
    def validate(self: Any) -> None:
        try:
            checks(self)
        except StrictDataclassError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, ConfigError) else ConfigError(str(cause)) from None

    return validate


def _field_type(cls: type, name: str) -> Any:
    return cls.__dataclass_fields__[name].type


def _allowed(annotation: Any) -> str:
    """What a field's annotation allows, in words."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if get_origin(annotation) is list:
        return str(annotation)
    if parts:
        return " or ".join(_allowed(part) for part in parts)
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


__all__ = ["ConfigError", "plain_errors"]
