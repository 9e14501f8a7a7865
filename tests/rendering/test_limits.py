"""`lint` reports everything for which a provider would refuse a message."""

from __future__ import annotations

from typing import Any

import pytest

from channels.registry import CHANNEL_TYPES
from dispatcher.model.phase import Phase
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event

FAILED = sample_event(Phase.FAILED)
CARD = Renderer(CHANNEL_TYPES).render("teams", FAILED)
MAIL, SLACK, INCIDENT = (Renderer(CHANNEL_TYPES).render(channel, FAILED) for channel in ("email", "slack", "pagerduty"))


def _block(**block: Any) -> dict[str, Any]:
    return {"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "x"}, **block}]}


def _text(text: str, kind: str = "mrkdwn") -> dict[str, str]:
    return {"type": kind, "text": text}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"text": ""}, "no text"),
        ({"text": "😀" * 2001}, "text: longer than 4000"),
        ({"attachments": [{"color": "#fff"}]}, "an attachment without blocks"),
        ({"blocks": [{"type": "divider"}] * 51}, "more than 50 blocks"),
        ({"attachments": [{"blocks": [{"type": "divider"}] * 51}]}, "more than 50 blocks"),
        ({"blocks": [{}]}, "has no type"),
        ({"blocks": [{"type": "section"}]}, "(section) is empty"),
        ({"blocks": [{"type": "header", "text": _text("x")}]}, "plain_text only"),
        ({"blocks": [{"type": "header", "text": _text("x" * 151, "plain_text")}]}, "longer than 150"),
        (_block(text=_text("x" * 3001)), "longer than 3000"),
        (_block(text=_text("")), "empty text"),
        (_block(fields=[_text("x")] * 11), "more than 10 fields"),
        (_block(fields=[_text("x" * 2001)]), "(field) is longer than 2000"),
        (_block(type="context"), "(context) is empty"),
        (_block(type="context", elements=[_text("x")] * 11), "more than 10 elements"),
        (_block(type="actions", elements=[{"type": "button", "text": _text("x")}]), "plain_text only"),
        (_block(type="actions", elements=[{"type": "button", "url": "javascript:x"}]), "no link"),
        (_block(type="actions", elements=[{"type": "button", "url": "https://x/" + "y" * 3000}]), "too long"),
    ],
)
def test_lint_reports_what_slack_would_refuse(change: dict[str, Any], expected: str) -> None:
    assert CHANNEL_TYPES["slack"].form.problems(SLACK) == []
    assert any(expected in problem for problem in CHANNEL_TYPES["slack"].form.problems({**SLACK, **change}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"event_action": "shout"}, "event_action"),
        ({"payload": "x"}, "summary is missing"),
        ({"payload": {**INCIDENT["payload"], "summary": ""}}, "summary is missing"),
        ({"payload": {**INCIDENT["payload"], "summary": "x" * 1025}}, "longer than 1024"),
        ({"payload": {**INCIDENT["payload"], "source": ""}}, "source is missing"),
        ({"payload": {**INCIDENT["payload"], "severity": "bad"}}, "severity is none of"),
        ({"payload": {**INCIDENT["payload"], "timestamp": "2026-11-20T09:14:21"}}, "with a zone"),
        ({"payload": {**INCIDENT["payload"], "timestamp": "yesterday"}}, "with a zone"),
        ({"payload": {**INCIDENT["payload"], "custom_details": {"x": "y" * 600_000}}}, "larger than 524288 bytes"),
        ({"links": [{"text": "x"}]}, "without href"),
        ({"client": "\ud800"}, "no JSON"),
    ],
)
def test_lint_reports_what_pagerduty_would_refuse(change: dict[str, Any], expected: str) -> None:
    assert CHANNEL_TYPES["pagerduty"].form.problems(INCIDENT) == []
    assert any(expected in problem for problem in CHANNEL_TYPES["pagerduty"].form.problems({**INCIDENT, **change}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"subject": " "}, "no subject"),
        ({"subject": "a\r\nBcc: x"}, "line break"),
        ({"text": ""}, "no text part"),
        ({"html": ""}, "no HTML part"),
        ({"html": "é" * 60_000}, "larger than 100000 bytes"),
        ({"html": "\ud800"}, "no JSON"),
    ],
)
def test_lint_reports_what_a_mail_relay_or_gmail_would_refuse(change: dict[str, Any], expected: str) -> None:
    assert CHANNEL_TYPES["email"].form.problems(MAIL) == []
    assert any(expected in problem for problem in CHANNEL_TYPES["email"].form.problems({**MAIL, **change}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"type": "MessageCard"}, "not AdaptiveCard"),
        ({"version": 1.4}, "version is missing"),
        ({"body": []}, "no body"),
        ({"actions": [{}]}, "without type"),
        ({"actions": [{"type": "Action.OpenUrl", "url": "javascript:x"}]}, "no link"),
        ({"body": [{"type": "TextBlock", "text": "x" * 28_700}]}, "larger than"),
    ],
)
def test_lint_reports_what_teams_would_refuse(change: dict[str, Any], expected: str) -> None:
    assert CHANNEL_TYPES["teams"].form.problems(CARD) == []
    assert any(expected in problem for problem in CHANNEL_TYPES["teams"].form.problems({**CARD, **change}))


def test_lint_accepts_any_json_for_webhooks_up_to_a_size() -> None:
    assert CHANNEL_TYPES["webhook"].form.problems({"anything": [1, None]}) == []
    assert CHANNEL_TYPES["webhook"].form.problems({"anything": "x" * 300_000}) == ["it is larger than 262144 bytes"]
    assert "no JSON" in CHANNEL_TYPES["webhook"].form.problems({"anything": object()})[0]
