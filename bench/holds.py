"""Recording failures while 1,000 silences and 100 contacts' quiet hours are in force, compared with recording without.

    python -m bench.holds [--rounds 5]

None of the silences is for one of the events. Half of them name a project, half a launch plan, and one in ten has a
pattern besides. Each event notifies one of the contacts, and it is not their quiet time. Measured in CPU time from the
encoded event to the ledger, in new processes on one core.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from bench.burst import PROJECTS, Topic, cpu_seconds_used, events
from bench.figures import Figure, Goal, Missing, as_markdown, interleaved
from bench.sides import in_new_process
from dispatcher.clock import SystemClock
from dispatcher.config.settings import load
from dispatcher.holding.silences import Silence
from dispatcher.ledger import Action, Deed, Ledger
from dispatcher.model.hold import Then
from dispatcher.observability import logs
from dispatcher.observability.metrics import Metrics
from dispatcher.runtime import event_loop
from dispatcher.runtime.parts import Wiring

EVENTS = 4000
SILENCES = 1000
CONTACTS = 100
LIMIT = Goal("at most", 1.05)


def figures(rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
    count = 200 if smoke else EVENTS
    found = interleaved(
        rounds,
        {name: partial(in_new_process, record, count, held) for name, held in (("with", True), ("without", False))},
    )
    yield Figure(
        path="holds",
        work=f"recording, {SILENCES:,} silences and {CONTACTS} quiet hours in force: CPU an event",
        baseline="recording without",
        ours=found["with"],
        theirs=found["without"],
        unit=" us",
        goal=LIMIT,
    )


def record(count: int, held: bool) -> float:  # noqa: FBT001 - a process gets it by its place
    """Record `count` failures in this process. Returns the CPU time of one in microseconds."""
    logs.configure("json")
    with TemporaryDirectory() as folder:
        _write_settings(Path(folder), quiet=held)
        return event_loop.run(_record(Path(folder), count, SILENCES if held else 0))


def _write_settings(folder: Path, *, quiet: bool) -> None:
    now = SystemClock().now()
    later = {
        "from": f"{now + timedelta(hours=5):%H:%M}",
        "to": f"{now + timedelta(hours=9):%H:%M}",
        "zone": "Asia/Tokyo",
    }
    options: dict[str, Any] = {"quiet": later} if quiet else {}
    contacts = {f"team{number}": {"email": [f"team{number}@example.com"], **options} for number in range(CONTACTS)}
    routes = [
        {"name": f"bench{project}", "match": {"project": f"bench{project}", "phase": "FAILED"}, "notify": [contact]}
        for project, contact in zip(range(PROJECTS), contacts, strict=False)
    ]
    settings = {
        "ledger": {"url": "sqlite+aiosqlite:///ledger.db"},
        "rules": {"routes": "routes.yaml"},
        "contacts": contacts,
        "channels": {"email": {"host": "127.0.0.1", "security": "none", "from": "Flyte <flyte@example.com>"}},
    }
    (folder / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))
    (folder / "dispatcher.yaml").write_text(yaml.safe_dump(settings))


async def _record(folder: Path, count: int, silences: int) -> float:
    clock, settings = SystemClock(), load(folder / "dispatcher.yaml")
    wiring = Wiring(settings, clock, Random(), Metrics(), asyncio.Event(), lambda _: None)
    messages = events(count + 1)
    async with wiring.parts() as parts:
        await parts.ledger.migrate()
        await _silence(parts.ledger, silences, clock.now())
        await parts.intake.run(Topic(messages[:1]))  # loads libraries, as a service does once
        event_loop.freeze_garbage_collector()
        cpu = cpu_seconds_used()
        await parts.intake.run(Topic(messages[1:]))
        used = cpu_seconds_used() - cpu
        recorded = sum((await parts.ledger.queries.counts()).values())
    if recorded != len(messages):
        raise RuntimeError(f"{recorded} deliveries were recorded: this measurement is void")
    return used / count * 1e6


async def _silence(ledger: Ledger, number: int, now: datetime) -> None:
    for one in range(number):
        named: dict[str, Any] = {"project": f"other{one}"} if one % 2 else {"launch_plan": f"other.n{one}"}
        silence = Silence(
            id=f"s{one}",
            matcher={**named, "domain": "prod*"} if one % 10 == 0 else named,
            author="bench",
            reason="maintenance",
            starts_at=now - timedelta(hours=1),
            ends_at=now + timedelta(hours=1),
            then=Then.SUMMARY,
            created_at=now,
        )
        await ledger.silences.add(silence, Action(at=now, who="bench", what=Deed.SILENCE, scope="bench"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    print(as_markdown(figures(parser.parse_args().rounds, smoke=False)))


if __name__ == "__main__":
    main()
