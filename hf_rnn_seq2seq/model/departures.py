"""Finds hooks on, overrides of and replacements for a module, with which a fast path would be wrong.

A fast path computes from a module's weights what a call of the module would compute. That is wrong if another module is in
its place (an adapter, a quantized layer, `torch.compile`), if it is hooked or parametrized, or if it overrides a method that
the fast path does not call. Then the plain path runs, which calls the module.
"""

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils.parametrize import is_parametrized

# The attributes in which torch stores the hooks of one module, and those of all modules.
HOOKS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}
_CALLS = ("forward", "__call__")  # the methods of torch's base class that compute


def override(part: nn.Module, known: type, names: Iterable[str]) -> str | None:
    """The first of `names` that `part`, or a subclass of `known` in its classes, overrides; or None."""
    # Not `vars(part)`, on which the compiler of torch 2.15 fails.
    classes, own = type(part).__mro__, part.__dict__
    below = classes[: classes.index(known)]
    return next((name for name in names if name in own or any(name in vars(cls) for cls in below)), None)


def _overridden(part: nn.Module, known: type, live: Iterable[str]) -> str | None:
    """As `override`, for any method or property of `known` except the `live` ones."""
    classes = type(part).__mro__
    for place in (part, *classes[: classes.index(known)]):
        for name in vars(place):
            if name in live or (hasattr(nn.Module, name) and name not in _CALLS):
                continue
            value = getattr(known, name, None)
            if callable(value) or isinstance(value, property):
                return name
    return None


def departure(
    part: nn.Module, known: type | tuple[type, ...], live: Iterable[str] = (), everywhere: bool = True
) -> str | None:
    """What a call of `part` does in addition to what a `known` class computes from its weights; None: nothing.

    Args:
        known: a class of this package, whose subclasses may override the `live` methods; or exact classes of torch.
        live: names of methods that the caller calls, so that an override of them takes effect.
        everywhere: count hooks that are registered for all modules.
    """
    kind = type(part)
    if isinstance(known, tuple):
        if kind not in known:
            return f"{kind.__name__} in its place"
        overridden = override(part, kind, _CALLS)
    elif known not in kind.__mro__:
        return f"{kind.__name__} in its place"
    else:
        overridden = _overridden(part, known, live)
    if overridden is not None:
        return f"{overridden} of its own"
    return hooked(part, everywhere)


def hooked(part: nn.Module, everywhere: bool = True) -> str | None:
    """A hook on `part` or a compiled call of it, or None."""
    for name, words in HOOKS.items():
        if getattr(part, name):
            return words
        if everywhere and getattr(torch_module, f"_global{name}"):
            return f"{words} of all modules"
    return "compile()" if part._compiled_call_impl is not None else None


def live_departure(part: nn.Module, known: tuple[type, ...], everywhere: bool = True) -> str | None:
    """As `departure`, for a caller that reads the weights each time, so that a parametrization takes effect as well."""
    if is_parametrized(part) and type(part).__mro__[1] in known:
        return hooked(part, everywhere)
    return departure(part, known, everywhere=everywhere)
