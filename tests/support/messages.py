"""Rendered messages: their snapshots, hostile texts for them, and what markup they contain."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
from hypothesis import strategies as st

from channels.contract import Message
from channels.email.mime import compose
from tests.support.builders import NOW

SNAPSHOTS = Path(__file__).parents[1] / "snapshots"


def message_files(channel: str, content: Any) -> dict[str, str]:
    """The message as text, by file name: a mail's bytes, text and HTML, or another channel's JSON."""
    if channel == "email":
        message = Message(key="golden", recipients=("dev-team@example.com",), content=content, created_at=NOW)
        return {
            f"{channel}.eml": compose(message, "Flyte <flyte@example.com>").decode("ascii"),
            f"{channel}.txt": f"Subject: {content['subject']}\n\n{content['text']}",
            f"{channel}.html": content["html"],
        }
    return {f"{channel}.json": orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()}


def check_snapshots(label: str, channel: str, content: Any) -> None:
    """Compare the message with its snapshots. REWRITE_SNAPSHOTS=1 rewrites them."""
    for name, text in message_files(channel, content).items():
        file = SNAPSHOTS / f"{label}.{name}"
        if os.environ.get("REWRITE_SNAPSHOTS"):
            file.write_bytes(text.encode())
        assert text.encode() == file.read_bytes()


any_text = st.text(st.characters() | st.sampled_from("<>&`*_~|@#\"'{}%\r\n\0\u202e\u200d\ud800\x1b"), max_size=80)
hostile_text = any_text | st.sampled_from(
    [
        "<!channel> <@U123> <https://evil.example|click>",
        "{{ 7 * 7 }} {% for x in range(10**9) %}{% endfor %}",
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "a\r\nBcc: victim@example.com",
        "``` ```<!here>",
        "&lt;!channel&gt;",
        "👩‍👩‍👧‍👦" * 400,
        "x" * 1_000_000,
        "é" * 5000,
        "&" * 100_000,
        "``" + "`" * 4000,
        "failed at Node[<!here>]. Node[n0]",
        'Traceback (most recent call last):\n  File "<!channel>", line 1, in <b>\n    <i>&\x1b[31m\nBoom: <@U1>',
    ]
)
names = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="/"), min_size=1, max_size=60)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]


SLACK_MARKUP = re.compile(r"<[^>]*>")


def slack_strings(node: Any, kind: str) -> list[str]:
    """The texts of that type in a Slack message, and its top-level text."""
    if isinstance(node, dict):
        own = [node["text"]] if node.get("type") == kind or ("attachments" in node and "text" in node) else []
        return own + [text for value in node.values() for text in slack_strings(value, kind)]
    return [text for value in node for text in slack_strings(value, kind)] if isinstance(node, list) else []
