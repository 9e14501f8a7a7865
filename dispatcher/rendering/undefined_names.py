"""Finds undefined names in a template's syntax tree. So it also finds names in branches that no sample event
reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import get_type_hints

from jinja2 import Environment, nodes
from jinja2.meta import find_undeclared_variables

from dispatcher.rendering.context import VARIABLES, Context

_KNOWN = set(VARIABLES)
_PARTS = {
    owner: {f"{owner}.{entry.name}" for entry in fields(kind)}
    for owner, kind in get_type_hints(Context).items()
    if is_dataclass(kind)
}


def undefined_names(
    tree: nodes.Template, environment: Environment, items: frozenset[str] = frozenset()
) -> Iterator[tuple[int, str]]:
    """Yield each unknown variable and each unknown part of a variable: its line number, and a sentence for the
    operator. `items`: the names that a `for` of the document gives.
    """
    undeclared = find_undeclared_variables(tree) - items
    unknown = undeclared - _KNOWN - environment.globals.keys()
    for name in tree.find_all(nodes.Name):
        if name.name in unknown:
            yield name.lineno, _undefined(name.name, _KNOWN)
    for access in tree.find_all(nodes.Getattr):
        owner = access.node.name if isinstance(access.node, nodes.Name) else ""
        if owner in undeclared & _PARTS.keys() and f"{owner}.{access.attr}" not in _PARTS[owner]:
            yield access.lineno, _undefined(f"{owner}.{access.attr}", _PARTS[owner])


def _undefined(name: str, known: set[str]) -> str:
    close = get_close_matches(name, sorted(known), n=1)
    return f"{name!r} is undefined{f'; did you mean {close[0]!r}?' if close else ''}"
