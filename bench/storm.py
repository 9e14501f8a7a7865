"""A storm of failures of three causes that is told in digests, compared with one message each and with Alertmanager.

    python -m bench.storm [--rounds 5]

Everybody gets the same failures, and delivers them by mail to 40 recipients: the dispatcher with digests, the dispatcher
without, and Alertmanager with one group for each recipient and error. Digests and groups both wait for five seconds,
instead of minutes. Each runs on one core, the relay on another.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from bench import alertmanager
from bench.burst import ERRORS, PROJECTS, TIMEOUT, StormResult, Topic, cpu_seconds_used, events
from bench.figures import Figure, Goal, Missing, as_markdown, interleaved
from bench.providers import Provider, ProviderOptions, Relay, running_provider
from bench.sides import in_new_process
from dispatcher.clock import SystemClock
from dispatcher.config.settings import load
from dispatcher.flyte.encode import EncodedMessage
from dispatcher.ledger import Ledger
from dispatcher.model.delivery import State
from dispatcher.observability import logs
from dispatcher.observability.metrics import Metrics
from dispatcher.runtime import event_loop
from dispatcher.runtime.parts import Wiring

FAILURES = 5000
EVERY = 5
"""Seconds for which a digest, or a group of Alertmanager, gathers failures."""
DIGEST = {"after": 3, "within": "10m", "every": f"{EVERY}s"}
POLL = 0.25


def figures(rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
    count = 300 if smoke else FAILURES
    work = f"{count:,} failures of {len(ERRORS)} causes to {PROJECTS} recipients"
    yield from alertmanager.missing("storm", work)
    with running_provider(Relay, ProviderOptions()) as relay:
        contenders = {
            "digests": partial(_ours, count, relay, DIGEST),
            "one message each": partial(_ours, count, relay, None),
        }
        if alertmanager.installed():
            contenders["Alertmanager's groups"] = partial(_alertmanager, count, relay)
        found = interleaved(rounds, contenders)
    ours = found.pop("digests")
    for baseline, theirs in found.items():
        yield from _compared(work, baseline, ours, theirs)


def _compared(work: str, baseline: str, ours: Sequence[StormResult], theirs: Sequence[StormResult]) -> Iterator[Figure]:
    less_cpu = Goal("at most", 1) if baseline == "one message each" else None
    for what, unit, goal in (("messages", "", None), ("cpu", " s", less_cpu), ("first", " s", None)):
        yield Figure(
            path="storm",
            work=f"{work}: {_SHOWN[what]}",
            baseline=baseline,
            ours=[getattr(one, what) for one in ours],
            theirs=[getattr(one, what) for one in theirs],
            unit=unit,
            goal=goal,
        )


_SHOWN = {"messages": "messages", "cpu": "CPU in all", "first": "time to the first message"}


def _ours(count: int, relay: Provider, digest: Mapping[str, Any] | None) -> StormResult:
    relay.begin()
    began, cpu = in_new_process(storm, count, relay.port, digest)
    arrived = relay.arrivals()
    if digest is None and arrived.different != count:
        raise RuntimeError(f"{count} failures became {arrived}: this measurement is void")
    return StormResult(arrived.messages, arrived.first - began, cpu)


def _alertmanager(count: int, relay: Provider) -> StormResult:
    mail = {"to": "team@example.com", "from": "flyte@example.com", "smarthost": f"127.0.0.1:{relay.port}"}
    receiver = {"email_configs": [{**mail, "require_tls": False}]}
    return alertmanager.group(count, receiver, relay, interval=EVERY, seconds=3 * EVERY)


def storm(count: int, port: int, digest: Mapping[str, Any] | None) -> tuple[float, float]:
    """Deliver `count` failures in this process. Returns when they began to be read, and the CPU seconds."""
    logs.configure("json")
    with TemporaryDirectory() as folder:
        _write_settings(Path(folder), port, digest)
        return event_loop.run(_storm(Path(folder), events(count, ERRORS)))


def _write_settings(folder: Path, port: int, digest: Mapping[str, Any] | None) -> None:
    projects = [f"bench{number}" for number in range(PROJECTS)]
    routes = [{"name": one, "match": {"project": one, "phase": "FAILED"}, "notify": [one]} for one in projects]
    options = {} if digest is None else {"digest": digest}
    email = {"host": "127.0.0.1", "port": port, "security": "none", "from": "Flyte <flyte@example.com>"}
    settings = {
        "ledger": {"url": "sqlite+aiosqlite:///ledger.db"},
        "rules": {"routes": "routes.yaml"},
        "contacts": {one: {"email": [f"{one}@example.com"], **options} for one in projects},
        "channels": {"email": email},
    }
    (folder / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))
    (folder / "dispatcher.yaml").write_text(yaml.safe_dump(settings))


async def _storm(folder: Path, messages: list[EncodedMessage]) -> tuple[float, float]:
    stopping = asyncio.Event()
    wiring = Wiring(load(folder / "dispatcher.yaml"), SystemClock(), Random(), Metrics(), stopping, lambda _: None)
    async with wiring.parts() as parts, asyncio.TaskGroup() as group:
        await parts.ledger.migrate()
        (worker,) = parts.workers
        group.create_task(worker.run())
        group.create_task(parts.releaser.run())
        cpu, began = cpu_seconds_used(), time.monotonic()
        await parts.intake.run(Topic(messages))
        async with asyncio.timeout(TIMEOUT):
            while (await _by_state(parts.ledger))[State.WAITING]:  # noqa: ASYNC110 - the ledger tells nobody
                await asyncio.sleep(POLL)
        used = cpu_seconds_used() - cpu
        if dead := (await _by_state(parts.ledger))[State.DEAD]:
            raise RuntimeError(f"{dead} deliveries are dead: this measurement is void")
        worker.stop()
        stopping.set()
    return began, used


async def _by_state(ledger: Ledger) -> Counter[State]:
    counted: Counter[State] = Counter()
    for (_, state), number in (await ledger.queries.counts()).items():
        counted[state] += number
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    print(as_markdown(figures(parser.parse_args().rounds, smoke=False)))


if __name__ == "__main__":
    main()
