"""What a reader sees of a message, as simple blocks. Previews show the blocks as HTML, as text and in a terminal.

All text is plain: code that shows a drawing escapes it. A URL is shown as a link only if it begins with http:// or https://.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

Style = Literal["strong", "em", "s", "code", "pre"]
"""How a piece of text looks, named as in HTML. `pre` is a block of code inside a text."""


class Span(NamedTuple):
    """A piece of text that looks the same throughout."""

    text: str
    styles: tuple[Style, ...] = ()
    url: str = ""


Line = str | Sequence[Span]


class Heading(NamedTuple):
    text: Line
    tag: str = ""
    """A word before the heading, such as an incident's severity. It is also the tag's CSS class."""


class Paragraph(NamedTuple):
    text: Line
    faint: bool = False


class Columns(NamedTuple):
    """Short texts, two beside each other."""

    texts: Sequence[Line]


class Table(NamedTuple):
    """Rows of a name and a value."""

    rows: Sequence[tuple[str, str]]


class Code(NamedTuple):
    text: str


class Links(NamedTuple):
    """Buttons and links, each with its label and URL."""

    links: Sequence[tuple[str, str]]


class Divider(NamedTuple):
    pass


class Box(NamedTuple):
    """Blocks that belong together, marked by a colour (`#rrggbb`) or by a tone."""

    blocks: Sequence[Block]
    color: str = ""
    tone: str = ""
    """`good`, `warning`, `attention`, or empty. Another tone is shown without a colour."""


Block = Heading | Paragraph | Columns | Table | Code | Links | Divider | Box


def mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings of a list. Other items can't be shown and are left out."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def is_link(url: object) -> bool:
    return str(url).startswith(("https://", "http://"))
