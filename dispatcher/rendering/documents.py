"""Document templates: YAML whose structure is data and whose strings are templates.

The result is JSON built as data, so no quote in an error message can break it. An empty string drops out;
so does a mapping whose `when` comes out empty or False, whose own text, href or url does, or all of whose templates do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, TemplateSyntaxError
from jinja2.runtime import Context as JinjaContext

from dispatcher.parsing.yaml import Document

LARGEST = 5000
"""Values in a document, with each alias counted as what it stands for."""
_DROPPED = object()
_NO = (_DROPPED, "False")
_TELLING = frozenset({"text", "href", "url"})

Place = tuple[str | int, ...]
"""The keys and indices that lead to a value."""
Render = Callable[["Variables"], Any]


@dataclass(frozen=True, slots=True)
class Sink:
    """Where a string of the document ends up, and so how it is escaped and how long it may be."""

    environment: Environment
    cut: Callable[[str, int], str]
    budget: int


Choose = Callable[[Place, Mapping[str, Any]], Sink]
"""By a string's place and the mapping it stands in."""


class Variables(dict[Environment, JinjaContext]):
    """A message's variables, made ready once for each environment: for short strings that is most of the cost."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __missing__(self, environment: Environment) -> JinjaContext:
        known = {**environment.globals, **self._values}
        context = self[environment] = environment.context_class(environment, known, None, {})
        return context


class BadDocument(Exception):
    """A template in the document can't be compiled, or failed."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def compile_document(document: Document, choose: Choose) -> Callable[[Variables], dict[str, Any]]:
    """Compile all strings once. Raises BadDocument, with the line, and so does the result."""
    if not isinstance(document.data, dict):
        raise BadDocument("a mapping was expected", 1)
    _measure(document.data)
    whole = _compile(document.data, (), {}, document, choose)

    def render(variables: Variables) -> dict[str, Any]:
        rendered = whole.value if isinstance(whole, _Constant) else whole(variables)
        if rendered is _DROPPED:
            raise BadDocument("everything in it came out empty", 1)
        message: dict[str, Any] = rendered
        return message

    return render


def _measure(data: Any) -> None:
    """Raises BadDocument where YAML's aliases, even one inside itself, make more of it than a message can be."""
    waiting, seen = [data], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > LARGEST:
            raise BadDocument(f"more than {LARGEST} values: does an alias repeat itself?", 1)
        if isinstance(node, dict | list):
            waiting += node.values() if isinstance(node, dict) else node


def strings_of(node: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Each string that is a template, and where it stands."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from strings_of(value, (*place, key))
    elif _is_template(node):
        yield place, node


@dataclass(frozen=True, slots=True)
class _Constant:
    """A part without templates: the same in every message."""

    value: Any


def _compile(
    node: Any, place: Place, parent: Mapping[str, Any], document: Document, choose: Choose
) -> Render | _Constant:
    if isinstance(node, dict):
        parts = {key: _compile(value, (*place, key), node, document, choose) for key, value in node.items()}
        return _mapping(parts, node)
    if isinstance(node, list):
        return _list([_compile(item, (*place, index), parent, document, choose) for index, item in enumerate(node)])
    if _is_template(node):
        return _leaf(node, choose(place, parent), document.line_of(place))
    return _Constant(node)


def _mapping(parts: Mapping[str, Render | _Constant], node: Mapping[str, Any]) -> Render | _Constant:
    condition = parts.get("when")
    if isinstance(condition, _Constant):
        condition = None if condition.value else lambda _: _DROPPED
    shape = {key: part.value if isinstance(part, _Constant) else None for key, part in parts.items() if key != "when"}
    made = [
        (key, part, key in _TELLING) for key, part in parts.items() if key in shape and not isinstance(part, _Constant)
    ]
    if not made and condition is None:
        return _Constant(shape)

    def render(variables: Variables) -> Any:
        if condition is not None and condition(variables) in _NO:
            return _DROPPED
        rendered, speaks = shape.copy(), not made
        for key, part, telling in made:
            value = part(variables)
            if value is not _DROPPED:
                rendered[key] = value
                speaks = True
            elif telling and isinstance(node[key], str):
                return _DROPPED
            else:
                del rendered[key]
        return rendered if speaks else _DROPPED

    return render


def _list(items: list[Render | _Constant]) -> Render | _Constant:
    if all(isinstance(item, _Constant) for item in items):
        return _Constant([item.value for item in items if isinstance(item, _Constant)])

    def render(variables: Variables) -> Any:
        return [
            value
            for item in items
            if (value := item.value if isinstance(item, _Constant) else item(variables)) is not _DROPPED
        ] or _DROPPED

    return render


def _leaf(source: str, sink: Sink, line: int) -> Render:
    environment, cut, budget = sink.environment, sink.cut, sink.budget
    try:
        produce = environment.from_string(source).root_render_func
    except TemplateSyntaxError as error:
        raise BadDocument(error.message or "syntax error", line) from None

    def render(variables: Variables) -> Any:
        try:
            text = "".join(produce(variables[environment])).strip()
        except Exception as error:
            raise BadDocument(str(error) or type(error).__name__, line) from error
        return cut(text, budget) if text else _DROPPED

    return render


def _is_template(node: Any) -> bool:
    return isinstance(node, str) and any(opening in node for opening in ("{{", "{%", "{#"))
