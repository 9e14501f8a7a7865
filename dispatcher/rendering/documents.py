"""Renders document templates: YAML files whose strings are Jinja templates.

Each string is rendered alone, and the result is built as data. So a quote in an error message can't break the JSON. A
string that renders empty is dropped. A mapping is dropped in three cases: its `when` renders empty or `False`; it has no
`when`, and its own `text`, `href` or `url` renders empty; all its templates render empty. A mapping in a list is repeated if it has a `for`,
such as `for: group in summary.groups`: once for each item, by whose name its templates use the item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from jinja2 import Environment, Template, TemplateSyntaxError
from jinja2.environment import TemplateExpression
from jinja2.runtime import Context as JinjaContext

from dispatcher.parsing.scalars import Unclear, why_not_text
from dispatcher.parsing.yaml import Document

MAX_VALUES = 5000
"""Maximum number of values in a document. A value that YAML aliases repeat counts each time."""
_DROPPED = object()
_FALSY = (_DROPPED, "False")
_REQUIRED = frozenset({"text", "href", "url"})
"""If the value of one of these keys renders empty, the whole mapping is dropped, because it is useless without the
value. A mapping with `when` decides by that alone."""

_FOR = re.compile(r"\s*([A-Za-z_]\w*)\s+in\s+(\S.*)", re.DOTALL)

Place = tuple[str | int, ...]
"""The path of a value: the keys and indices that lead from the document's root to the value."""
Render = Callable[["Variables"], Any]


@dataclass(frozen=True, slots=True)
class Sink:
    """How a string of the document is rendered: `environment` escapes it, `cut` limits it to `budget` UTF-16 units."""

    environment: Environment
    cut: Callable[[str, int], str]
    budget: int


SinkFor = Callable[[Place, Mapping[str, Any]], Sink]
"""Function that takes the place of a string and the mapping around the string, and returns the string's sink."""


class Variables:
    """A message's variables, as one Jinja context per environment. Contexts are kept, because to create one takes
    longer than to render a string.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self._contexts: dict[Environment, JinjaContext] = {}

    def fill_in(self, template: Template, environment: Environment) -> str:
        """Render a template of the environment that has no name and no blocks."""
        context = self._contexts.get(environment)
        if context is None:
            context = template.new_context({**environment.globals, **self.values}, shared=True)
            self._contexts[environment] = context
        return "".join(template.root_render_func(context))


class BadDocument(Exception):
    """The document, or a template in it, is invalid or can't be rendered. `line` is the line number in the file."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def compile_document(document: Document, sink_for: SinkFor) -> Callable[[Variables], dict[str, Any]]:
    """Compile all templates in the document, and return a function that renders the document. Both this call and the
    returned function raise BadDocument if a template is invalid or fails.
    """
    if not isinstance(document.data, dict):
        raise BadDocument("a mapping was expected", 1)
    _check_size(document.data)
    whole = _compile(document.data, (), {}, document, sink_for)

    def render(variables: Variables) -> dict[str, Any]:
        rendered = whole.value if isinstance(whole, _Constant) else whole(variables)
        if rendered is _DROPPED:
            raise BadDocument("everything in it came out empty", 1)
        message: dict[str, Any] = rendered
        return message

    return render


def _check_size(data: Any) -> None:
    """Raise BadDocument if the document has more than MAX_VALUES values.

    YAML aliases repeat values, so they can make a short document large or endless.
    """
    queue, count = [data], 0
    while queue:
        node = queue.pop()
        count += 1
        if count > MAX_VALUES:
            raise BadDocument(f"more than {MAX_VALUES} values: does an alias repeat itself?", 1)
        if isinstance(node, dict | list):
            queue += node.values() if isinstance(node, dict) else node


def strings_of(
    node: Any, place: Place = (), items: frozenset[str] = frozenset()
) -> Iterator[tuple[Place, str, frozenset[str]]]:
    """Yield the place and the text of each string that is a template, and the names of the items around it (`for`)."""
    if isinstance(node, dict):
        if isinstance(place[-1] if place else None, int) and (loop := _loop(node)) is not None:
            yield (*place, "for"), f"{{{{ {loop[1]} }}}}", items
            items |= {loop[0]}
        for key, value in node.items():
            yield from strings_of(value, (*place, key), items)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from strings_of(value, (*place, index), items)
    elif _is_template(node):
        yield place, node, items


