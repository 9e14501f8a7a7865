"""No function takes more than linear time for text from outside: 100 kB of any white space or punctuation is harmless."""

from __future__ import annotations

import gc
import string
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from channels.common.text import cut
from channels.contract import Message, UnknownRecipient
from channels.email.mime import compose, thread_headers
from channels.registry import CHANNEL_TYPES
from channels.slack.mrkdwn import cut_mrkdwn, escape_mrkdwn
from channels.teams.markdown import escape_markdown
from dispatcher.observability.logs import masked
from dispatcher.preview.html import plain_text, to_html
from dispatcher.preview.terminal import to_panel
from dispatcher.rendering.cause import cause_of, normalized
from dispatcher.rendering.context import context_of
from dispatcher.rendering.flyte_template import TooLarge, as_jinja, as_text, substitute
from dispatcher.rendering.mail_clients import unsupported
from dispatcher.rendering.styles import NotInlined, inline
from dispatcher.rendering.text import clean, one_line
from dispatcher.rendering.traceback import summarize
from tests.support.builders import NOW, a_launch_plan, an_event

SPACES = [char for char in map(chr, range(sys.maxunicode)) if char.isspace()]
OTHERS = ["\0", "\x1b", "\u200b", "\u200d", "\u0301", "\u202e", "\ufeff", "\U0001f1e9", "a", "中"]
PIECES = [
    *("\n ", " \n", "\u2003\n", "\t ", "{{", "{{ a", "{%", "{#", "<a", "<a ", "<!", "</", "<p>", "<style>", "<script"),
    *("<a href=", "<a href='http://x", "<http://", "<http://a|", "<link ", "<img ", '<a "', "background:", "position:"),
    *("&", "&amp", "```", "*a", "_a", "~a", "`a", "[a](", "\x1b[", "\x1b]", "=?", "a@", "a.", '"a"@'),
    *('File "', 'File "a", line 1\n', "Node[", "Node[a", "a.Error ", "Message:\n", "|", "[1/1] currentAttempt"),
]
TEXTS = [*string.punctuation, *SPACES, *OTHERS, *PIECES]
CPU_PER_BYTE = 5e-6
"""Seconds. Linear functions need a tenth of it. For 10 kB, quadratic ones needed twice to ten times as
much."""
SLACK = CHANNEL_TYPES["slack"]
CONTEXT = context_of(an_event(error={"message": "boom"}), "https://flyte.example.com/console")


def mail(text: str) -> None:
    content = {"subject": text, "text": text, "html": text}
    message = Message(key="k", recipients=("a@example.com",), content=content, created_at=NOW)
    compose(message, "Flyte <flyte@example.com>")
    CHANNEL_TYPES["email"].form.problems(content)


def template(text: str) -> None:
    with suppress(TooLarge):
        substitute(text, CONTEXT, budget=60_000)
    as_jinja(text)


def style_sheet(text: str) -> None:
    with suppress(NotInlined):
        inline(f"{text}<p>x</p>", "p {color: red}")


def slack_section(text: str) -> dict[str, Any]:
    return {"text": "", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}}]}


def address(text: str) -> None:
    channels: dict[str, dict[str, Any]] = {
        "email": {"host": "localhost", "security": "none", "from": "Flyte <flyte@example.com>"},
        "slack": {"token": "example"},
        "webhook": {"targets": {"x": {"url": "https://example.com/x"}}},
    }
    for name, options in channels.items():
        kind = CHANNEL_TYPES[name]
        channel = kind.open(kind.config.model_validate(options))
        with suppress(UnknownRecipient):
            channel.address(text)


def whole_event(text: str) -> None:
    named = a_launch_plan(text, text)
    event = an_event(
        launch_plan=named,
        workflow=named,
        error={"message": text, "code": text, "kind": text},
        principal=text,
        labels={text: text},
        url=f"https://x/{text}",
    )
    context_of(event, "https://x")


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "clean": clean,
    "one_line": one_line,
    "cut": lambda text: cut(text, 60_000),
    "cut_mrkdwn": lambda text: cut_mrkdwn(escape_mrkdwn(text), 60_000),
    "escape_mrkdwn": escape_mrkdwn,
    "escape_markdown": escape_markdown,
    "summarize": summarize,
    "cause_of": lambda text: cause_of(an_event(error={"message": f"{text}: {text}", "code": text})),
    "normalized": lambda text: normalized(text, "a1-b2"),
    "template": template,
    "as_text": as_text,
    "whole_event": whole_event,
    "mail": mail,
    "thread_headers": lambda text: thread_headers({"launch_plan": text, "domain": text, "project": text}, "x.org"),
    "address": address,
    "masked": lambda text: masked(f"@{text}@b.example"),
    "unsupported": lambda text: list(unsupported(text)),
    "style_sheet": style_sheet,
    "slack_html": lambda text: to_html("slack", SLACK, slack_section(text)),
    "slack_text": lambda text: plain_text(SLACK, slack_section(text)),
    "slack_panel": lambda text: to_panel("slack", SLACK, slack_section(text)),
}


SLOW = frozenset(
    {"mail", "thread_headers", "escape_markdown", "masked", "unsupported", "style_sheet", "slack_html", "slack_panel"}
)
"""Functions that need a microsecond a byte. They get a tenth of the text, so that the test takes few seconds."""


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    """A full collection of the objects of all tests takes longer than a function may."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_linear_time_for_every_kind_of_text(name: str) -> None:
    size = 10_000 if name in SLOW else 100_000
    for piece in TEXTS:
        if "\0" in piece and name == "whole_event":
            continue  # refused before
        text = f"<a x{piece * (size // len(piece))}y<"
        began = time.thread_time()
        FUNCTIONS[name](text)
        took = time.thread_time() - began
        assert took < size * CPU_PER_BYTE, (piece, size, took)
