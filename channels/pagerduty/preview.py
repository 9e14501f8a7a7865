"""Shows an event as PagerDuty's incident page does."""

from __future__ import annotations

from collections.abc import Iterator

from channels.common.drawing import Block, Heading, Links, Table, is_link, mapping, mappings
from channels.contract import Content

_NAMES = ("source", "component", "group", "class", "timestamp")
STYLE = """
.pagerduty{font:15px/22px "Helvetica Neue",Arial,sans-serif}
.pagerduty h3{font-size:17px}
.pagerduty .critical,.pagerduty .error{background:#c8102e}.pagerduty .warning{background:#9a5b00}.pagerduty .info{background:#1264a3}
.pagerduty a{color:#1264a3}
@media (prefers-color-scheme:dark){.pagerduty a{color:#5db0e8}}
"""


def draw(content: Content) -> Iterator[Block]:
    payload = mapping(content.get("payload"))
    summary = str(payload.get("summary", content.get("event_action", "")))
    yield Heading(summary, tag=str(payload.get("severity", "")))
    rows = [(name, payload.get(name)) for name in _NAMES]
    rows += [(str(name), value) for name, value in mapping(payload.get("custom_details")).items()]
    yield Table([(name.replace("_", " "), str(value)) for name, value in rows if value not in ("", None, {}, [])])
    links = [(str(link.get("text", "")), str(link.get("href", ""))) for link in mappings(content.get("links"))]
    yield Links([(text or url, url) for text, url in links if is_link(url)])
