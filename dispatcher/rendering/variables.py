"""What templates may say, as a list for people: read from `Context` and its docstrings, so that it can't drift."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from typing import Any, get_type_hints

from dispatcher.rendering.context import Context


@dataclass(frozen=True, slots=True)
class Variable:
    """One name that a template may use."""

    name: str
    """As a template writes it: `error.summary`."""
    type: str
    """`text`, or `mapping of text to text`."""
    meaning: str
    example: str
    """From the example context; empty where that doesn't say it."""


def variables(example: Context) -> Iterator[Variable]:
    """Every variable, in the order of `Context`; parts follow what they belong to."""
    yield from _variables(type(example), example, "")


def _variables(kind: type[Any], example: Any, prefix: str) -> Iterator[Variable]:
    meanings = _meanings(kind)
    for own, hint in get_type_hints(kind).items():
        value, name = getattr(example, own), f"{prefix}{own}"
        if is_dataclass(hint):
            yield from _variables(type(value), value, f"{name}.")
        else:
            yield Variable(name, _called(value), meanings[own], _shown(value))


def _meanings(kind: type[Any]) -> Mapping[str, str]:
    """The docstring below each field."""
    (owner,) = ast.parse(inspect.getsource(kind)).body
    body = getattr(owner, "body", [])
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _called(value: Any) -> str:
    return "mapping of text to text" if isinstance(value, Mapping) else "text"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    first, *more = str(value).split("\n")
    return f"{first} …" if more else first
