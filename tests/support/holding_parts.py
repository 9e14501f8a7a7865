"""The dispatcher's real parts for `holding_machine`: contacts and routes in two versions, replicas, and a provider."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from channels.contract import Message, Never, ThreadBy
from dispatcher.delivering.options import WorkerOptions
from dispatcher.delivering.releaser import Releaser
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger
from dispatcher.model.hold import DigestOptions
from dispatcher.model.phase import Phase
from dispatcher.model.retry import RetryPolicy
from dispatcher.model.summary import Summary
from dispatcher.planning.contacts import Contact, Contacts, Options
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rules import Route, RouteBook, RuleBook
from tests.support.builders import a_route, quiet_hours
from tests.support.clock import ManualClock
from tests.support.holding_model import Place
from tests.support.workers import RECEIPT, ScriptedChannel

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
LONGEST = 12 * HOUR
PLAIN, BUSY, BOTH, QUIET = (Place("slack", name) for name in ("#plain", "#busy", "#both", "#quiet"))
ON_CALL, SLEEPS = (Place("pagerduty", name, pages=True) for name in ("oncall", "sleeps"))
ONE, TWO, READS, SORTS = (Place("email", f"{name}@x.com", threads=False) for name in ("one", "two", "reads", "sorts"))
PLACES = (PLAIN, BUSY, BOTH, QUIET, ON_CALL, SLEEPS, ONE, TWO, READS, SORTS)
WHOM: Mapping[tuple[str, Phase], Sequence[Place]] = {
    ("etl", Phase.FAILED): (PLAIN, BUSY, ON_CALL),
    ("etl", Phase.SUCCEEDED): (PLAIN, BUSY),
    ("train", Phase.FAILED): (ONE, TWO, READS, SORTS),
    ("train", Phase.SUCCEEDED): (ONE, SORTS),
    ("score", Phase.FAILED): (BUSY, BOTH, SLEEPS),
    ("score", Phase.SUCCEEDED): (BOTH, SLEEPS),
    ("load", Phase.FAILED): (QUIET, BOTH, ON_CALL),
}
PLANS = ("etl", "train", "score", "etl", "train", "load")


class Version(NamedTuple):
    """What the files of contacts and routes say, in one of their versions. Hours are of UTC, and end on the next day."""

    quiet: Mapping[Place, tuple[int, int]]
    load_is_quiet: tuple[int, int] | None
    """The quiet hours of the routes of launch plan `load`."""
    digests: Mapping[Place, DigestOptions]


FEW, OFTEN = DigestOptions(2, 30 * MINUTE, HOUR), DigestOptions(1, HOUR, 20 * MINUTE)
VERSIONS = (
    Version({BOTH: (22, 6), SLEEPS: (22, 6), READS: (22, 6)}, (17, 23), {BUSY: FEW, BOTH: OFTEN, SORTS: FEW}),
    Version({BOTH: (20, 4), READS: (22, 6)}, None, {BUSY: OFTEN, BOTH: OFTEN, SORTS: FEW}),
)


def contacts(version: Version) -> Contacts:
    return Contacts(
        {
            place.address: Contact(
                ((place.channel, place.address),),
                options=Options(
                    quiet=hours(f"contact {place.address}", version.quiet.get(place)), digest=version.digests.get(place)
                ),
            )
            for place in PLACES
        }
    )


def hours(by: str, given: tuple[int, int] | None) -> Any:
    return quiet_hours(by, **{"from": f"{given[0]:02}:00", "to": f"{given[1]:02}:00"}) if given else None


def routes(version: Version) -> list[Route]:
    return [
        a_route(
            f"{plan}-{phase.lower()}-{channel}",
            *(place.address for place in places if place.channel == channel),
            channel=channel,
            phase=phase,
            launch_plan=plan,
            quiet=hours("route load", version.load_is_quiet) if plan == "load" else None,
        )
        for (plan, phase), places in WHOM.items()
        for channel in sorted({place.channel for place in places})
    ]


def in_force(given: tuple[int, int], now: datetime) -> datetime | None:
    """When hours over midnight end, if they are in force."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for day in (today - timedelta(days=1), today):
        start, end = day + given[0] * HOUR, day + (given[1] + (24 if given[1] < given[0] else 0)) * HOUR
        if start <= now < end:
            return end
    return None


class Replica:
    """One process: its parts, with a connection of its own."""

    def __init__(self, url: str, version: int, clock: ManualClock, provider: Provider) -> None:
        self.ledger = Ledger(url, longest_hold=LONGEST)
        self.book = RuleBook(routes=RouteBook(tuple(routes(VERSIONS[version]))))
        thread: Mapping[str, Any] = dict.fromkeys(("slack", "pagerduty"), _by_launch_plan)
        planner = Planner(
            addresses={"slack": str, "pagerduty": str, "email": str},
            fallbacks={},
            grouped=frozenset({"email"}),
            contacts=contacts(VERSIONS[version]),
            thread_by=thread,
            paging=frozenset({"pagerduty"}),
        )
        contents = Contents(lambda *_, **__: {"text": "failed"}, render_summary=_render_summary)
        self.intake = Intake(self.ledger, lambda: self.book, planner, contents, clock)
        self.releaser = Releaser(
            ledger=self.ledger,
            silences=self.intake.silences,
            clock=clock,
            stopping=asyncio.Event(),
            planner=planner,
            rules=lambda: self.book,
            default_zone=UTC,
        )
        self.workers = [
            DeliveryWorker(
                WorkerOptions(
                    name=name,
                    channel=provider,
                    ledger=self.ledger,
                    planner=planner,
                    contents=contents,
                    policy=RetryPolicy(),
                    clock=clock,
                    rng=Random(7),
                    worker_id="test",
                    concurrency=50,
                    pages=name == "pagerduty",
                )
            )
            for name in ("slack", "pagerduty", "email")
        ]


def _by_launch_plan(_address: str) -> ThreadBy:
    return "launch_plan"


def _render_summary(channel: str, summary: Summary, **_: object) -> Mapping[str, Any]:
    del channel
    grouped = sum(group.number for group in summary.groups)
    assert summary.number == grouped + summary.more + summary.notices
    return {"counts": (summary.number, summary.resolved)}


class Provider(ScriptedChannel):
    """Takes every message, except those about one event to a refused address."""

    def __init__(self) -> None:
        super().__init__(self._answer_to)
        self.refused: set[Place] = set()
        self.taken: Counter[str] = Counter()
        self.counts: dict[str, tuple[int, int]] = {}
        """What digests and summaries said, by their keys."""

    def _answer_to(self, message: Message) -> Any:
        if "counts" in message.content:
            self.counts[message.key] = tuple(message.content["counts"])
        elif any(place.address in message.recipients for place in self.refused):
            return Never("no such address")
        self.taken[message.key] += 1
        return RECEIPT


@cache
def empty_ledger() -> bytes:
    """A new ledger's file. Creating one takes longer than many steps."""

    async def create(folder: str) -> None:
        async with Ledger(f"sqlite+aiosqlite:///{folder}/ledger.db"):
            pass

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(create(folder))
        return (Path(folder) / "ledger.db").read_bytes()
