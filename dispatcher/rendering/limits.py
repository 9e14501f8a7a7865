"""The providers' limits on messages. Rendering cuts texts to these limits; `lint` checks a whole message."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:  # for types only: the process that renders operators' templates does not import pydantic
    from channels.contract import Content

# Slack's limits. Lengths are in UTF-16 units, because Slack counts these. Sources, on docs.slack.dev: the page of each
# block and object under "Blocks", and the page of chat.postMessage.
SLACK_TEXT = 4000
"""Maximum length of a message's `text`. chat.update refuses longer texts. chat.postMessage cuts texts only after 40,000
characters, but Slack recommends this limit."""
SLACK_BLOCKS = 50
SLACK_FIELDS = 10
SLACK_BUDGETS = {"header": 150, "section": 3000, "field": 2000, "context": 2000, "button": 75, "url": 3000}
SLACK_ELEMENTS = {"context": 10, "actions": 25}

# PagerDuty's limits. Sources: the overview of Events API v2 and its OpenAPI schema. The limits of single fields are the
# dispatcher's choice.
PAGERDUTY_SUMMARY = 1024
PAGERDUTY_FIELD = 1000
PAGERDUTY_DETAIL = 20_000
PAGERDUTY_URL = 2000
PAGERDUTY_EVENT = 512 * 1024
PAGERDUTY_SEVERITIES = ("critical", "error", "warning", "info")
PAGERDUTY_ACTIONS = ("trigger", "acknowledge", "resolve")

# Teams' limits. Source: Microsoft's Teams documentation, "Create and send messages". The limits of single texts are the
# dispatcher's choice.
TEAMS_MESSAGE = 28 * 1024
"""Maximum number of bytes of a message, which consists of the card and the JSON around the card."""
TEAMS_ENVELOPE = 150
"""Number of the message's bytes that are reserved for the JSON around the card."""
TEAMS_TEXT = 3000
TEAMS_URL = 2000

WEBHOOK_TEXT = 20_000
WEBHOOK_BODY = 256 * 1024
"""Maximum number of bytes of a webhook request's body. This limit is the dispatcher's choice."""

MAIL_SUBJECT = 200
"""Maximum number of characters of a mail's subject. RFC 5322 (2.1.1) allows 998 in a line, but mail programs show
fewer."""
MAIL_TEXT = 60_000
MAIL_HTML = 100_000
"""Maximum number of bytes of a mail's HTML part. Gmail cuts off mails that are larger than 102 kB."""


def lint(channel: str, content: Content) -> list[str]:
    """Return why the provider would refuse the message, as one sentence per reason; empty if the provider would accept
    it.
    """
    checks = {"email": _mail, "slack": _slack, "pagerduty": _pagerduty, "teams": _teams}
    largest = {"pagerduty": PAGERDUTY_EVENT, "teams": TEAMS_MESSAGE - TEAMS_ENVELOPE, "webhook": WEBHOOK_BODY}
    try:
        body = orjson.dumps(content)
    except TypeError as error:
        return [f"the message is no JSON: {error}"]
    too_large = [f"it is larger than {largest[channel]} bytes"] if len(body) > largest.get(channel, len(body)) else []
    return [*too_large, *(checks[channel](content) if channel in checks else ())]


def _mail(content: Content) -> Iterator[str]:
    subject, text, html = (str(content.get(part, "")) for part in ("subject", "text", "html"))
    if not subject.strip():
        yield "the mail has no subject"
    if any(character in subject for character in "\r\n\0"):
        yield "the subject contains a line break"
    if not text.strip():
        yield "the mail has no text part"
    if not html.strip():
        yield "the mail has no HTML part"
    if len(html.encode()) > MAIL_HTML:
        yield f"the HTML part is larger than {MAIL_HTML} bytes: Gmail would clip it"


def _slack(content: Content) -> Iterator[str]:
    if not str(content.get("text", "")).strip():
        yield "no text: notifications and screen readers would have nothing to say"
    if _length(content.get("text", "")) > SLACK_TEXT:
        yield f"text: longer than {SLACK_TEXT}"
    attachments = _items(content.get("attachments"))
    for attachment in attachments:
        if not any(attachment.get(part) for part in ("blocks", "text", "fallback")):
            yield "an attachment without blocks"
    for blocks in (_items(content.get("blocks")), *(_items(attachment.get("blocks")) for attachment in attachments)):
        if len(blocks) > SLACK_BLOCKS:
            yield f"more than {SLACK_BLOCKS} blocks"
        for index, block in enumerate(blocks):
            yield from (f"blocks[{index}] {problem}" for problem in _block(block))


