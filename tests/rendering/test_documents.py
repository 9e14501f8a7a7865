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
        ("k: {when: true, a: '{{ yes }}', url: '{{ no }}'}", {"k": {"a": "y"}}),
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


def test_an_item_of_a_list_with_for_is_repeated() -> None:
    yaml = """
      rows:
        - first
        - for: row in rows[:2]
          name: '{{ row.name }}'
          parts:
            - for: part in row.parts
              of: '{{ row.name }}{{ part }}'
        - for: row in rows
          when: '{{ row.parts }}'
          constant: yes
        - {for: row in none, a: '{{ row }}'}
    """
    rows = [{"name": "a", "parts": [1, 2]}, {"name": "b", "parts": []}, {"name": "c", "parts": []}]
    assert rendered(yaml, rows=rows, none=[]) == {
        "rows": [
            "first",
            {"name": "a", "parts": [{"of": "a1"}, {"of": "a2"}]},
            {"name": "b"},
            *[{"constant": True}] * 3,
        ]
    }
    assert rendered("{a: '{{ x }}', for: word in x}", x="y") == {"a": "y", "for": "word in x"}  # not in a list


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ("row", "write NAME in LIST"),
        ("[1]", "write NAME in LIST"),
        ("row in [", "for: "),
        ("row in nonsense", "'nonsense' is undefined"),
        ("row in 7", "not iterable"),
    ],
)
def test_a_for_that_is_wrong_names_its_line(loop: str, expected: str) -> None:
    with pytest.raises(BadDocument, match=expected) as error:
        rendered(f"a: b\nc:\n  - for: {loop}\n    d: '{{{{ row }}}}'")
    assert error.value.line == 3


def test_strings_of_yields_the_strings_that_are_templates() -> None:
    none: frozenset[str] = frozenset()
    assert list(strings_of({"a": "x", "b": [{"c": "{{ x }}"}, "{% if %}"]})) == [
        (("b", 0, "c"), "{{ x }}", none),
        (("b", 1), "{% if %}", none),
    ]
    assert list(strings_of([{"for": "a in b", "c": "{{ a }}"}])) == [
        ((0, "for"), "{{ b }}", none),
        ((0, "c"), "{{ a }}", frozenset({"a"})),
    ]
