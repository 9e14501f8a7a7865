"""Builds documents from the events of a parser. It never recurses, and it refuses what is too deep, large or ambiguous.

The limits exist because rule files and settings may come from people who must not be able to stop the service. PyYAML's
own composer crashes the process if a document is nested too deeply, and its memory is not limited.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64
"""Maximum number of nested mappings and lists, with aliases expanded."""
MAX_NODES = 1_000_000
"""Maximum number of values in a file, with aliases expanded. A long text counts once more for each
`CHARACTERS_PER_NODE` characters."""
MAX_DOCUMENTS = 1000
CHARACTERS_PER_NODE = 100

_Places = int | dict[Any, Any] | list[Any]
"""The line of a scalar; or the lines of the values of a mapping, by key, with its own line under the key None; or the
lines of the values of a list, after its own line. Tuples would double the work of the garbage collector."""


class Malformed(Exception):
    """A file can't be parsed. `line` counts from 1; it is 0 if the line is not known."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed document and the line numbers of its values."""

    data: Any
    _places: _Places = 0

    def line_of(self, path: Sequence[str | int] = ()) -> int:
        """Return the line number of the value at `path`. If `path` does not exist, return the line number of its
        deepest part that exists. 0 if line numbers are not known.
        """
        places = self._places
        for step in path:
            try:
                places = places[step] if isinstance(places, dict) else places[step + 1]  # type: ignore[index,operator]
            except (KeyError, IndexError, TypeError):
                break
        return _own_line(places)


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    data: Any
    places: Any
    anchor: str | None
    nodes_before: int
    key: str | None = None
    """The key whose value comes next; None in a list, and in a mapping if a key comes next."""
    height: int = 1
    """The number of levels from this one down, itself included."""


@dataclass(frozen=True, slots=True)
class _Anchored:
    """A value that aliases can repeat."""

    value: Any
    places: _Places
    nodes: int
    height: int


class Composer:
    """Builds the documents of one file. A parser calls the methods in the order of the file.

    Each method raises Malformed if the file is refused. `line` counts from 1. `anchor`: the name that aliases can
    refer to, or None.
    """

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self._nodes = 0
        self._open: list[_Open] = []
        self._innermost: _Open | None = None
        self._root: tuple[Any, _Places] = (None, 0)
        self._anchors: dict[str, _Anchored] = {}

    @property
    def expects_key(self) -> bool:
        """True if the next scalar is a key of a mapping."""
        parent = self._innermost
        return parent is not None and parent.key is None and type(parent.data) is dict

    def start(self, collection: dict[str, Any] | list[Any], line: int, anchor: str | None = None) -> None:
        """Begin a mapping (if `collection` is an empty dict) or a list."""
        if len(self._open) >= MAX_DEPTH:
            raise Malformed(f"nested deeper than {MAX_DEPTH} levels: make it flatter", line)
        places: _Places = [line] if type(collection) is list else {None: line}
        self._innermost = _Open(collection, places, anchor, self._nodes)
        self._open.append(self._innermost)
        self._count(1, line)

    def end(self) -> None:
        """End the innermost mapping or list."""
        done = self._open.pop()
        self._innermost = self._open[-1] if self._open else None
        self._raise_height(done.height)
        if done.anchor is not None:
            nodes = self._nodes - done.nodes_before
            self._anchors[done.anchor] = _Anchored(done.data, done.places, nodes, done.height)
        self._add(done.data, done.places, _own_line(done.places))

    def scalar(self, value: Any, line: int, anchor: str | None = None) -> None:
        """Add a value that is neither a mapping nor a list, or a key."""
        nodes = 1 + len(value) // CHARACTERS_PER_NODE if type(value) is str else 1
        self._count(nodes, line)
        if anchor is not None:
            self._anchors[anchor] = _Anchored(value, line, nodes, 0)
        self._add(value, line, line)

    def alias(self, name: str, line: int) -> None:
        """Repeat the value whose anchor is `name`."""
        anchored = self._anchors.get(name)
        if anchored is None:
            raise Malformed(f"the alias *{name[:60]} repeats nothing that ended before it: write the value out", line)
        if len(self._open) + anchored.height > MAX_DEPTH:
            raise Malformed(f"nested deeper than {MAX_DEPTH} levels: make it flatter", line)
        self._count(anchored.nodes, line)
        self._raise_height(anchored.height)
        self._add(anchored.value, anchored.places, line)

    def end_document(self, line: int) -> None:
        """End the document."""
        if len(self.documents) >= MAX_DOCUMENTS:
            raise Malformed(f"more than {MAX_DOCUMENTS:,} documents: split the file", line)
        self.documents.append(Document(*self._root))
        self._anchors.clear()

    def _raise_height(self, height_of_child: int) -> None:
        parent = self._innermost
        if parent is not None and parent.height <= height_of_child:
            parent.height = height_of_child + 1

    def _count(self, nodes: int, line: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise Malformed(f"more than {MAX_NODES:,} values: split the file, or repeat less by aliases", line)

    def _add(self, value: Any, places: _Places, line: int) -> None:
        parent = self._innermost
        if parent is None:
            self._root = (value, places)
        elif type(parent.data) is list:
            parent.data.append(value)
            parent.places.append(places)
        elif (key := parent.key) is not None:
            parent.data[key] = value
            parent.places[key] = places
            parent.key = None
        elif type(value) is not str:
            shown = "" if isinstance(value, dict | list) else f" {str(getattr(value, 'text', value))[:60]}"
            raise Malformed(f"{self._place()}the key{shown} is not text: quote it", line)
        elif value in parent.data:
            first_line = _own_line(parent.places[value])
            raise Malformed(
                f"{self._place()}the key {value[:60]!r} is there twice, first with the value on line {first_line}: "
                "keep one of them",
                line,
            )
        else:
            parent.key = value

    def _place(self) -> str:
        """Return the place of the innermost mapping as `channels.slack.recipients: `, or an empty text for the root."""
        steps = [str(len(one.data) if one.key is None else one.key) for one in self._open[:-1]]
        return f"{'.'.join(steps)[:200]}: " if steps else ""


def _own_line(places: _Places) -> int:
    if isinstance(places, int):
        return places
    line: int = places[None] if isinstance(places, dict) else places[0]
    return line