def _block(block: Mapping[str, Any]) -> Iterator[str]:
    kind = str(block.get("type", ""))
    if not kind:
        yield "has no type"
    if kind in {"header", "section"}:
        if not block.get("text") and not block.get("fields"):
            yield f"({kind}) is empty"
        yield from _text(block.get("text"), SLACK_BUDGETS[kind], kind)
    if kind == "header" and _kind(block.get("text")) != "plain_text":
        yield "(header) takes plain_text only"
    fields = _items(block.get("fields"))
    if len(fields) > SLACK_FIELDS:
        yield f"(section) has more than {SLACK_FIELDS} fields"
    for field in fields:
        yield from _text(field, SLACK_BUDGETS["field"], "field")
    if kind in SLACK_ELEMENTS:
        elements = _items(block.get("elements"))
        if not elements:
            yield f"({kind}) is empty"
        if len(elements) > SLACK_ELEMENTS[kind]:
            yield f"({kind}) has more than {SLACK_ELEMENTS[kind]} elements"
        for element in elements:
            yield from (
                _button(element) if element.get("type") == "button" else _text(element, SLACK_BUDGETS["context"], kind)
            )


def _button(button: Mapping[str, Any]) -> Iterator[str]:
    yield from _text(button.get("text"), SLACK_BUDGETS["button"], "button")
    if _kind(button.get("text")) != "plain_text":
        yield "(button) takes plain_text only"
    url = str(button.get("url", ""))
    if len(url) > SLACK_BUDGETS["url"]:
        yield "(button) has a url that is too long"
    if url and not url.startswith(("https://", "http://")):
        yield "(button) has a url that is no link"


def _text(text: Any, budget: int, role: str) -> Iterator[str]:
    if not isinstance(text, Mapping) or text.get("type") not in {"mrkdwn", "plain_text"}:
        return
    if not text.get("text"):
        yield f"({role}) has an empty text"
    elif _length(text["text"]) > budget:
        yield f"({role}) is longer than {budget}"


def _pagerduty(content: Content) -> Iterator[str]:
    if content.get("event_action") not in PAGERDUTY_ACTIONS:
        yield f"event_action is none of {', '.join(PAGERDUTY_ACTIONS)}"
    payload = content.get("payload")
    payload = payload if isinstance(payload, Mapping) else {}
    if not payload.get("summary"):
        yield "payload.summary is missing"
    if _length(payload.get("summary", "")) > PAGERDUTY_SUMMARY:
        yield f"payload.summary is longer than {PAGERDUTY_SUMMARY}"
    if not payload.get("source"):
        yield "payload.source is missing"
    if payload.get("severity") not in PAGERDUTY_SEVERITIES:
        yield f"payload.severity is none of {', '.join(PAGERDUTY_SEVERITIES)}"
    if "timestamp" in payload and not _has_zone(str(payload["timestamp"])):
        yield "payload.timestamp is no ISO 8601 time with a zone"
    for link in _items(content.get("links")):
        if not str(link.get("href", "")).startswith(("https://", "http://")):
            yield "a link without href"


def _teams(content: Content) -> Iterator[str]:
    if content.get("type") != "AdaptiveCard":
        yield "type is not AdaptiveCard"
    if not isinstance(content.get("version"), str):
        yield "version is missing: a text, as '1.4'"
    if not _items(content.get("body")):
        yield "the card has no body"
    for action in _items(content.get("actions")):
        if not action.get("type"):
            yield "an action without type"
        if action.get("type") == "Action.OpenUrl" and not str(action.get("url", "")).startswith(
            ("https://", "http://")
        ):
            yield "an action whose url is no link"


def _items(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _kind(text: Any) -> str:
    return str(text.get("type", "")) if isinstance(text, Mapping) else ""


def _has_zone(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _length(text: object) -> int:
    return len(str(text).encode("utf-16-le", "replace")) // 2
