"""A message's note in every built-in channel: its reader sees it as it is, and the message stays within the limits."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from html import unescape
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.contract import NOTE, Message
from channels.email.limits import HTML
from channels.registry import CHANNEL_TYPES
from channels.slack.limits import BLOCKS, TEXT
from channels.teams.limits import MESSAGE
from dispatcher.preview.html import plain_text

NOW = datetime(2026, 11, 20, 23, 10, tzinfo=UTC)
NOTES = (
    st.text(
        st.characters(
            exclude_categories=["Cc", "Cs", "Zl", "Zp", "Zs", "Cf", "Mn"], include_characters=" <>&*_`~[](){}\"'\\"
        ),
        min_size=1,
        max_size=NOTE,
    )
    .map(str.strip)
    .filter(bool)
)
SECTION = {"type": "section", "text": {"type": "mrkdwn", "text": "failed"}}


def sent(channel: str, content: Any, note: str, **fields: Any) -> bytes:
    kind = CHANNEL_TYPES[channel]
    opened = kind.open(kind.config.model_validate(kind.example))
    recipient = {"slack": "#a", "email": "a@example.com"}.get(
        channel, next(iter((kind.example or {}).get(kind.aliases, {"": 0})))
    )
    return opened.wire_preview(
        Message(key="k1", recipients=(recipient,), content=content, created_at=NOW, note=note, **fields)
    ).body


@pytest.mark.parametrize("blocks", [0, 1, BLOCKS])
@settings(max_examples=25)
@given(note=NOTES)
def test_slack_shows_the_note_in_a_block_or_else_in_its_text(blocks: int, note: str) -> None:
    content = {"text": "x" * TEXT, **({"blocks": [SECTION] * blocks} if blocks else {})}
    body = orjson.loads(sent("slack", content, note))
    assert CHANNEL_TYPES["slack"].form.problems(body) == []
    if blocks:
        assert body["blocks"][-1]["elements"] == [{"type": "plain_text", "emoji": False, "text": note}]
    elif len(note) < 100:
        assert note.replace("```", "'''") in plain_text(CHANNEL_TYPES["slack"], body) or set(note) & set("*_~`")
    assert "<" not in body["text"]
    assert body["text"].startswith("xxx")


@settings(max_examples=25)
@given(note=NOTES, size=st.integers(0, MESSAGE - 400))
def test_teams_shows_the_note_after_the_headline(note: str, size: int) -> None:
    card = {
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": [{"type": "TextBlock", "text": text} for text in ("failed", "x" * size)],
    }
    body = sent("teams", card, note)
    assert len(body) <= MESSAGE
    shown = orjson.loads(body)["attachments"][0]["content"]["body"]
    assert [run["text"] for run in shown[1]["inlines"]] == [note]


@settings(max_examples=25)
@given(note=NOTES, large=st.booleans())
def test_pagerduty_has_the_note_in_its_details_even_if_the_others_are_too_large(note: str, large: bool) -> None:
    payload = {
        "summary": "failed",
        "source": "p",
        "severity": "error",
        "custom_details": {"error": "x" * 600_000 * large},
    }
    event = orjson.loads(sent("pagerduty", {"event_action": "trigger", "payload": payload}, note))
    assert event["payload"]["custom_details"]["note"] == note
    assert ("left_out" in event["payload"]["custom_details"]) == large


@settings(max_examples=25)
@given(note=NOTES, html=st.sampled_from(["<p>x</p>", "<html><BODY class='a'><p>x</p></body></html>", "x" * HTML]))
def test_a_mail_begins_with_the_note_in_both_parts(note: str, html: str) -> None:
    released = NOW + timedelta(hours=8)
    raw = sent("email", {"subject": "s", "text": "failed\n", "html": html}, note, released_at=released)
    mail: Any = message_from_bytes(raw, policy=default)
    assert mail["Date"].datetime == released
    text, rich = (part.get_content() for part in mail.iter_parts())
    assert text.splitlines() == [note, "", "failed"]
    assert len(rich.encode()) <= 102_400
    before, line, after = re.split(r"<p style=[^>]*>(.*?)</p>", rich, maxsplit=1)
    assert before in {"", "<html><BODY class='a'>"}
    assert "x" in after
    assert unescape(line) == note if len(note) < 300 else unescape(line).startswith(note[:100])


def test_a_webhook_gets_the_note_as_a_field_unless_its_template_has_one() -> None:
    assert orjson.loads(sent("webhook", {"text": "failed"}, "held")) == {"note": "held", "text": "failed"}
    assert orjson.loads(sent("webhook", {"note": "mine"}, "held")) == {"note": "mine"}
