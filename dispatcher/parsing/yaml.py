"""Parses YAML and JSON, and keeps the line number of each value, so that error messages can contain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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


class Malformed(Exception):
    """A file can't be parsed. `line` counts from 1; it is 0 if the line is not known."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed document and the line numbers of its values."""

    data: Any
    _root: yaml.Node | None = None

    def line_of(self, path: Sequence[str | int] = ()) -> int:
        """Return the line number of the value at `path`. If `path` does not exist, return the line number of its
        deepest part that exists. 0 if line numbers are not known.
        """
        node = self._root
        if node is None:
            return 0
        for step in path:
            child = _child(node, step)
            if child is None:
                break
            node = child
        return int(node.start_mark.line) + 1


def parse(text: str, *, json: bool = False) -> list[Document]:
    """Parse all documents of a YAML stream, or one JSON document. Raises Malformed if the text is invalid."""
    if json:
        return [_parse_json(text)]
    loader = _Loader(text)
    try:
        documents = []
        while loader.check_node():
            node = loader.get_node()
            documents.append(Document(loader.construct_document(node), node))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _malformed(error) from None
    finally:
        loader.dispose()
    return documents


def _parse_json(text: str) -> Document:
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"broken JSON: {error.msg}", error.lineno) from None
    try:
        return Document(data, yaml.compose(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError):  # YAML can't parse some JSON, such as tabs; lines are unknown then
        return Document(data)


def _malformed(error: Exception) -> Malformed:
    mark = getattr(error, "problem_mark", None)
    message = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Malformed(f"broken YAML: {message}", mark.line + 1 if mark else 0)


def _child(node: yaml.Node, step: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if getattr(key, "value", None) == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        child: yaml.Node = node.value[step]
        return child
    return None
