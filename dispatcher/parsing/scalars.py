"""Decides what an unquoted YAML scalar is: text, a number, a truth value, a date, or nothing.

YAML 1.1 and YAML 1.2 read some scalars differently: `010` is 8 in the one and 10 in the other, `12:30` is 750 or text.
Such a scalar becomes `Unclear`, which only times of day accept, so its author learns to quote it. Sources: YAML
1.1 (yaml.org/type), YAML 1.2.2 (10.3, core schema).
"""

from __future__ import annotations

import re
from datetime import date, datetime
from math import isfinite
from typing import Any

_FIRST_CHARACTERS = frozenset("+-.0123456789~tTfFnNyYoO=")
"""The characters that a scalar can begin with if it is not text."""
_WORDS = {
    spelling: value
    for words, value in ((("null",), None), (("true", "yes", "on"), True), (("false", "no", "off"), False))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
} | {"": None, "~": None}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?(([Tt]|[ \t]+)\d\d?:\d\d:\d\d(\.\d*)?([ \t]*(Z|[-+]\d\d?(:\d\d)?))?)?", re.ASCII)
_NUMBER_IN_SOME_READERS = re.compile(
    r"[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*(:[0-5]?[0-9])*(\.[0-9_]*)?([eE][-+]?[0-9]+)?"
    r"|\.[0-9_]+([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)|="
)
_LONGEST_NUMBER = 40


class Unclear:
    """An unquoted scalar that some YAML readers take for text and others for a number or a date.

    It is no dataclass, because pydantic-settings turns a dataclass into a dict, and a setting's error loses its reason.
    """

    def __init__(self, text: str) -> None:
        """`text`: the scalar, for options in which all readings mean the same, such as a time of day."""
        self.text = text


def plain_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar: a str, int, float, bool, date, datetime, None, or Unclear."""
    if text and text[0] not in _FIRST_CHARACTERS:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _DATE.fullmatch(text):
        return _date(text)
    if not _NUMBER_IN_SOME_READERS.fullmatch(text):
        return text
    if len(text) > _LONGEST_NUMBER:
        return Unclear(text)
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text) and isfinite(number := float(text)):
        return number
    return Unclear(text)


def _date(text: str) -> Any:
    try:
        return date.fromisoformat(text) if len(text) <= len("2026-11-20") else datetime.fromisoformat(text)
    except ValueError:
        return Unclear(text)


def why_not_text(value: Any) -> str | None:
    """Return why a scalar is not text, and what its author must do. None if the value is text or no scalar.

    The sentence does not contain the value, because the value may be secret.
    """
    match value:
        case bool():
            kind = "true or false"
        case int() | float():
            kind = "a number"
        case date():
            kind = "a date"
        case Unclear():
            return "some YAML readers take this for text, others do not: quote it, or write a decimal number"
        case _:
            return None
    return f"{kind} where text is expected: quote it"
