"""The variables of templates: cleaned texts, times, and a bounded size."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.model.event import Event
from dispatcher.rendering.context import LABELS, PROPELLER_LABELS, context_of
from dispatcher.rendering.times import Time

CONSOLE = "https://flyte.example.com/console"
EAST = timezone(timedelta(hours=2))
FINISHED = datetime(2026, 11, 20, 9, 14, 21, tzinfo=UTC)


def event_with(**fields: Any) -> Event:
    """An event with these fields and the required ones."""
    execution = {"project": "p q", "domain": "d", "name": "n&é"}
    return Event.model_validate({"execution": execution, "phase": "FAILED", "occurred_at": FINISHED, **fields})


def test_times_are_in_utc_in_the_configured_zone_and_in_epoch_seconds() -> None:
    event = event_with(occurred_at=FINISHED.astimezone(EAST), started_at=FINISHED - timedelta(minutes=14))
    context = context_of(event, "", zone=ZoneInfo("Europe/Berlin"))
    assert context.finished == Time(
        local="2026-11-20 10:14:21 UTC+01:00",
        utc="2026-11-20 09:14:21 UTC",
        iso="2026-11-20T09:14:21Z",
        epoch="1795166061",
    )
    assert (context.started.utc, context.duration) == ("2026-11-20 09:00:21 UTC", "14 minutes")
    assert context_of(event, "").finished.local == "2026-11-20 09:14:21 UTC"
    assert context_of(event_with(), "").started == Time()


any_time = st.datetimes(timezones=st.just(UTC)) | st.sampled_from(
    [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
)


@given(any_time, st.sampled_from(["UTC", "Europe/London", "America/St_Johns", "Pacific/Kiritimati"]))
def test_every_time_names_the_same_second_in_all_its_parts(at: datetime, zone: str) -> None:
    time = context_of(event_with(occurred_at=at), "", zone=ZoneInfo(zone)).finished
    second = at.replace(microsecond=0)
    assert datetime.fromisoformat(time.iso) == second
    assert datetime.fromtimestamp(0, UTC) + timedelta(seconds=int(time.epoch)) == second
    local, _, offset = time.local.partition(" UTC")
    assert datetime.fromisoformat(f"{local}{offset or '+00:00'}") == second


@pytest.mark.parametrize(
    ("duration", "text"),
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
def test_a_duration_has_no_seconds_from_an_hour_on_and_no_minutes_from_a_day_on(duration: timedelta, text: str) -> None:
    assert context_of(event_with(occurred_at=FINISHED, started_at=FINISHED - duration), "").duration == text


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
def test_the_url_is_the_events_plain_link_else_built_from_the_console_url(url: str, link: str | None) -> None:
    event = event_with(url=url)
    assert context_of(event, CONSOLE).url == (link or f"{CONSOLE}/projects/p%20q/domains/d/executions/n%26%C3%A9")
    assert context_of(event, "").url == (link or "")


def test_propellers_own_labels_are_left_out_by_default() -> None:
    event = event_with(labels={**dict.fromkeys(PROPELLER_LABELS, "the parent's"), "team": "ml"})
    assert context_of(event, "").labels == {"team": "ml"}
    assert context_of(event, "", hide_labels=("team",)).labels == dict.fromkeys(PROPELLER_LABELS, "the parent's")


def test_principal_and_labels_are_cut_and_limited_in_number() -> None:
    labels = {f"{number}": "v" * 100_000 for number in range(5000)}
    context = context_of(event_with(principal="x" * 1_000_000, labels=labels), "")
    assert (len(context.principal), len(context.labels), len(context.labels["0"])) == (255, LABELS, 255)


def test_what_is_the_launch_plans_name_else_the_workflows_else_the_executions() -> None:
    workflow = {"project": "p", "domain": "d", "name": "train.wf"}
    assert context_of(event_with(), "").what == "n&é"
    assert context_of(event_with(workflow=workflow), "").what == "train.wf"
    assert (
        context_of(event_with(workflow=workflow, launch_plan={**workflow, "name": "train.daily"}), "").what
        == "train.daily"
    )
