"""Shows messages in a terminal, similar to how recipients see them.

Text that looks like Rich's markup is shown as it is, and the URL of each link is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.box import ROUNDED, Box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from channels.common import drawing
from channels.contract import ChannelType, Content
from dispatcher.preview.html import blocks_of, line_text
from dispatcher.safe_text import visible, visible_data

WIDTH = 100
_BELOW = (0, 0, 1, 0)
_BAR = Box("▌   \n▌   \n▌   \n▌   \n▌   \n▌   \n▌   \n▌   \n")
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_TONES = {"good": "green", "warning": "yellow", "attention": "red"}
_TAGS = {
    "critical": "white on red3",
    "error": "white on red3",
    "warning": "black on yellow3",
    "info": "white on blue",
}
_STYLES = {"strong": "bold", "em": "italic", "s": "strike", "code": "on grey15", "pre": "on grey15"}


def to_panel(channel: str, kind: ChannelType | None, content: Content) -> RenderableType:
    """Return one message in a frame with the channel's title. Its text is made safe to show.

    `channel`: the channel's name. `kind`: its type; None if no such channel is registered.
    """
    content = visible_data(content)
    is_mail = kind is not None and kind.form.mail is not None
    inner = _mail(content) if is_mail else _blocks(blocks_of(kind, content))
    title = Text(visible((kind and kind.title) or channel))
    return Panel(Group(*inner), box=ROUNDED, title=title, title_align="left", width=WIDTH)


def _mail(content: Content) -> Iterator[RenderableType]:
    yield Text(str(content["subject"]), style="bold")
    yield Rule(style="dim")
    yield Text(str(content["text"]).strip("\n"))


def _blocks(blocks: Iterable[drawing.Block]) -> Iterator[RenderableType]:
    for block in blocks:
        match block:
            case drawing.Heading(text, tag):
                before = Text(f" {tag.upper()} ", style=_TAGS.get(tag, "reverse")) + Text("  ") if tag else Text()
                yield Padding(before + Text(line_text(text), style="bold"), _BELOW)
            case drawing.Paragraph(text, faint):
                yield Text(line_text(text), style="dim") if faint else Padding(_line(text), _BELOW)
            case drawing.Columns(texts):
                cells = [_line(text) for text in texts]
                halves = (Column(ratio=1, overflow="fold") for _ in range(2))
                yield _grid((cells[left : left + 2] for left in range(0, len(cells), 2)), *halves, expand=True)
            case drawing.Table(rows):
                columns = Column(style="dim", no_wrap=True), Column(overflow="fold")
                yield _grid((map(Text, cells) for cells in rows), *columns)
            case drawing.Code(text):
                yield Padding(Text(text, style="on grey15"), _BELOW)
            case drawing.Links(links):
                for label, url in links:
                    yield Padding(Text.assemble((f" {label} ", "reverse"), f" {url}"), _BELOW)
            case drawing.Divider():
                yield Rule(style="dim")
            case drawing.Box(inner, color, tone):
                style = color if _COLOR.fullmatch(color) else _TONES.get(tone, "dim")
                yield Panel(Group(*_blocks(inner)), box=_BAR, border_style=style, padding=(0, 1))


def _grid(rows: Iterable[Iterable[Text]], *columns: Column, expand: bool = False) -> RenderableType:
    grid = Table.grid(*columns, expand=expand, padding=(0, 2, 0, 0))
    for row in rows:
        grid.add_row(*row)
    return Padding(grid, _BELOW)


def _line(line: drawing.Line) -> Text:
    spans = [drawing.Span(line)] if isinstance(line, str) else line
    text = Text()
    for span in spans:
        style = "blue underline" if span.url else " ".join(_STYLES[style] for style in span.styles)
        text.append(line_text([span]), style=style)
    return text
