"""What each provider takes: the budgets that rendering keeps, and the check that it kept them.

Sources: Slack's block reference and chat.postMessage, PagerDuty's Events API v2 overview, RFC 5322 2.1.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from channels.contract import Content

SLACK_TEXT = 4000
SLACK_BLOCKS = 50
SLACK_BUDGETS = {"header": 150, "section": 3000, "field": 2000, "context": 2000, "button": 75, "url": 3000}
PAGERDUTY_SUMMARY = 1024
PAGERDUTY_FIELD = 1000
PAGERDUTY_DETAIL = 20_000
PAGERDUTY_EVENT = 512 * 1024
MAIL_SUBJECT = 200
MAIL_TEXT = 60_000
MAIL_HTML = 100_000
"""Gmail clips longer mails."""
_SEVERITIES = {"critical", "error", "warning", "info"}


def lint(channel: str, content: Content) -> list[str]:
    """What the provider would refuse, a sentence each; empty where it would take the message."""
    checks = {"email": _mail, "slack": _slack, "pagerduty": _pagerduty}
    return list(checks[channel](content)) if channel in checks else []


def _mail(content: Content) -> Iterator[str]:
    subject, text, html = (str(content.get(part, "")) for part in ("subject", "text", "html"))
    if not subject.strip():
        yield "the mail has no subject"
    if any(character in subject for character in "\r\n\0"):
        yield "the subject holds a line break"
    if not text.strip():
        yield "the mail has no text part"
    if len(html.encode(errors="replace")) > MAIL_HTML:
        yield f"the HTML part is larger than {MAIL_HTML} bytes: Gmail would clip it"


def _slack(content: Content) -> Iterator[str]:
    if not str(content.get("text", "")).strip():
        yield "no text: notifications and screen readers would have nothing to say"
    if _length(content.get("text", "")) > SLACK_TEXT:
        yield f"text: longer than {SLACK_TEXT}"
    attached = [attachment.get("blocks", ()) for attachment in content.get("attachments", ())]
    for blocks in (content.get("blocks", ()), *attached):
        if len(blocks) > SLACK_BLOCKS:
            yield f"more than {SLACK_BLOCKS} blocks"
        for index, block in enumerate(blocks):
            yield from (f"blocks[{index}] {problem}" for problem in _block(block))


def _block(block: Mapping[str, Any]) -> Iterator[str]:
    kind = block.get("type", "")
    if kind in {"header", "section"}:
        if "text" not in block and not block.get("fields"):
            yield f"({kind}) is empty"
        yield from _text(block.get("text"), SLACK_BUDGETS[kind], kind)
    fields = block.get("fields", ())
    if len(fields) > 10:
        yield "(section) has more than 10 fields"
    for field in fields:
        yield from _text(field, SLACK_BUDGETS["field"], "field")
    elements = block.get("elements", ())
    if len(elements) > (10 if kind == "context" else 25):
        yield f"({kind}) has too many elements"
    for element in elements:
        if element.get("type") == "button":
            yield from _text(element.get("text"), SLACK_BUDGETS["button"], "button")
            if len(str(element.get("url", ""))) > SLACK_BUDGETS["url"]:
                yield "(button) has a url that is too long"
        elif kind == "context":
            yield from _text(element, SLACK_BUDGETS["context"], "context")


def _text(text: Any, budget: int, role: str) -> Iterator[str]:
    if not isinstance(text, Mapping):
        return
    if not text.get("text"):
        yield f"({role}) has an empty text"
    elif _length(text["text"]) > budget:
        yield f"({role}) is longer than {budget}"


def _pagerduty(content: Content) -> Iterator[str]:
    payload = content.get("payload", {})
    if not payload.get("summary"):
        yield "payload.summary is missing"
    if _length(payload.get("summary", "")) > PAGERDUTY_SUMMARY:
        yield f"payload.summary is longer than {PAGERDUTY_SUMMARY}"
    if not payload.get("source"):
        yield "payload.source is missing"
    if payload.get("severity") not in _SEVERITIES:
        yield f"payload.severity is none of {', '.join(sorted(_SEVERITIES))}"
    if len(orjson.dumps(content)) > PAGERDUTY_EVENT:
        yield f"the event is larger than {PAGERDUTY_EVENT} bytes"


def _length(text: str) -> int:
    """As Slack and PagerDuty count: UTF-16 units."""
    return len(str(text).encode("utf-16-le", "replace")) // 2
