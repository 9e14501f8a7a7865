"""What each answer of PagerDuty means for an event, and what an operator can do about it.

The documented answers are in PagerDuty's developer documentation, "Events API v2 Overview", section "Response Codes &
Retry Logic": 202, 400, 429, 5xx and network errors.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from channels.common.retry_after import retry_after
from channels.contract import EXCERPT, Answer, ChannelError, InDoubt, Later, Misconfigured, Never

RATE_LIMIT_PAUSE = timedelta(seconds=30)
"""The pause after a 429 without `Retry-After` (PagerDuty, "Events API v2 Rate Limits": retry 30 seconds apart)."""
MASK = "********"


@dataclass(frozen=True, slots=True)
class Response:
    """PagerDuty's answer to an event."""

    status: int
    headers: Mapping[str, str]
    text: str
    """The start of the answer's body, decoded as UTF-8."""


class Unreachable(Exception):
    """The request was not sent."""


class NoAnswer(Exception):
    """The request was sent, but no complete answer arrived, so it is unknown whether PagerDuty received the event."""


@dataclass(frozen=True, slots=True)
class _Meaning:
    statuses: Container[int]
    fault: Literal["event", "service", "provider", "settings", "unknown"]
    """Who must act: `event`: this event is refused. `service`: this PagerDuty service takes no event now. `provider`:
    PagerDuty fails for all services. `settings`: something refuses the dispatcher itself. `unknown`: it is unknown
    whether PagerDuty took the event."""
    reason: str
    word: str = ""
    """The meaning applies only if the answer's text contains this word, in upper or lower case."""


_MEANINGS = (
    _Meaning(
        {400},
        "event",
        "PagerDuty doesn't know the routing key: check the key of {service} in channels.pagerduty.services",
        word="routing",
    ),
    _Meaning({400}, "event", "PagerDuty refused the event: {text}; check the template pagerduty/event.yaml"),
    _Meaning({413}, "event", "the event is too large for PagerDuty: shorten the template pagerduty/event.yaml"),
    _Meaning({429}, "service", "PagerDuty takes no more events of this service for now"),
    _Meaning({408, *range(500, 600)}, "provider", "PagerDuty is in trouble: {status}"),
    _Meaning({407}, "settings", "the proxy refuses the login: check HTTPS_PROXY"),
    _Meaning(
        range(300, 500),
        "settings",
        "channels.pagerduty.events_url answered {status}, as PagerDuty never does: check this URL and HTTPS_PROXY",
    ),
    _Meaning(
        range(1000),
        "unknown",
        "channels.pagerduty.events_url answered {status}, as PagerDuty never does: check this URL",
    ),
)
"""The first row that fits an answer is its meaning."""


def answer_of(response: Response, routing_key: str) -> Answer:
    """Return the part of the response that the ledger stores. The routing key is masked."""
    text = " ".join(response.text.split()).replace(routing_key, MASK)[:EXCERPT]
    return Answer(str(response.status), text)


def error_of(response: Response, answer: Answer, service: str) -> ChannelError | None:
    """Return what the answer means; None if PagerDuty accepted the event. `service`: the service's alias."""
    if response.status == 202:
        return None
    found = next(row for row in _MEANINGS if response.status in row.statuses and row.word in answer.text.lower())
    reason = found.reason.format(status=response.status, text=answer.text or response.status, service=service)
    delay = retry_after(response.headers)
    match found.fault:
        case "event":
            return Never(reason, answer=answer)
        case "service":
            return Later(reason, answer=answer, retry_after=RATE_LIMIT_PAUSE if delay is None else delay)
        case "provider":
            return Later(reason, answer=answer, retry_after=delay, provider_wide=True)
        case "settings":
            return Misconfigured(reason, answer=answer, retry_after=delay)
        case "unknown":
            return InDoubt(reason, answer=answer)


OUTCOMES = """
| PagerDuty | 202 | 429, 5xx, 408, no connection; [other 3xx and 4xx](#pagerduty) | 400, 413 | no answer, any other answer |
"""
