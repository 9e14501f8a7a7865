"""Document templates: YAML whose structure is data and whose strings are templates.

The result is JSON built as data, so no quote in an error message can break it. A mapping whose `when`
comes out empty is dropped, and so is one whose own text, href or url does; an empty string drops out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, Template, TemplateSyntaxError
from jinja2.runtime import Context as JinjaContext
from jinja2.runtime import new_context

from dispatcher.located import Document
from dispatcher.rendering.text import cut

_DROPPED = object()
_TELLING = frozenset({"text", "href", "url"})
Render = Callable[["Variables"], Any]
Choose = Callable[[tuple[str | int, ...], Mapping[str, Any]], tuple[Environment, int]]
"""By a string's path and the mapping it stands in: the environment that escapes for its sink, and its budget."""


class Variables:
    """A message's variables, made ready once for each environment: for short strings that is most of the cost."""

    __slots__ = ("_contexts", "_values")

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._contexts: dict[int, JinjaContext] = {}

    def of(self, environment: Environment) -> JinjaContext:
        context = self._contexts.get(id(environment))
        if context is None:
            context = new_context(environment, None, {}, dict(self._values), shared=False, globals=environment.globals)
            self._contexts[id(environment)] = context
        return context


class BadDocument(Exception):
    """A template in the document can't be compiled."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def compile_document(document: Document, choose: Choose) -> Render:
    """Compile all strings once. Raises BadDocument, with the line."""
    return _compile(document.data, (), {}, document, choose)


def _compile(
    node: Any, path: tuple[str | int, ...], parent: Mapping[str, Any], document: Document, choose: Choose
) -> Render:
    match node:
        case dict():
            parts = {key: _compile(value, (*path, key), node, document, choose) for key, value in node.items()}
            return _mapping(parts)
        case list():
            items = [_compile(value, (*path, index), parent, document, choose) for index, value in enumerate(node)]
            return lambda variables: _kept(item(variables) for item in items)
        case str() if "{{" in node or "{%" in node:
            return _leaf(node, path, parent, document, choose)
        case _:
            return lambda _: node


def _mapping(parts: Mapping[str, Render]) -> Render:
    condition = parts.get("when")
    rest = [(key, part) for key, part in parts.items() if key != "when"]

    def render(variables: Variables) -> Any:
        if condition is not None and condition(variables) in ("", _DROPPED, False, None):
            return _DROPPED
        rendered: dict[str, Any] = {}
        for key, part in rest:
            value = part(variables)
            if value is _DROPPED:
                if key in _TELLING:
                    return _DROPPED
                continue
            rendered[key] = value
        return rendered or _DROPPED

    return render


def _kept(values: Any) -> Any:
    kept = [value for value in values if value is not _DROPPED]
    return kept or _DROPPED


def _leaf(
    source: str, path: tuple[str | int, ...], parent: Mapping[str, Any], document: Document, choose: Choose
) -> Render:
    environment, budget = choose(path, parent)
    try:
        template: Template = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise BadDocument(error.message or "syntax error", document.line_of(path)) from None

    def render(variables: Variables) -> Any:
        text = "".join(template.root_render_func(variables.of(environment))).strip()
        return cut(text, budget) if text else _DROPPED

    return render
