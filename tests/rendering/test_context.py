"""What templates see: everything cleaned, in UTC, and of bounded size."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from dispatcher.model.event import Event
from dispatcher.rendering.context import LABELS, context_of

CONSOLE = "https://flyte.example.com/console"
EAST = timezone(timedelta(hours=2))
ENDED = datetime(2026, 11, 20, 9, 14, 21, tzinfo=UTC)


def told(**facts: Any) -> Event:
    """An event with only these facts beside what each must have."""
    execution = {"project": "p q", "domain": "d", "name": "n&é"}
    return Event.model_validate({"execution": execution, "phase": "FAILED", "occurred_at": ENDED, **facts})


def test_times_are_told_in_utc_whatever_zone_they_came_in() -> None:
    seen = context_of(told(occurred_at=ENDED.astimezone(EAST), started_at=ENDED - timedelta(minutes=14)), "")
    assert (seen.occurred_at, seen.timestamp) == ("2026-11-20 09:14:21 UTC", "2026-11-20T09:14:21+00:00")
    assert (seen.started_at, seen.duration) == ("2026-11-20 09:00:21 UTC", "14 minutes")


@pytest.mark.parametrize("zone", [timezone(timedelta(hours=14)), timezone(timedelta(hours=-14))])
@pytest.mark.parametrize("year", [1, 9999])
def test_the_ends_of_the_calendar_are_times_too(year: int, zone: timezone) -> None:
    edge = datetime(year, 1 if year == 1 else 12, 1 if year == 1 else 31, 12, tzinfo=zone)
    for event in (told(occurred_at=edge, started_at=ENDED), told(started_at=edge)):
        assert context_of(event, "").occurred_at.endswith(" UTC")


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(seconds=-5), ""),
        (timedelta(), ""),
        (timedelta(milliseconds=3), "under 1 second"),
        (timedelta(seconds=59.9), "59 seconds"),
        (timedelta(minutes=14, seconds=18), "14 minutes and 18 seconds"),
        (timedelta(hours=3), "3 hours"),
        (timedelta(hours=2, seconds=59), "2 hours"),
        (timedelta(days=2, hours=23, minutes=59), "2 days and 23 hours"),
    ],
)
def test_a_duration_is_told_at_a_glance(span: timedelta, words: str) -> None:
    assert context_of(told(occurred_at=ENDED, started_at=ENDED - span), "").duration == words


@pytest.mark.parametrize(
    ("url", "link"),
    [
        ("https://x.example/run?a=1&b=2#top", "https://x.example/run?a=1&b=2#top"),
        ("https://x.example/é", "https://x.example/%C3%A9"),
        ("javascript:alert(1)", None),
        ("https://x.example/|click>", None),
        ("https://x.example/\u202egnp.exe", None),
        ("https://x.example/\ud800", None),
        ("https://x.example/" + "&" * 1400, None),
        ("https://x.example/" + "x" * 9000, None),
        ("", None),
    ],
)
def test_only_what_can_be_nothing_but_a_link_is_taken_for_one_else_the_console_is(url: str, link: str | None) -> None:
    event = told(url=url)
    assert context_of(event, CONSOLE).url == (link or f"{CONSOLE}/projects/p%20q/domains/d/executions/n%26%C3%A9")
    assert context_of(event, "").url == (link or "")


def test_what_has_no_limit_where_it_comes_from_gets_one() -> None:
    labels = {f"{number}": "v" * 100_000 for number in range(5000)}
    seen = context_of(told(principal="x" * 1_000_000, labels=labels), "")
    assert (len(seen.principal), len(seen.labels), len(seen.labels["0"])) == (255, LABELS, 255)


def test_what_ran_is_called_by_the_best_name_there_is() -> None:
    workflow = {"project": "p", "domain": "d", "name": "train.wf"}
    assert context_of(told(), "").what == "n&é"
    assert context_of(told(workflow=workflow), "").what == "train.wf"
    assert (
        context_of(told(workflow=workflow, launch_plan={**workflow, "name": "train.daily"}), "").what == "train.daily"
    )
