"""YAML and JSON that people write: the limits, what is refused because it could be misread, and the line numbers."""

from __future__ import annotations

import json
import time
from datetime import date, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from dispatcher.parsing.composer import MAX_DEPTH, MAX_DOCUMENTS
from dispatcher.parsing.scalars import Unclear, why_not_text
from dispatcher.parsing.yaml import MAX_BYTES, Malformed, parse, read_text
from tests.support import samples

ROOT = Path(__file__).parent.parent.parent


def bomb(leaf: str, repeated: int = 9) -> str:
    levels = "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * repeated)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    return f"a: &a {leaf}\n{levels}"


def deep_by_aliases(levels: int) -> str:
    return "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, levels))


NESTED_TOO_DEEP = "nested deeper than 64"
LIMIT_OF_LIBYAML = "exceeded maximum nesting depth"
"""The words of PyYAML 6.0.4 and newer about some thousand levels, which our parser then does not see."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 500 + "]" * 500, NESTED_TOO_DEEP),
        ("a: " + "[" * 50_000 + "]" * 50_000, NESTED_TOO_DEEP),
        ("{a: " * 50_000 + "}" * 50_000, NESTED_TOO_DEEP),
        ("- " * 50_000 + "x", NESTED_TOO_DEEP),
        ("".join(f"{' ' * n}a:\n" for n in range(70)), NESTED_TOO_DEEP),
        (deep_by_aliases(MAX_DEPTH), NESTED_TOO_DEEP),
        (bomb("[x, x, x, x, x, x, x, x, x]"), "more than 1,000,000 values"),
        (bomb("{k: v}", 12), "more than 1,000,000 values"),
        (bomb(f"[{'x' * 900_000}]"), "more than 1,000,000 values"),
        ("--- a\n" * (MAX_DOCUMENTS + 1), "more than 1,000 documents"),
        ("".join(f"%TAG !a{n}! x\n" for n in range(200_000)) + "--- a", "more than 1,000 %TAG directives"),
        ("a: &a [*a]", "the alias *a repeats nothing that ended before it"),
        ("a: *b", "the alias *b repeats nothing"),
        ("a: &a 1\n---\nb: *a", "the alias *a repeats nothing"),
        ("a: 1\nb: 2\na: 3", "the key 'a' is there twice, first with the value on line 1: keep one of them"),
        ("a: 1\n'a': 2", "the key 'a' is there twice"),
        ("a: {b: [{c: 1,\nc: 2}]}", "a.b.0: the key 'c' is there twice"),
        ("&a a: 1\n*a : 2", "the key 'a' is there twice"),
        ("base: &base {x: 1}\na:\n  <<: *base", "merge keys"),
        ("<<: [{a: 1}]", "merge keys"),
        ("a:\n  2024: b", "a: the key 2024 is not text: quote it"),
        ("yes: b", "the key True is not text: quote it"),
        ("? [a]\n: b", "the key is not text"),
        ("a: !!python/object/apply:os.system ['true']", "the tag !!python/object/apply:os.system is not supported"),
        ("a: !!binary aGk=", "the tag !!binary is not supported"),
        ("!!set {a, b}", "the tag !!set is not supported"),
        ("a: 1\nb: \x01", "the character U+0001 is not allowed"),
        ("a: [", "did not find expected"),
    ],
)
def test_yaml_that_could_harm_or_be_misread_is_refused_in_bounded_time(text: str, message: str) -> None:
    start = time.thread_time()
    with pytest.raises(Malformed) as caught:
        parse(text)
    assert str(caught.value).startswith("broken YAML: ")
    assert message in str(caught.value).replace(LIMIT_OF_LIBYAML, NESTED_TOO_DEEP)
    assert time.thread_time() - start < 5


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[" * 50_000 + "]" * 50_000, 1, ""),
        ('{"a":\n' * 100 + "1" + "}" * 100, 65, NESTED_TOO_DEEP),
        ('{"a": 1,\n "\\u0061": 2}', 2, "the key 'a' is there twice, first with the value on line 1"),
        ('[{"a": {\n"b": 1,\n"b": 2}}]', 3, "0.a: the key 'b' is there twice"),
        ('{"a":\n oops}', 2, ""),
        ('{"a": "\\ud800"}', 1, "surrogate"),
    ],
)
def test_the_same_limits_hold_for_json(text: str, line: int, message: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(text, json=True)
    assert str(caught.value).startswith("broken JSON: ")
    assert message in str(caught.value).replace(LIMIT_OF_LIBYAML, NESTED_TOO_DEEP)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"#" * (MAX_BYTES + 1), "larger than 4 MiB"),
        ("a: ä".encode("utf-16"), "not UTF-8"),
        (b"a: 1\nb: \xff", "UTF-8"),
    ],
)
def test_a_file_that_is_too_large_or_not_utf8_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(Malformed, match=message):
        read_text(tmp_path / "a.yaml")


def test_what_is_within_the_limits_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n" + b"#" * (MAX_BYTES - 8))
    assert parse(read_text(tmp_path / "a.yaml"))[0].data == {"a": 1}
    assert len(parse("--- a\n" * MAX_DOCUMENTS)) == MAX_DOCUMENTS
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH)[0].data is not None
    assert parse(deep_by_aliases(MAX_DEPTH - 1))[0].data["a0"] == ["x"]
    assert parse("a: &a {x: 1}\nb: *a\nc: &a y\nd: *a")[0].data == {"a": {"x": 1}, "b": {"x": 1}, "c": "y", "d": "y"}
    assert parse("a: !!str 1.10\nb: ! x\nc: '<<'\nd: !!map {}\n---\n")[0].data == {
        "a": "1.10",
        "b": "x",
        "c": "<<",
        "d": {},
    }
    assert [document.data for document in parse("a\n--- \n---\nb")] == ["a", None, "b"]
    assert parse("") == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, text) for text in ("a", "n", "y", "1.1.0", "v1.10", "1e", "2026-W01", "0xg", "1:99", "x" * 500, "=a")),
        *((text, None) for text in ("", "~", "null", "Null")),
        *((text, True) for text in ("true", "True", "yes", "ON")),
        *((text, False) for text in ("false", "no", "Off")),
        ("0", 0),
        ("-12", -12),
        ("+5", 5),
        ("1.10", 1.1),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("2026-11-20", date(2026, 11, 20)),
        ("2026-11-20T09:00:00Z", datetime.fromisoformat("2026-11-20T09:00:00+00:00")),
        *(
            (text, Unclear(text))
            for text in (
                "010", "0o17", "0x1F", "0b1", "1_000", "12:30", "12:30:45", ".inf", "-.INF", ".nan", "1e999", "2026-13-45",
                "9" * 5000, "=", "08",
            )
        ),
    ],
)  # fmt: skip
def test_an_unquoted_scalar_has_a_type_only_where_all_readers_of_yaml_agree(text: str, value: Any) -> None:
    data = parse(f"a: {text}\nb: '{text}'")[0].data
    assert type(data["a"]) is type(value)
    assert value.text == data["a"].text if isinstance(value, Unclear) else value == data["a"]
    assert data["b"] == text
    assert (why_not_text(data["a"]) is None) is (isinstance(value, str) or value is None)


def test_yaml_and_json_files_are_read_as_other_parsers_read_them() -> None:
    files = [file for folder in ("templates", "deploy", "docs") for file in (ROOT / folder).rglob("*.y*ml")]
    for file in (file for file in files if "{{-" not in file.read_text()):
        expected = list(yaml.safe_load_all(file.read_text()))
        assert [document.data for document in parse(read_text(file))] == expected, file
    for file in (*samples.FOLDER.glob("*.json"), *samples.LAUNCH_PLANS.glob("*.json")):
        (document,) = parse(read_text(file), json=True)
        assert document.data == orjson.loads(file.read_bytes()), file


@pytest.mark.parametrize("as_json", [False, True])
def test_the_line_of_each_value_is_known(as_json: bool) -> None:
    text = json.dumps({"a": {"b": ["x", {"c": "{"}], "d": 1}, "e": "\n"}, indent=1)
    (document,) = parse(text, json=as_json)
    lines = {("a",): 2, ("a", "b", 0): 4, ("a", "b", 1): 5, ("a", "b", 1, "c"): 6, ("a", "d"): 9, ("e",): 11}
    assert {path: document.line_of(path) for path in lines} == lines
    assert document.line_of(("a", "b", 7)) == 3
    assert document.line_of(("a", "nowhere", "at all")) == 2
    assert document.line_of(("e", 0)) == 11
    assert document.line_of() == 1


def test_an_alias_has_the_line_of_what_it_repeats() -> None:
    (document,) = parse("a: &a\n  - x\nb: *a\n")
    assert document.line_of(("b", 0)) == 2
