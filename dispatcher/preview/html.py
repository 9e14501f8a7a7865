"""Shows messages as HTML pages and as plain text, for previews, the console and the demo's inbox.

A message can contain untrusted text, so all text is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape

from channels.common import drawing
from channels.common.drawing import Block, Line, Span, is_link
from channels.contract import ChannelType, Content

_COLOR = re.compile(r"#[0-9a-fA-F]{3,8}")
_STYLE = """
.drawing{color:#1d1c1d}
.drawing h3{line-height:24px;margin:4px 0}
.drawing div{margin:4px 0}
.drawing .columns{display:grid;grid-template-columns:1fr 1fr;gap:8px 16px}.drawing .columns div{margin:0}
.drawing pre{background:#f5f5f5;border:1px solid #ddd;border-radius:4px;padding:8px;margin:6px 0;font:12px/18px Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.drawing code{background:#f5f5f5;border-radius:3px;padding:1px 3px;font:12px/18px Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.drawing .faint{color:#616061;font-size:13px;line-height:18px}.drawing hr{border:0;border-top:1px solid #ddd}
.drawing table{border-collapse:collapse}.drawing td{padding:3px 0;white-space:pre-wrap;overflow-wrap:anywhere}
.drawing th{text-align:left;vertical-align:top;color:#616061;font-weight:400;padding:3px 16px 3px 0;white-space:nowrap}
.drawing .tag{display:inline-block;border-radius:3px;padding:0 8px;font-size:13px;font-weight:700;color:#fff;background:#616061}
@media (prefers-color-scheme:dark){.drawing{color:#e8e8e8}.drawing pre,.drawing code{background:#17191c;border-color:#3a3d42;color:#e8e8e8}.drawing .faint,.drawing th{color:#a8abb0}}
"""


def style_sheet(*kinds: ChannelType | None) -> str:
    """Return the CSS for messages of these channels."""
    return "".join([_STYLE, *(kind.style for kind in kinds if kind is not None)])


def page(channel: str, kind: ChannelType | None, content: Content) -> str:
    """Return a whole HTML page with one message: a mail's own HTML, or a drawing of another channel's message.

    `channel`: the channel's name. `kind`: its type; None if no such channel is registered.
    """
    if kind is not None and kind.form.mail is not None:
        return str(content.get("html", ""))
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    style = f"<style>html{{background:Canvas}}{style_sheet(kind)}</style>"
    body = to_html(channel, kind, content)
    return f'{head}<title>{escape(channel)}</title>{style}<body style="max-width:680px;margin:24px auto;padding:0 12px"><main>{body}</main></body></html>\n'


def to_html(channel: str, kind: ChannelType | None, content: Content) -> Markup:
    """Return a message as HTML. If the channel draws nothing, the content is shown as JSON."""
    return Markup('<div class="drawing {}">{}</div>').format(channel, _blocks(blocks_of(kind, content)))


def plain_text(kind: ChannelType | None, content: Content) -> str:
    """Return one message as plain text, without colours."""
    if kind is not None and kind.form.mail is not None:
        return f"Subject: {content.get('subject', '')}\n\n{content.get('text', '')}"
    return "\n\n".join(filter(None, map(_block_text, blocks_of(kind, content)))).strip() + "\n"


def headline(kind: ChannelType | None, content: Content) -> str:
    """Return the text that a reader sees first, such as a mail's subject; empty if the content has none."""
    place = kind.headline if kind is not None else ("text",)
    parent, value = content, content.get(place[0])
    for key in place[1:]:
        parent = drawing.mapping(value)
        value = parent.get(key)
    markup = kind.form.text_kind(place, parent).markup if kind is not None else None
    return markup.unescape(str(value or "")) if markup is not None and markup.unescape else str(value or "")


def blocks_of(kind: ChannelType | None, content: Content) -> Iterable[Block]:
    """Return what a reader sees of a message."""
    if kind is None or kind.draw is None:
        return [drawing.Code(json.dumps(content, indent=2, ensure_ascii=False, default=str))]
    return kind.draw(content)


def index(entries: Iterable[tuple[str, Sequence[str], Sequence[str]]]) -> str:
    """Return a page that shows many messages. Each entry is one message: its name, its files in the page's folder, and
    its problems.
    """
    parts = []
    for name, files, problems in entries:
        links = Markup(" ").join(Markup('<a href="{0}">{0}</a>').format(file) for file in files)
        warnings = Markup("").join(Markup("<p>⚠ {}</p>").format(problem) for problem in problems)
        html_file = next((file for file in files if file.endswith(".html")), "")
        frame = Markup('<iframe title="{}" sandbox="" src="{}"></iframe>').format(name, html_file) if html_file else ""
        parts.append(Markup("<section><h2>{}</h2>{}<p>{}</p>{}</section>").format(name, warnings, links, frame))
    style = (
        "body{font:15px/22px system-ui,sans-serif;margin:24px;color:#1d1c1d;background:#fff}"
        "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(420px,1fr));gap:24px}"
        "iframe{width:100%;height:520px;border:1px solid #ccc;border-radius:6px;background:#fff}"
    )
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>All messages</title>'
    heading = "<header><h1>All messages</h1></header>"
    return f"{head}<style>{style}</style>{heading}<main>{Markup('').join(parts)}</main></html>\n"


def _blocks(blocks: Iterable[Block]) -> Markup:
    return Markup("").join(map(_block, blocks))


def _block(block: Block) -> Markup:
    match block:
        case drawing.Heading(text, tag):
            before = Markup('<span class="tag {0}">{0}</span>').format(tag) if tag else Markup("")
            return before + Markup("<h3>{}</h3>").format(_line(text))
        case drawing.Paragraph(text, faint):
            return Markup("<div{}>{}</div>").format(Markup(' class="faint"') if faint else "", _line(text))
        case drawing.Columns(texts):
            inner = Markup("").join(Markup("<div>{}</div>").format(_line(text)) for text in texts)
            return Markup('<div class="columns">{}</div>').format(inner)
        case drawing.Table(rows):
            row = Markup('<tr><th scope="row">{}</th><td>{}</td></tr>')
            return Markup("<table>{}</table>").format(Markup("").join(row.format(*cells) for cells in rows))
        case drawing.Code(text):
            return Markup("<pre>{}</pre>").format(text)
        case drawing.Links(links):
            inner = Markup(" ").join(_link(label, url, "button") for label, url in links)
            return Markup("<div>{}</div>").format(inner)
        case drawing.Divider():
            return Markup("<hr>")
        case drawing.Box(blocks, color, tone):
            style = Markup(' style="--bar:{}"').format(color) if _COLOR.fullmatch(color) else ""
            return Markup('<div class="box {}"{}>{}</div>').format(tone, style, _blocks(blocks))


def _line(line: Line) -> Markup:
    spans = [Span(line)] if isinstance(line, str) else line
    return Markup("".join(map(_span, spans)))  # noqa: S704 - `_span` escapes its text


def _span(span: Span) -> str:
    html = str(escape(span.text))
    if "pre" not in span.styles:
        html = html.replace("\n", "<br>")
    for style in reversed(span.styles):
        html = f"<{style}>{html}</{style}>"
    return _link(Markup(html), span.url) if span.url else html  # noqa: S704 - escaped above


def _link(label: str, url: str, css: str = "") -> Markup:
    style = Markup('class="{}" ').format(css) if css else ""
    return Markup('<a {}rel="noreferrer" href="{}">{}</a>').format(style, url if is_link(url) else "#", label)


def _block_text(block: Block) -> str:
    match block:
        case drawing.Heading(text, tag):
            return f"[{tag}] {line_text(text)}" if tag else line_text(text)
        case drawing.Paragraph(text):
            return line_text(text)
        case drawing.Columns(texts):
            return "\n".join(line_text(text).replace("\n", ": ", 1) for text in texts)
        case drawing.Table(rows):
            return "\n".join(f"{name}: {value}" for name, value in rows)
        case drawing.Code(text):
            return text
        case drawing.Links(links):
            return "\n".join(f"{label}: {url}" for label, url in links)
        case drawing.Divider():
            return ""
        case drawing.Box(blocks):
            return "\n\n".join(filter(None, map(_block_text, blocks)))


def line_text(line: Line) -> str:
    """Return a line without its styles. A link's URL follows its label."""
    spans = [Span(line)] if isinstance(line, str) else line
    return "".join(f"{span.text} ({span.url})" if span.url not in ("", span.text) else span.text for span in spans)
