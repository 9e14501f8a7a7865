"""Lists the variables of templates with their meanings, from the fields of `Context` and their docstrings."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

from dispatcher.rendering.context import Context


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of a template, or one part of a variable."""

    name: str
    """The name as a template writes it, such as `error.summary`."""
    type: str
    """`text`, `number`, `mapping of text to text`, or `parts`: a template uses one of the parts, which follow. `list of
    parts`: a template goes through the list, and the parts of each item follow."""
    meaning: str
    example: str
    """The variable's value in the example context; empty if it has no value."""


def variables(example: Context) -> Iterator[Variable]:
    """Yield every variable, in the order of `Context`. The parts of a variable, such as `error.summary`, follow it."""
    yield from _variables(type(example), example, "")


def _variables(kind: type[Any], example: Any, prefix: str) -> Iterator[Variable]:
    meanings = _meanings(kind)
    for field, hint in get_type_hints(kind).items():
        value, name = getattr(example, field), f"{prefix}{field}"
        if is_dataclass(hint):
            yield Variable(name, "parts", meanings[field], "")
            yield from _variables(type(value), value, f"{name}.")
        elif get_origin(hint) is tuple:
            (item, _) = get_args(hint)
            yield Variable(name, "list of parts", meanings[field], "")
            yield from _variables(item, value[0] if value else item(), f"{name}[].")
        else:
            yield Variable(name, _type_name(value), meanings[field], _example(value))


def _meanings(kind: type[Any]) -> Mapping[str, str]:
    """Return a mapping from each field's name to its docstring."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    body = getattr(definition, "body", [])
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _type_name(value: Any) -> str:
    if isinstance(value, int):
        return "number"
    return "mapping of text to text" if isinstance(value, Mapping) else "text"


def _example(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    first, *more = str(value).split("\n")
    return f"{first} …" if more else first
