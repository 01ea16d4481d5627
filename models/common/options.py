"""Options of tasks and models, as they come from a file or a command line, held against a function.

The names, types and defaults of the function's parameters are the specification.
"""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any


def check_options(
    kind: str,
    name: str,
    options: Mapping[str, Any],
    *functions: Callable,
    fixed: tuple[str, ...] = (),
) -> None:
    """Refuses an option that no function has, or whose type is another; and a missing one.

    Args:
        kind: of what the options are, "task" or "model".
        name: of it.
        options: by name.
        functions: that take them by keyword.
        fixed: parameters that are not options.

    Raises:
        ValueError: an option is unknown, missing or of the wrong type.
    """
    what, known = f"{kind} {name}", {}
    for function in functions:
        target = function.__init__ if inspect.isclass(function) else function
        hints = typing.get_type_hints(getattr(target, "func", target))
        for option, parameter in inspect.signature(function).parameters.items():
            if option in fixed or parameter.kind is parameter.VAR_KEYWORD:
                continue
            known[option] = hints[option]
            if parameter.default is parameter.empty and option not in options:
                raise ValueError(f"{what} needs {kind}_options.{option}=...")
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(option, known, 1) or sorted(known)
            raise ValueError(f"{what} has no option {brief(option)}; it has {', '.join(near)}")
        if not _fits(value, known[option]):
            right = _spelled(known[option])
            raise ValueError(f"{what}: {option} must be {right}, got {brief(value)}")


def brief(value: Any, most: int = 80) -> str:
    """The value as Python writes it, for a message; cut where that is longer than `most`."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}.. ({len(text)} characters)"


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, each) for each in inner)
    if origin in (collections.abc.Sequence, collections.abc.Collection):
        return isinstance(value, list | tuple) and all(_fits(v, inner[0]) for v in value)
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def _spelled(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_spelled(each) for each in inner)
    if origin in (collections.abc.Sequence, collections.abc.Collection):
        return f"a list of: {_spelled(inner[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return "null" if kind is type(None) else names.get(kind, str(kind))
