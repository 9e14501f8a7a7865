"""What each documented answer of PagerDuty means: the outcome, whom it concerns, and the advice in the reason."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest

from channels.contract import ChannelError, InDoubt, Later, Message, Misconfigured, Never
from channels.pagerduty.channel import PagerDutyChannel, PagerDutyConfig
from tests.support.http import ScriptedHttp, answer

KEY = "0123456789abcdef" * 2
PAYLOAD = {"summary": "train.daily failed", "source": "p/d/n", "severity": "error"}
MESSAGE = Message(
    key="k1",
    recipients=("ml",),
    content={"event_action": "trigger", "payload": PAYLOAD},
    created_at=datetime(2026, 11, 20, tzinfo=UTC),
)


def refusal(*errors: str) -> bytes:
    quoted = ",".join(f'"{error}"' for error in errors)
    return b'{"status":"invalid event","message":"Event object is invalid","errors":[%s]}' % quoted.encode()


class Row(NamedTuple):
    answer: bytes
    outcome: type[ChannelError]
    advice: str
    provider_wide: bool = False
    retry_after: timedelta | None = None


URL, TEMPLATE, SERVICE = "channels.pagerduty.events_url", "pagerduty/event.yaml", "ml in channels.pagerduty.services"
NOT_NOW = "takes no more events of this service"
ROWS = {
    # "Events API v2 Overview", section "Response Codes & Retry Logic", and the bodies in PagerDuty's OpenAPI document
    "400 key": Row(answer(400, refusal("Invalid routing key")), Never, SERVICE),
    "400 no key": Row(answer(400, refusal("'routing_key' is missing or blank")), Never, SERVICE),
    "400 event": Row(answer(400, refusal("'payload.severity' is invalid")), Never, TEMPLATE),
    "400 JSON": Row(answer(400, b'{"status":"Unrecognized object","errors":["JSON parse error"]}'), Never, TEMPLATE),
    "429": Row(answer(429, b"Request Limit Exceeded"), Later, NOT_NOW, retry_after=timedelta(seconds=30)),
    "429 pause": Row(answer(429, b"", Retry_After="7"), Later, NOT_NOW, retry_after=timedelta(seconds=7)),
    "500": Row(answer(500, b"{}"), Later, "in trouble: 500", provider_wide=True),
    "503": Row(answer(503, b"", Retry_After="9"), Later, "trouble: 503", True, timedelta(seconds=9)),
    # "Size Limits": 512 KB
    "413": Row(answer(413), Never, TEMPLATE),
    # what proxies, gateways and other servers answer
    "401": Row(answer(401, b"no"), Misconfigured, URL, provider_wide=True),
    "403": Row(answer(403), Misconfigured, URL, provider_wide=True),
    "404": Row(answer(404), Misconfigured, URL, provider_wide=True),
    "405": Row(answer(405), Misconfigured, URL, provider_wide=True),
    "407": Row(answer(407), Misconfigured, "HTTPS_PROXY", provider_wide=True),
    "408": Row(answer(408), Later, "in trouble: 408", provider_wide=True),
    "304": Row(answer(304), Misconfigured, URL, provider_wide=True),
    "200": Row(answer(200, b"<html>"), InDoubt, URL),
    "no answer": Row(b"", InDoubt, "it may have taken the event"),
    "half an answer": Row(answer(202, b"a" * 50)[:-20], InDoubt, "it may have taken the event"),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
async def test_each_answer_has_its_outcome_and_its_advice_after_one_request(row: Row) -> None:
    async with ScriptedHttp(steps=[row.answer]) as server:
        services = {"ml": {"routing_key": KEY}}
        channel = PagerDutyChannel(
            PagerDutyConfig.model_validate({"events_url": server.url, "services": services, "timeout": 5})
        )
        with pytest.raises(row.outcome) as caught:
            await channel.send(MESSAGE)
        await channel.aclose()

    assert type(caught.value) is row.outcome
    assert row.advice in caught.value.reason
    assert getattr(caught.value, "provider_wide", False) == row.provider_wide
    assert getattr(caught.value, "retry_after", None) == row.retry_after
    assert len(server.requests) == 1  # pdpyras' own retries sleep, and after a 429 they never end


async def test_an_accepted_event_has_a_receipt() -> None:
    async with ScriptedHttp(default=answer(202, b'{"status":"success","dedup_key":"k1"}')) as server:
        services = {"ml": {"routing_key": KEY}}
        channel = PagerDutyChannel(PagerDutyConfig.model_validate({"events_url": server.url, "services": services}))
        receipt = await channel.send(MESSAGE)
        await channel.aclose()

    assert (receipt.answer.status, receipt.reference) == ("202", {"dedup_key": "k1"})
