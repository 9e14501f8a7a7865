"""Shows Slack's blocks, PagerDuty's events and Teams' cards as HTML or plain text, for previews and the demo's inbox.

A message can contain untrusted text, so all text is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import unescape
from typing import Any

from markupsafe import Markup, escape

from channels.contract import Content

_FENCE = re.compile(r"```(.*?)```", re.DOTALL)
_LINK = re.compile(r"<(https?://[^|<>\s]+)(?:\|([^<>]*))?>")
_MARKS = (
    (re.compile(r"`([^`\n]+)`"), "code"),
    (re.compile(r"(?<!\w)\*([^*\n]+)\*(?!\w)"), "strong"),
    (re.compile(r"(?<!\w)_([^_\n]+)_(?!\w)"), "em"),
    (re.compile(r"(?<!\w)~([^~\n]+)~(?!\w)"), "s"),
)
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])|&(?:amp|lt|gt|quot);|\xa0")
_EMPTY: tuple[object, ...] = ("", None, {}, [])

STYLE = """
.slack{font:15px/22px Lato,"Helvetica Neue",Arial,sans-serif;color:#1d1c1d}
.slack .attachment{border-left:4px solid var(--bar,#ddd);padding:2px 0 2px 12px;border-radius:2px}
.slack h3{font-size:18px;line-height:24px;margin:4px 0}
.slack p,.slack ul{margin:6px 0}
.slack .fields{display:grid;grid-template-columns:1fr 1fr;gap:8px 16px;margin:6px 0}
.slack pre{background:#f8f8f8;border:1px solid #ddd;border-radius:4px;padding:8px;margin:6px 0;font:12px/18px Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.slack code{background:#f8f8f8;border:1px solid #ddd;border-radius:3px;padding:1px 3px;color:#c01343;font-size:12px}
.slack a{color:#1264a3;text-decoration:none}.slack a.button{display:inline-block;border:1px solid #bbb;border-radius:4px;padding:5px 12px;color:#1d1c1d;font-weight:700;font-size:14px;margin:4px 0}
.slack .context{color:#616061;font-size:13px;line-height:18px}.slack hr{border:0;border-top:1px solid #ddd}
.incident{font:15px/22px "Helvetica Neue",Arial,sans-serif;color:#1d1c1d}.incident h3{font-size:17px;line-height:24px;margin:4px 0}
.incident table{border-collapse:collapse;width:100%}.incident th{text-align:left;vertical-align:top;color:#616061;font-weight:400;padding:3px 16px 3px 0;white-space:nowrap}
.incident td{padding:3px 0;white-space:pre-wrap;overflow-wrap:anywhere}.incident .tag{display:inline-block;border-radius:3px;padding:0 8px;font-size:13px;font-weight:700;color:#fff;background:#616061}
.incident .critical,.incident .error{background:#c8102e}.incident .warning{background:#9a5b00}.incident .info{background:#1264a3}.incident a{color:#1264a3}
.card{font:14px/20px "Segoe UI",system-ui,sans-serif;color:#242424;border:1px solid #d1d1d1;border-radius:6px;padding:12px 16px}
.card div{margin:4px 0}.card .box{margin:-12px -16px 8px;padding:12px 16px}.card .good{background:#e7f2da}.card .attention{background:#fde7e9}.card .warning{background:#fff4ce}
.card .large{font-size:18px;line-height:26px}.card .bolder{font-weight:600}.card .monospace,.card pre{font-family:Consolas,Menlo,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.card pre{background:#f5f5f5;border-radius:4px;padding:8px;font-size:12px;line-height:18px}.card th{text-align:left;vertical-align:top;padding:1px 16px 1px 0;white-space:nowrap}.card a{color:#5b5fc7}
.data{font:12px/18px Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
@media (prefers-color-scheme:dark){.card,.data{color:#e8e8e8}.card pre{background:#17191c}.card .good{background:#1e3a1a}.card .attention{background:#442726}.card .warning{background:#433519}.card a{color:#9ea2ff}.slack,.incident,.slack a.button{color:#e8e8e8}.slack pre,.slack code{background:#17191c;border-color:#3a3d42;color:#e8e8e8}.slack .context,.incident th{color:#a8abb0}.slack a,.incident a{color:#5db0e8}}
"""


def page(channel: str, content: Content) -> str:
    """Return a whole HTML page with one message."""
    body = to_html(channel, content)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
    return f'{head}<title>{channel}</title><style>html{{background:Canvas}}{STYLE}</style><body style="max-width:680px;margin:24px auto;padding:0 12px"><main>{body}</main></body></html>\n'


def to_html(channel: str, content: Content) -> Markup:
    """Return a message of any channel except `email` as HTML. Mail already contains HTML. An unknown channel's message
    is shown as JSON.
    """
    renderers = {"slack": _slack, "pagerduty": _incident, "teams": _card}
    return renderers.get(channel, _data)(content)


def plain_text(channel: str, content: Content) -> str:
    """Return one message as plain text, without colours."""
    if channel == "email":
        return f"Subject: {content['subject']}\n\n{content['text']}"
    renderers = {"slack": _slack_lines, "pagerduty": _incident_lines, "teams": _card_lines}
    return "\n".join(renderers.get(channel, _data_lines)(content)).strip() + "\n"


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


def _slack(content: Content) -> Markup:
    blocks = _mappings(content.get("blocks"))
    # If a message has no top-level blocks, Slack shows the message's `text`, even if there are attachments.
    parts = [_blocks(blocks) if blocks else Markup("<p>{}</p>").format(mrkdwn(str(content.get("text", ""))))]
    for attachment in _mappings(content.get("attachments")):
        color = str(attachment.get("color", ""))
        bar = color if re.fullmatch(r"#[0-9a-fA-F]{3,8}", color) else "#dddddd"
        inner = _blocks(_mappings(attachment.get("blocks"))) or mrkdwn(
            str(attachment.get("text") or attachment.get("fallback") or "")
        )
        parts.append(Markup('<div class="attachment" style="--bar:{}">{}</div>').format(bar, inner))
    return Markup('<div class="slack">{}</div>').format(Markup("").join(parts))


def _blocks(blocks: Any) -> Markup:
    return Markup("").join(_block(block) for block in blocks)


def _block(block: Mapping[str, Any]) -> Markup:
    match block.get("type"):
        case "header":
            return Markup("<h3>{}</h3>").format(_text(block.get("text")))
        case "section":
            text = Markup("<div>{}</div>").format(_text(block["text"])) if block.get("text") else Markup("")
            fields = Markup("").join(Markup("<div>{}</div>").format(_text(field)) for field in _parts(block, "fields"))
            return text + (Markup('<div class="fields">{}</div>').format(fields) if fields else Markup(""))
        case "context":
            inner = Markup(" ").join(_text(element) for element in _parts(block, "elements"))
            return Markup('<div class="context">{}</div>').format(inner)
        case "actions":
            return Markup(" ").join(_button(element) for element in _parts(block, "elements"))
        case "divider":
            return Markup("<hr>")
        case kind:
            return Markup('<p class="context">[{}]</p>').format(kind)


def _button(element: Mapping[str, Any]) -> Markup:
    url = str(element.get("url", ""))
    href = url if url.startswith(("https://", "http://")) else "#"
    return Markup('<a class="button" rel="noreferrer" href="{}">{}</a>').format(href, _text(element.get("text")))


def _text(text: Any) -> Markup:
    if not isinstance(text, Mapping):
        return escape(text or "")
    value = str(text.get("text", ""))
    return mrkdwn(value) if text.get("type") == "mrkdwn" else escape(value)


def mrkdwn(text: str) -> Markup:
    """Convert mrkdwn, Slack's markup language, to HTML."""
    parts = []
    for index, part in enumerate(_FENCE.split(text)):
        if index % 2:
            parts.append(Markup("<pre>{}</pre>").format(_plain(part)))
        else:
            parts.append(_inline(part))
    return Markup("").join(parts)


def _inline(text: str) -> Markup:
    pieces: list[Markup] = []
    end = 0
    for link in _LINK.finditer(text):
        pieces.append(_marked(text[end : link.start()]))
        label = _plain(link[2] or link[1])
        pieces.append(Markup('<a rel="noreferrer" href="{}">{}</a>').format(_plain(link[1]), label))
        end = link.end()
    pieces.append(_marked(text[end:]))
    return Markup("").join(pieces)


def _marked(text: str) -> Markup:
    html = str(escape(_plain(text)))
    for pattern, tag in _MARKS:
        html = pattern.sub(rf"<{tag}>\1</{tag}>", html)
    return Markup(html.replace("\n", "<br>"))  # noqa: S704 - the text is escaped above, and only fixed tags are added


def _plain(text: str) -> str:
    """Replace Slack's entities for `&`, `<` and `>` with these characters."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    """Return the mappings of a list. Other items can't be shown and are left out."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _parts(block: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return _mappings(block.get(name))


def _incident(content: Content) -> Markup:
    payload = _mapping(content.get("payload"))
    severity = str(payload.get("severity", ""))
    rows = [
        (name.replace("_", " "), payload.get(name)) for name in ("source", "component", "group", "class", "timestamp")
    ]
    rows += [(str(name).replace("_", " "), value) for name, value in _mapping(payload.get("custom_details")).items()]
    table = Markup("").join(
        Markup('<tr><th scope="row">{}</th><td>{}</td></tr>').format(name, value)
        for name, value in rows
        if value not in _EMPTY
    )
    links = Markup(" ").join(
        Markup('<a rel="noreferrer" href="{}">{}</a>').format(link["href"], link.get("text", link["href"]))
        for link in _mappings(content.get("links"))
        if str(link.get("href", "")).startswith(("https://", "http://"))
    )
    return Markup(
        '<div class="incident"><span class="tag {}">{}</span><h3>{}</h3><table>{}</table><p>{}</p></div>'
    ).format(severity, severity, payload.get("summary", content.get("event_action", "")), table, links)


def _card(content: Content) -> Markup:
    elements = Markup("").join(_element(element) for element in _mappings(content.get("body")))
    links = Markup(" ").join(
        Markup('<a rel="noreferrer" href="{}">{}</a>').format(action["url"], action.get("title", action["url"]))
        for action in _mappings(content.get("actions"))
        if str(action.get("url", "")).startswith(("https://", "http://"))
    )
    return Markup('<div class="card">{}<p>{}</p></div>').format(elements, links)


def _element(element: Mapping[str, Any]) -> Markup:
    match element.get("type"):
        case "Container":
            inner = Markup("").join(_element(item) for item in _parts(element, "items"))
            return Markup('<div class="box {}">{}</div>').format(element.get("style", ""), inner)
        case "RichTextBlock":
            inner = Markup("").join(_run(run) for run in _parts(element, "inlines"))
            return Markup("<div>{}</div>").format(inner)
        case "TextBlock":
            return Markup("<div>{}</div>").format(_run({**element, "text": unmarked(str(element.get("text", "")))}))
        case "FactSet":
            rows = (
                Markup('<tr><th scope="row">{}</th><td>{}</td></tr>').format(*map(unmarked, _fact(fact)))
                for fact in _parts(element, "facts")
            )
            return Markup("<table>{}</table>").format(Markup("").join(rows))
        case "CodeBlock":
            return Markup("<pre>{}</pre>").format(element.get("codeSnippet", ""))
        case kind:
            return Markup("<div>[{}]</div>").format(kind)


def _run(run: Mapping[str, Any]) -> Markup:
    classes = " ".join(str(run.get(part, "")).lower() for part in ("size", "weight", "fontType"))
    return Markup('<span class="{}">{}</span>').format(classes, run.get("text", ""))


def _fact(fact: Mapping[str, Any]) -> tuple[str, str]:
    return str(fact.get("title", "")), str(fact.get("value", ""))


def unmarked(text: str) -> str:
    """Return the text that a Markdown reader shows: without backslashes that escape, and with HTML entities decoded."""
    return _ESCAPED.sub(lambda found: found[1] or unescape(found[0]).replace("\xa0", " "), text)


def _data(content: Content) -> Markup:
    return Markup('<pre class="data">{}</pre>').format("\n".join(_data_lines(content)))


def _card_lines(content: Content) -> Iterator[str]:
    queue = _mappings(content.get("body"))
    while queue:
        element, *queue = queue
        if element.get("type") == "Container":
            queue = [*_parts(element, "items"), *queue]
            continue
        lines = [
            "".join(str(run.get("text", "")) for run in _parts(element, "inlines")),
            unmarked(str(element.get("text", ""))),
            *(unmarked(": ".join(_fact(fact))) for fact in _parts(element, "facts")),
            str(element.get("codeSnippet", "")),
        ]
        yield from filter(None, [*lines, " "])
    for action in _mappings(content.get("actions")):
        yield f"{action.get('title', '')}: {action.get('url', '')}"


def _data_lines(content: Content) -> Iterator[str]:
    yield json.dumps(content, indent=2, ensure_ascii=False, default=str)


def _slack_lines(content: Content) -> Iterator[str]:
    blocks = _mappings(content.get("blocks"))
    if not blocks:
        yield _plain(_LINK.sub(lambda link: f"{link[2] or ''} ({link[1]})", str(content.get("text", ""))))
        yield ""
    attached = [block for part in _mappings(content.get("attachments")) for block in _mappings(part.get("blocks"))]
    for block in [*blocks, *attached]:
        texts = [block["text"]] if isinstance(block.get("text"), Mapping) else []
        for text in [*texts, *_parts(block, "fields"), *_parts(block, "elements")]:
            inner = text["text"] if isinstance(text.get("text"), Mapping) else text
            shown = _LINK.sub(lambda link: f"{link[2] or ''} ({link[1]})", str(inner.get("text", "")))
            yield _plain(shown.replace("```", "").replace("*\n", ": ").replace("*", ""))
            if text.get("url"):
                yield f"  {text['url']}"
        yield ""


def _incident_lines(content: Content) -> Iterator[str]:
    payload = _mapping(content.get("payload"))
    yield f"[{payload.get('severity', '')}] {payload.get('summary', '')}"
    yield ""
    for name, value in {**payload, **_mapping(payload.get("custom_details"))}.items():
        if name not in {"summary", "custom_details", "severity"} and value not in _EMPTY:
            yield f"{str(name).replace('_', ' ')}: {value}"
    for link in _mappings(content.get("links")):
        yield f"{link.get('text', '')}: {link.get('href', '')}"
