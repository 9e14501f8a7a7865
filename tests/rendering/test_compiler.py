"""The sandbox's shortcuts for output and macros render the same as plain Jinja."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from dispatcher.rendering.sandbox import BuiltInSandbox
from dispatcher.rendering.text import escape_html

LOADER = DictLoader({
    "parts": "{% macro row(label, value, link='<none>') %}<b>{{ label }}</b>{{ value }}{{ link }}{% endmacro %}",
})  # fmt: skip
JINJA = Environment(loader=LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
SANDBOX = BuiltInSandbox(LOADER, autoescape=True)
VARIABLES = {"text": '<a href="x">&\'</a>', "number": 7, "nothing": None, "items": ["<", "&amp;"]}


@pytest.mark.parametrize(
    "source",
    [
        "{{ text }} {{ number }} {{ nothing }} {{ '<' }} {{ text | safe }} {{ (text | safe) | e }}",
        "<i title='{{ text }}'>{{ text ~ '<' ~ (text | safe) }}</i>{{ items | join('<') }}{{ text | replace('x', '<') }}",
        "{% autoescape false %}{{ text }}{% autoescape true %}{{ text }}{% endautoescape %}{% endautoescape %}",
        "{% set whole %}<b>{{ text }}</b>{% endset %}{{ whole }}{% filter upper %}<b>{{ text }}{% endfilter %}",
        "{% from 'parts' import row %}{{ row(text, number) }}{{ row(text, '<', text) }}{{ row(value=text, label='&') }}",
        "{% from 'parts' import row %}{% for item in items %}{{ row(item, item) }}{% endfor %}{{ row('<', row(1, 2)) }}",
        "{% macro all() %}{{ varargs | join }}{{ kwargs.more }}{% endmacro %}{{ all('<', text, more=text) }}",
        "{% macro box() %}<p>{{ caller('<') }}</p>{% endmacro %}{% call(it) box() %}{{ it }}{{ text }}{% endcall %}",
        "{% macro mark(caller='-') %}{{ caller }}{% endmacro %}{{ mark(text) }}{{ mark() }}",
    ],
)
def test_html_is_the_same_as_plain_jinjas(source: str) -> None:
    assert SANDBOX.from_string(source).render(VARIABLES) == JINJA.from_string(source).render(VARIABLES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ unknown }}",
        "{% from 'parts' import row %}{{ row('a') }}",
        "{% from 'parts' import row %}{{ row('a', 'b', 'c', 'd') }}",
        "{% from 'parts' import row %}{{ row('a', 'b', colour='red') }}",
        "{% macro box() %}{{ caller() }}{% endmacro %}{{ box() }}",
    ],
)
def test_errors_are_the_same_as_plain_jinjas(source: str) -> None:
    with pytest.raises(Exception, match=r"\w") as expected:
        JINJA.from_string(source).render(VARIABLES)
    with pytest.raises(type(expected.value)) as actual:
        SANDBOX.from_string(source).render(VARIABLES)
    assert str(actual.value) == str(expected.value)


@given(st.one_of(st.text(), st.text().map(Markup), st.integers(), st.none()))
def test_escape_html_is_the_same_as_markupsafes_escape(value: Any) -> None:
    assert escape_html(value) == escape(value)
