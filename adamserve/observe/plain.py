"""Frozen dataclasses to and from plain values (dicts, lists, numbers, text), by their fields and types.

JSON and the wire are made of plain values, so a new field needs no code for either. Fields may be numbers, text,
dataclasses, named tuples, enums of text, tuples of one type, mappings, and any of these or None.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def to_plain(value: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """A value as plain ones; `leaf` gives what a number, a text or an enum becomes."""
    kind: Any = type(value)
    if _is_record(kind):
        return {name: to_plain(getattr(value, name), leaf) for name in _types(kind)}
    if isinstance(value, Mapping):
        return {key: to_plain(item, leaf) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item, leaf) for item in value]
    return leaf(value)


def from_plain(kind: type[Kind], plain: Any) -> Kind:
    """The value of type `kind` that `to_plain` was given.

    Fields that `kind` does not have are ignored; one that is missing takes its default.

    Raises:
        ValueError, TypeError: something is of the wrong type, or a field without a default is missing.
    """
    return typing.cast(Kind, _read(kind, plain))


def _read(kind: Any, plain: Any) -> Any:
    if _is_record(kind):
        if not isinstance(plain, Mapping):
            raise TypeError(f"{kind.__name__} cannot be read from {plain!r}")
        hints = _types(kind)
        missing = {name: None for name in _nullable(kind) if name not in plain}
        return kind(**missing, **{name: _read(hints[name], plain[name]) for name in hints if name in plain})
    match typing.get_origin(kind), typing.get_args(kind):
        case (types.UnionType | typing.Union, (either, types.NoneType)):
            return None if plain is None else _read(either, plain)
        case (origin, (item, types.EllipsisType())) if origin is tuple:
            if isinstance(plain, str):
                raise TypeError(f"a list cannot be read from {plain!r}")
            return tuple(_read(item, value) for value in plain)
        case (origin, (key, item)) if isinstance(origin, type) and issubclass(origin, Mapping):
            if not isinstance(plain, Mapping):
                raise TypeError(f"a mapping cannot be read from {plain!r}")
            return {_read(key, name): _read(item, value) for name, value in plain.items()}
        case (typing.Literal, _):  # a newer peer may know more words
            kind = str
    if kind in (int, float) or (isinstance(kind, type) and issubclass(kind, StrEnum)):
        return kind(plain)  # a JSON object's keys are text, and so are NaN and infinity in JSON
    if not isinstance(plain, kind):
        raise TypeError(f"{kind.__name__} cannot be read from {plain!r}")
    return plain


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "_fields"))


@cache
def _nullable(kind: Any) -> tuple[str, ...]:
    """Fields that may be None and have no default: None is what a message leaves out."""
    parameters = inspect.signature(kind).parameters
    return tuple(
        name
        for name, hint in _types(kind).items()
        if types.NoneType in typing.get_args(hint) and parameters[name].default is inspect.Parameter.empty
    )


@cache
def _types(kind: Any) -> Mapping[str, Any]:
    """The types of a dataclass's or a named tuple's fields, by name."""
    hints = typing.get_type_hints(kind)
    return {name: hints[name] for name in inspect.signature(kind).parameters}
