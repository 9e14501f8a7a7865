"""Quiet hours from the settings and the route files to the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dispatcher.config.settings import load
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.event import Event
from dispatcher.model.hold import HoldReason, Then
from dispatcher.planning.contents import Contents
from dispatcher.runtime.wiring import make_planner, make_rule_files, open_channels
from tests.support.builders import a_launch_plan, an_event
from tests.support.clock import ManualClock

BERLIN = ZoneInfo("Europe/Berlin")
EVENING = datetime(2026, 11, 20, 23, tzinfo=BERLIN)  # a Friday
NIGHT = "quiet: {from: '22:00', to: '07:00', zone: Europe/Berlin}"
SETTINGS = f"""
channels: {{email: {{host: relay, from: flyte@example.com}}}}
rules: {{routes: [./routes]}}
contacts:
  ml: {{email: [a@x.com, b@x.com], {NIGHT}}}
  board: {{email: board@x.com}}
"""
ROUTES = """
routes:
  - {name: all, match: {phase: FAILED}, notify: [ml, {email: c@x.com}]}
  - {name: board, match: {phase: FAILED}, notify: [board], quiet: {days: [fri-sat], zone: Europe/Berlin}}
  - {name: second, match: {phase: FAILED}, streak: 2, notify: [board], quiet: {from: 20:00, to: 23:59, zone: Europe/Berlin}}
  - {name: third, match: {phase: FAILED}, streak: 3, notify: [board]}
  - {name: urgent, match: {phase: FAILED, labels: {tier: "1"}}, notify: [ml], severity: critical}
"""


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


async def record(intake: Intake, name: str, **fields: Any) -> dict[str, tuple[object, ...]]:
    """Record a failed execution. Returns what holds the mail to each address, until when, and what becomes of it."""
    event = an_event(name=name, launch_plan=a_launch_plan(), looked_up=True, **fields)
    await ingest(intake, event.model_copy(update={"occurred_at": intake.clock.now()}))
    return await holds(intake.ledger, name)


async def ingest(intake: Intake, event: Event) -> None:
    message = write(event, Format.NATIVE)
    await intake.ingest([(message.headers, message.value, "here")])


async def holds(ledger: Ledger, name: str) -> dict[str, tuple[object, ...]]:
    found = await ledger.history.find(Filter(execution=f"flytesnacks/production/{name}"), limit=99)
    deliveries = [one.delivery for one in found]
    return {
        ",".join(one.addresses): (one.hold, one.held_by, one.due_at, one.hold_then) if one.hold else (one.due_at,)
        for one in deliveries
    }


async def test_what_is_recorded_in_quiet_hours_waits_for_their_end_and_a_reload_moves_nothing(
    ledger: Ledger, tmp_path: Path
) -> None:
    (tmp_path / "dispatcher.yaml").write_text(SETTINGS)
    routes = tmp_path / "routes" / "routes.yaml"
    routes.parent.mkdir()
    routes.write_text(ROUTES)
    settings = load(tmp_path / "dispatcher.yaml")
    files = make_rule_files(settings)
    files.load()
    assert files.problems == ()
    clock = ManualClock(EVENING)
    planner = make_planner(settings, open_channels(settings))
    intake = Intake(ledger, lambda: files.book, planner, Contents(lambda *_, **__: {"text": "failed"}), clock)

    seven, sunday = EVENING.replace(day=21, hour=7), EVENING.replace(day=22, hour=0)
    of_contact = (HoldReason.WINDOW, "contact ml", seven, Then.SUMMARY)
    of_route = (HoldReason.WINDOW, "route board", sunday, Then.SUMMARY)
    first = {"a@x.com": of_contact, "b@x.com": of_contact, "c@x.com": (EVENING,), "board@x.com": of_route}
    assert await record(intake, "first") == first
    of_second = (HoldReason.WINDOW, "route second", EVENING.replace(minute=59), Then.SUMMARY)  # it ends first
    critical = await record(intake, "critical", labels={"tier": "1"})
    assert critical == {"a@x.com,b@x.com": (EVENING,), "c@x.com": (EVENING,), "board@x.com": of_second}
    assert (await record(intake, "third"))["board@x.com"] == (EVENING,)  # the route of the streak lets it through

    clock.advance(timedelta(hours=8))
    assert await record(intake, "at-seven") == {
        one: (seven,) if one != "board@x.com" else of_route for one in ("a@x.com", "b@x.com", "c@x.com", "board@x.com")
    }
    routes.write_text(ROUTES.replace(", quiet: {days: [fri-sat], zone: Europe/Berlin}", ""))
    files.load()
    assert (await record(intake, "reloaded"))["board@x.com"] == (seven,)
    assert await holds(ledger, "first") == first
    (held,) = [
        one.delivery
        for one in await ledger.history.find(Filter(execution="flytesnacks/production/first"), limit=99)
        if one.delivery.addresses == ("board@x.com",)
    ]
    assert planner.still_quiet(held, files.book.routes, now=clock.now()) is None