def _loop(node: Any) -> tuple[str, str] | None:
    """Return the item's name and the expression of a mapping's `for`; None if it has none.

    Raises ValueError if the `for` is not written as `NAME in EXPRESSION`.
    """
    if not isinstance(node, dict) or "for" not in node:
        return None
    found = _FOR.fullmatch(node["for"]) if isinstance(node["for"], str) else None
    if found is None:
        raise ValueError("for: write NAME in LIST, such as group in summary.groups")
    return found[1], found[2]


@dataclass(frozen=True, slots=True)
class _Constant:
    """A part of the document that contains no templates, so it is the same in every message."""

    value: Any


def _compile(
    node: Any, place: Place, parent: Mapping[str, Any], document: Document, sink_for: SinkFor
) -> Render | _Constant:
    if isinstance(node, dict):
        parts = {key: _compile(value, (*place, key), node, document, sink_for) for key, value in node.items()}
        return _mapping(parts, node)
    if isinstance(node, list):
        return _list([_item(item, (*place, index), parent, document, sink_for) for index, item in enumerate(node)])
    if _is_template(node):
        return _leaf(node, sink_for(place, parent), document.line_of(place))
    if isinstance(node, date | Unclear):
        raise BadDocument(f"{place[-1]}: {why_not_text(node)}", document.line_of(place))
    return _Constant(node)


class _Several(list[Any]):
    """What one item of a list with `for` renders to."""


def _item(
    node: Any, place: Place, parent: Mapping[str, Any], document: Document, sink_for: SinkFor
) -> Render | _Constant:
    """Compile an item of a list, which is rendered several times if it has a `for`."""
    line = document.line_of(place)
    try:
        loop = _loop(node)
    except ValueError as error:
        raise BadDocument(str(error), line) from None
    if loop is None:
        return _compile(node, place, parent, document, sink_for)
    name, source = loop
    environment = sink_for(place, node).environment
    try:
        expression: TemplateExpression = environment.compile_expression(source, undefined_to_none=False)
    except TemplateSyntaxError as error:
        raise BadDocument(f"for: {error.message or 'syntax error'}", line) from None
    each = _compile({key: value for key, value in node.items() if key != "for"}, place, parent, document, sink_for)

    def render(variables: Variables) -> Any:
        try:
            items = list(expression(**variables.values) or ())
        except Exception as error:
            raise BadDocument(f"for: {str(error) or type(error).__name__}", line) from error
        if isinstance(each, _Constant):
            return _Several(each.value for _ in items)
        return _Several(each(Variables({**variables.values, name: item})) for item in items)

    return render


def _mapping(parts: Mapping[str, Render | _Constant], node: Mapping[str, Any]) -> Render | _Constant:
    condition = parts.get("when")
    if isinstance(condition, _Constant):
        condition = None if condition.value else lambda _: _DROPPED
    constants = {
        key: part.value if isinstance(part, _Constant) else None for key, part in parts.items() if key != "when"
    }
    required = _REQUIRED if "when" not in parts else frozenset()
    templated = [
        (key, part, key in required)
        for key, part in parts.items()
        if key in constants and not isinstance(part, _Constant)
    ]
    if not templated and condition is None:
        return _Constant(constants)

    def render(variables: Variables) -> Any:
        if condition is not None and condition(variables) in _FALSY:
            return _DROPPED
        rendered, has_content = constants.copy(), not templated
        for key, part, required in templated:
            value = part(variables)
            if value is not _DROPPED:
                rendered[key] = value
                has_content = True
            elif required and isinstance(node[key], str):
                return _DROPPED
            else:
                del rendered[key]
        return rendered if has_content else _DROPPED

    return render


def _list(items: list[Render | _Constant]) -> Render | _Constant:
    if all(isinstance(item, _Constant) for item in items):
        return _Constant([item.value for item in items if isinstance(item, _Constant)])

    def render(variables: Variables) -> Any:
        values: list[Any] = []
        for item in items:
            value = item.value if isinstance(item, _Constant) else item(variables)
            values += value if isinstance(value, _Several) else [value]
        return [value for value in values if value is not _DROPPED] or _DROPPED

    return render


def _leaf(source: str, sink: Sink, line: int) -> Render:
    environment, cut, budget = sink.environment, sink.cut, sink.budget
    try:
        template = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise BadDocument(error.message or "syntax error", line) from None

    def render(variables: Variables) -> Any:
        try:
            text = variables.fill_in(template, environment).strip()
        except Exception as error:
            raise BadDocument(str(error) or type(error).__name__, line) from error
        return cut(text, budget) if text else _DROPPED

    return render


def _is_template(node: Any) -> bool:
    return isinstance(node, str) and any(opening in node for opening in ("{{", "{%", "{#"))
