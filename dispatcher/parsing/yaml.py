"""Parses YAML and JSON that people wrote, and keeps the line number of each value for error messages.

Both formats have the limits of `composer`: size, depth, number of values and documents. A key may be there once. YAML
has no merge keys (`<<`) and no tags here, because they make a file mean something else than it seems to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import yaml

from dispatcher.parsing.composer import MAX_DOCUMENTS, Composer, Document, Malformed
from dispatcher.parsing.scalars import plain_scalar

__all__ = ["MAX_BYTES", "Document", "Malformed", "Problem", "decoded", "parse", "read_text", "readable"]

MAX_BYTES = 4 * 2**20
"""Maximum size of a file. Launch plans and settings need a few kilobytes, so a larger file is a mistake."""
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]|[^\s\[\]{}:,"]+')


def readable(path: Path) -> str:
    r"""Return the path as text that UTF-8 can encode. A byte of a file's name that is not UTF-8 becomes `\udcf6`."""
    return str(path).encode(errors="backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem in a file that a person wrote: the file, the line and a message."""

    file: Path
    line: int
    """The line's number, counted from 1; 0 if the line is not known."""
    message: str

    def __str__(self) -> str:
        file = readable(self.file)
        return f"{file}:{self.line}: {self.message}" if self.line else f"{file}: {self.message}"


def read_text(file: Path | BinaryIO) -> str:
    """Return the text of a UTF-8 file without its byte order mark. `file`: its path, or the file itself, open.

    Raises Malformed if the file is larger than `MAX_BYTES` or not UTF-8, and OSError if it can't be read.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return read_text(opened)
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise Malformed(f"larger than {MAX_BYTES // 2**20} MiB: split the file", 0)
    return decoded(content)


def decoded(content: bytes) -> str:
    """Return the text of a UTF-8 file's bytes without its byte order mark. Raises Malformed if they are not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8: save it in this encoding", content.count(b"\n", 0, error.start) + 1) from None


def parse(text: str, *, json: bool = False) -> list[Document]:
    """Parse all documents of a YAML stream, or one JSON document. Raises Malformed if the text is invalid."""
    composer = Composer()
    try:
        if json:
            _compose_json(text, composer)
        else:
            _compose_yaml(text, composer)
    except Malformed as error:
        raise Malformed(f"broken {'JSON' if json else 'YAML'}: {error}", error.line) from None
    return composer.documents


def _compose_yaml(text: str, composer: Composer) -> None:
    if text.count("%TAG") > MAX_DOCUMENTS:  # libyaml's time grows with the square of their number
        raise Malformed(f"more than {MAX_DOCUMENTS:,} %TAG directives: leave them out", 0)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            _add_event(event, composer)
    except yaml.reader.ReaderError as error:
        line = text.encode()[: error.position].count(b"\n") + 1
        raise Malformed(f"the character U+{error.character:04X} is not allowed: remove it", line) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise Malformed(error.problem or error.context or "syntax error", mark.line + 1 if mark else 0) from None


def _add_event(event: Any, composer: Composer) -> None:
    line = event.start_mark.line + 1
    kind = type(event)
    if kind is yaml.ScalarEvent:
        value = _scalar(event, line)
        if value is True and event.value == "on" and composer.expects_key:
            value = "on"  # true in YAML 1.1, text in YAML 1.2; no key is a truth value
        composer.scalar(value, line, event.anchor)
    elif kind is yaml.MappingStartEvent:
        _check_tag(event.tag, "map", line)
        composer.start({}, line, event.anchor)
    elif kind is yaml.SequenceStartEvent:
        _check_tag(event.tag, "seq", line)
        composer.start([], line, event.anchor)
    elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
        composer.end()
    elif kind is yaml.AliasEvent:
        composer.alias(event.anchor, line)
    elif kind is yaml.DocumentEndEvent:
        composer.end_document(line)


def _scalar(event: yaml.ScalarEvent, line: int) -> Any:
    if event.tag is not None:
        _check_tag(event.tag, "str", line)
    elif event.implicit[0]:
        if event.value == "<<":
            raise Malformed("merge keys (<<) are not supported: write the values out", line)
        return plain_scalar(event.value)
    return event.value


def _check_tag(tag: str | None, allowed: str, line: int) -> None:
    if tag not in (None, "!", _TAG + allowed):
        raise Malformed(f"the tag {str(tag).replace(_TAG, '!!')[:60]} is not supported: leave it out", line)


def _compose_json(text: str, composer: Composer) -> None:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Malformed(error.msg, error.lineno) from None
    line = 0
    for line, content in enumerate(text.split("\n"), start=1):  # a string contains no line break
        for token in _JSON_TOKEN.findall(content):
            first = token[0]
            if first == '"':
                composer.scalar(orjson.loads(token) if "\\" in token else token[1:-1], line)
            elif first == "{":
                composer.start({}, line)
            elif first == "[":
                composer.start([], line)
            elif first in "]}":
                composer.end()
            else:
                composer.scalar(orjson.loads(token), line)
    composer.end_document(line)
