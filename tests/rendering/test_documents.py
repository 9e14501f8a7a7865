"""Document templates: YAML whose strings are Jinja templates."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import Environment, StrictUndefined

from channels.common.text import cut
from dispatcher.parsing.yaml import parse
from dispatcher.rendering.documents import BadDocument, Sink, Variables, compile_document, strings_of

ENVIRONMENT = Environment(undefined=StrictUndefined, autoescape=False)


def rendered(yaml: str, budget: int = 100, **values: Any) -> dict[str, Any]:
    (document,) = parse(yaml)
    return compile_document(document, lambda _place, _parent: Sink(ENVIRONMENT, cut, budget))(Variables(values))


def test_structure_is_data_and_strings_are_templates() -> None:
    hostile = '", "injected": "yes'
    assert rendered("{a: '{{ x }}', b: [1, true, null, plain], c: {d: 2.5}}", x=hostile) == {
        "a": hostile,
        "b": [1, True, None, "plain"],
        "c": {"d": 2.5},
    }


def test_a_string_is_cut_to_its_budget() -> None:
    assert rendered("{a: '{{ x }}', b: '{# only a note #}x'}", budget=5, x="abcdefgh") == {"a": "abcd…", "b": "x"}


@pytest.mark.parametrize(
    ("yaml", "rendering"),
    [
        ("k: '{{ no }}'", {}),
        ("k: {when: '{{ no }}', a: 1}", {}),
        ("k: {when: '{{ 1 == 2 }}', a: 1}", {}),
        ("k: {when: '', a: 1}", {}),
        ("k: {when: '{{ yes }}', a: 1}", {"k": {"a": 1}}),
        ("k: {when: '{{ 1 == 1 }}', a: '{{ yes }}'}", {"k": {"a": "y"}}),
        ("k: {when: true, a: 1}", {"k": {"a": 1}}),
        ("k: [{a: {when: true, b: 1}}, {a: {when: no, b: 1}, c: '{{ yes }}'}]", {"k": [{"a": {"b": 1}}, {"c": "y"}]}),
        ("k: {type: button, text: Open, url: '{{ no }}'}", {}),
        ("k: {type: section, text: {type: mrkdwn, text: '{{ no }}'}}", {}),
        (
            "k: {type: section, text: {text: '{{ no }}'}, fields: ['{{ yes }}']}",
            {"k": {"type": "section", "fields": ["y"]}},
        ),
        ("k: {type: actions, elements: [{text: Open, url: '{{ no }}'}]}", {}),
        ("k: [{a: '{{ no }}'}, {a: '{{ yes }}'}]", {"k": [{"a": "y"}]}),
        ("k: {a: '{{ no }}', b: constant}", {}),
        ("k: {a: {}, b: []}", {"k": {"a": {}, "b": []}}),
    ],
)
def test_empty_parts_are_dropped(yaml: str, rendering: dict[str, Any]) -> None:
    assert rendered(f"always: here\nand: '{{{{ yes }}}}'\n{yaml}", yes="y", no="") == {
        "always": "here",
        "and": "y",
        **rendering,
    }


def test_an_error_names_its_line() -> None:
    with pytest.raises(BadDocument, match="'nonsense' is undefined") as error:
        rendered("a: b\nc:\n  - d: '{{ nonsense }}'")
    assert error.value.line == 3


def test_strings_of_yields_the_strings_that_are_templates() -> None:
    assert list(strings_of({"a": "x", "b": [{"c": "{{ x }}"}, "{% if %}"]})) == [
        (("b", 0, "c"), "{{ x }}"),
        (("b", 1), "{% if %}"),
    ]
