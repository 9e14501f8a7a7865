"""Two hundred files of routes are changed while 5,000 events flow to two replicas.

Each event must carry the version of the files by which it was decided, and deciding it again by those files must give the
same. The files are changed in the reverse order of their paths. A replica reads them in the order of their paths, so what
it sees is always the state between two changes, never a mixture, however slowly it reads.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from dispatcher.config.settings import load
from dispatcher.ledger import Filter, Ledger, StoredEvent
from dispatcher.model.delivery import State
from dispatcher.model.event import EntityId, Event, ExecutionId
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.rules import RuleBook, Verdict, decide
from dispatcher.runtime.wiring import make_planner, make_rule_files, open_channels
from tests.faults.rig import Publish, Replica, publishing, reading_ledger, replicas
from tests.support.brokers.apache import ApacheKafka
from tests.support.builders import an_event
from tests.support.standins import StandIns

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

FILES = int(os.environ.get("FAULT_ROUTE_FILES", "200"))
EVENTS = 25 * FILES
EVENTS_PER_CHANGE = EVENTS // FILES
GAP = (0.05, 0.45)
"""Seconds between two changes. The replicas look for changes after 0.2 s without one."""
PROJECTS, PLANS = 20, 40
CONTACTS = {
    "ml-team": {"email": ["ml@example.com"], "severity": "critical"},
    "everybody": {"include": ["ml-team"], "email": ["all@example.com"]},
}
PHASES = [phase.value for phase in sorted(TERMINAL)]


async def test_each_event_is_decided_by_the_files_whose_version_it_carries(
    rng: Random, figures: Callable[[str], None], apache: ApacheKafka, topic: str, postgres_url: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    folder = tmp_path / "routes"
    folder.mkdir()
    before = [a_file(rng, number, "old") for number in range(FILES)]
    after = [edited(rng, number) for number in range(FILES)]
    for number in range(FILES):
        replace(folder, number, before[number])
    events = [an_event_of(rng, number) for number in range(EVENTS)]
    async with StandIns() as standins, reading_ledger(postgres_url) as reader:
        two = [
            Replica(name, tmp_path, _settings(name, apache, topic, postgres_url, await standins.open(name)))
            for name in ("one", "two")
        ]
        async with replicas(*two), publishing(apache.bootstrap_servers, topic) as publish:
            for replica in two:
                await replica.ready()
            await change_all(folder, after, events, publish, rng)
            await recorded(postgres_url, events)
            states = await reader.settled(1, seconds=120)
            for replica in two:
                await replica.stop()
    settings = load(tmp_path / "one.yaml")
    books = books_of(settings, folder, before, after)
    async with Ledger(postgres_url) as ledger:
        stored = [one for event in events for one in await ledger.history.events(event.execution)]
        planned = await plans(ledger, settings, stored, books)
        sent = Counter(
            (
                one.delivery.event,
                one.delivery.channel,
                one.delivery.addresses,
                one.delivery.rules,
                one.delivery.severity,
            )
            for one in await ledger.history.find(Filter(), limit=100_000)
        )
    decided = Counter(one.rules_version for one in stored)
    deciders = {replica.name: versions_seen(replica) for replica in two}
    figures(
        f"{FILES} files changed, {EVENTS} events, {sent.total()} deliveries; decided by {len(decided)} of {len(books)} "
        f"versions; the replicas loaded {', '.join(str(len(one)) for one in deciders.values())}; "
        f"{time.monotonic() - began:.0f} s"
    )

    assert len(stored) == EVENTS
    unknown = decided.keys() - books.keys()
    assert not unknown, f"no state of the files has the versions {unknown}"
    for one in stored:
        again = decide(one.event, books[one.rules_version])
        assert [rule.as_data() for rule in again.considered] == list(one.considered), one.event.key
        assert (again.verdict, again.reason) == (one.verdict, one.reason), one.event.key
    assert sent == planned
    assert states == {State.SENT: planned.total()}
    oldest, *_, newest = books.values()
    differing = sum(decide(one.event, oldest).considered != decide(one.event, newest).considered for one in stored)
    assert differing > EVENTS / 4, "the changes decide too little to prove anything"
    assert len(decided) > FILES / 10, "too few versions decided anything to prove something"
    assert all(len(versions) > FILES / 10 for versions in deciders.values()), "a replica read too few changes"


def _settings(name: str, kafka: ApacheKafka, topic: str, ledger: str, channels: dict[str, Any]) -> dict[str, Any]:
    return {
        "kafka": {"bootstrap_servers": kafka.bootstrap_servers, "topics": [topic], "group_id": f"group-{topic}"},
        "ledger": {"url": ledger},
        "rules": {"routes": ["routes"]},
        "contacts": CONTACTS,
        "channels": channels,
    }


def a_route(rng: Random, name: str, generation: str) -> dict[str, Any]:
    match: dict[str, Any] = {"phase": rng.sample(PHASES, rng.randint(1, 2))}
    match |= rng.choice(
        [
            {"project": f"team-{rng.randrange(PROJECTS)}"},
            {"launch_plan": [f"train.{rng.randrange(PLANS)}", f"train.{rng.randrange(PLANS)}"]},
            {"project": f"team-{rng.randrange(10)}*", "not": {"labels": {"tier": "3"}}},
            {"labels": {"team": f"*{rng.randrange(10)}"}, "project": [f"team-{rng.randrange(PROJECTS)}", "team-7"]},
            {"principal": "jo", "error": {"message": f"code {rng.randrange(9)}"}},
        ]
    )
    notify: list[Any] = [{"email": [f"{name}-{generation}@example.com", f"shared-{rng.randrange(5)}@example.com"]}]
    if rng.random() < 0.1:
        notify.append(rng.choice(["ml-team", "everybody"]))
    route: dict[str, Any] = {"name": name, "match": match, "notify": notify}
    if rng.random() < 0.3:
        route["severity"] = rng.choice(["info", "warning", "error", "critical"])
    if rng.random() < 0.05:
        route["stop"] = True
    if rng.random() < 0.1:
        route["rules"] = "replace"
    return route


def a_file(rng: Random, number: int, generation: str) -> str:
    return yaml.safe_dump({"routes": [a_route(rng, f"r{number}-{at}", generation) for at in range(2)]})


def edited(rng: Random, number: int) -> str | None:
    """What a file is changed to: most often other routes; None if it is deleted."""
    text = a_file(rng, number, "new")
    return rng.choice([text] * 6 + [None, "routes: [", text.replace("phase", "phrase", 1), "routes: []\n"])


def replace(folder: Path, number: int, content: str | None) -> None:
    """Change a file in one step, as `mv` does."""
    file, draft = folder / f"{number:03}.yaml", folder / f".{number:03}"
    if content is None:
        file.unlink()
        return
    draft.write_text(content)
    draft.rename(file)


def an_event_of(rng: Random, number: int) -> Event:
    project, plan = f"team-{rng.randrange(PROJECTS)}", f"train.{rng.randrange(PLANS)}"
    event = an_event(
        Phase(rng.choice(["FAILED", *PHASES])),
        launch_plan=EntityId(project=project, domain="production", name=plan, version="v1"),
        labels=rng.choice([{}, {"team": f"ml-{rng.randrange(10)}"}, {"tier": str(rng.randrange(4))}]),
        principal=rng.choice(["jo", "ann", ""]),
        error={"code": "USER", "message": f"exit code {rng.randrange(9)}", "kind": "USER"},
    )
    execution = ExecutionId(project=project, domain="production", name=f"run{number}")
    return event.model_copy(update={"execution": execution})


async def change_all(
    folder: Path, after: Sequence[str | None], events: Sequence[Event], publish: Publish, rng: Random
) -> None:
    """Change all files, the last path first, while the events are published."""
    waiting = iter(events)
    for number in reversed(range(FILES)):
        gap = rng.uniform(*GAP)
        for _ in range(EVENTS_PER_CHANGE):
            await publish(next(waiting))
            await asyncio.sleep(gap / EVENTS_PER_CHANGE)
        replace(folder, number, after[number])


async def recorded(url: str, events: Sequence[Event]) -> None:
    """Wait until the ledger has all events."""
    keys = [event.key for event in events]
    async with asyncio.timeout(120), Ledger(url) as ledger:
        while len(await ledger.history.seen(keys)) < len(keys):
            await asyncio.sleep(0.5)


def books_of(settings: Any, folder: Path, before: Sequence[str], after: Sequence[str | None]) -> dict[str, RuleBook]:
    """The rules in each state of the files, by version."""
    for number in range(FILES):
        replace(folder, number, before[number])
    files = make_rule_files(settings)
    files.load()
    books = {files.book.version: files.book}
    for number in reversed(range(FILES)):
        replace(folder, number, after[number])
        files.load()
        books[files.book.version] = files.book
    return books


async def plans(
    ledger: Ledger, settings: Any, stored: Sequence[StoredEvent], books: dict[str, RuleBook]
) -> Counter[Any]:
    """The deliveries that the decisions must have led to."""
    planner = make_planner(settings, open_channels(settings))
    planned: Counter[Any] = Counter()
    for one in stored:
        decision = decide(one.event, books[one.rules_version])
        assert decision.verdict in (Verdict.MATCHED, Verdict.NO_MATCHING_RULE)
        for delivery in planner.plan(one.event, decision.matched, now=one.recorded_at):
            planned[delivery.event, delivery.channel, delivery.addresses, delivery.rules, delivery.severity] += 1
    return planned


def versions_seen(replica: Replica) -> set[str]:
    return {line["version"] for line in replica.log_lines if line["event"] == "rule files reloaded"}
