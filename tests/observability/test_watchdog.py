"""What stands still is noticed, with the place where it hangs."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import structlog.testing
import yaml

from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.intake.kafka.consumer import KafkaConfig, KafkaSource
from dispatcher.ledger import Ledger
from dispatcher.model.circuit_breaker import CircuitBreaker
from dispatcher.observability.metrics import Metrics
from dispatcher.observability.watchdog import STATUS, ProgressMonitor, Watchdog, WatchdogConfig, whereabouts
from tests.delivering.test_worker import RECEIPT, Scripted, a_courier
from tests.ledger.test_ledger import heard
from tests.observability.test_metrics import scraped
from tests.support.builders import NOW, SECOND, a_delivery
from tests.support.clock import ManualClock
from tests.support.service import free_port

MINUTE = timedelta(minutes=1)
SHORT = WatchdogConfig(stall=timedelta(milliseconds=400))


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():
            await asyncio.sleep(0.01)


async def test_a_loop_that_hangs_is_told_once_with_its_task_and_its_place() -> None:
    telemetry = Metrics()

    async def hang() -> None:
        time.sleep(1.5)  # noqa: ASYNC251 - what a channel of another package might do

    with structlog.testing.capture_logs() as logs, Watchdog(SHORT, telemetry):
        await asyncio.sleep(0.2)
        async with asyncio.TaskGroup() as group:
            group.create_task(hang(), name="courier strange")
        await until(lambda: len(logs) == 2)

    hung, turns = logs
    assert (hung["log_level"], hung["room"], hung["task"]) == ("critical", "loop", "courier strange")
    assert "time.sleep(1.5)" in hung["stack"]
    assert hung["seconds"] >= 0.4
    assert turns["event"] == "the event loop turns again"
    seen = scraped(telemetry)
    assert (seen["stalls_total", "loop"], seen["stalled", "loop"]) == (1, 0)
    assert seen["loop_delay_seconds"] >= 0


async def test_a_loop_that_is_busy_and_turns_is_none_of_its_business() -> None:
    telemetry = Metrics()
    with structlog.testing.capture_logs() as logs, Watchdog(SHORT, telemetry):
        for _ in range(20):
            time.sleep(0.05)  # noqa: ASYNC251
            await asyncio.sleep(0)
    assert logs == []


async def test_a_watchdog_that_is_switched_off_starts_no_thread() -> None:
    with Watchdog(WatchdogConfig(stall=timedelta()), Metrics()) as watchdog:
        assert not watchdog._thread.is_alive()


async def test_a_loop_that_hangs_ends_the_process_where_that_is_wanted(tmp_path: Path) -> None:
    settings = {
        "http": {"listen": f"127.0.0.1:{free_port()}"},
        "watchdog": {"stall": "400ms", "exit": True},
        "log": "json",
    }
    (tmp_path / "dispatcher.yaml").write_text(yaml.safe_dump(settings))
    script = """
import asyncio, sys, time
from pathlib import Path
from dispatcher.observability import logs
from dispatcher.runtime import event_loop
from dispatcher.runtime.service import Service
from dispatcher.config.settings import load

logs.configure("json")

def hang_soon(_):
    asyncio.get_running_loop().call_later(0.3, time.sleep, 60)

event_loop.run(Service(load(Path(sys.argv[1])), ready=hang_soon).run())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        str(tmp_path / "dispatcher.yaml"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(40):
        _, said = await process.communicate()
    assert process.returncode == STATUS
    assert "stalled: the event loop hangs" in said.decode()


async def test_where_a_task_waits_is_told_down_to_the_innermost() -> None:
    bell = asyncio.Event()

    async def inner() -> None:
        await bell.wait()

    async def outer() -> None:
        await inner()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(outer())
        await asyncio.sleep(0)
        places = whereabouts(task)
        bell.set()
    assert [place.rpartition(" ")[2] for place in places] == ["outer", "inner", "wait"]
    assert __file__ in places[0]


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


class Lagging(KafkaSource):
    """A source whose broker says how far behind we are."""

    def __init__(self, lag: int | Exception) -> None:
        super().__init__(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
        self.behind = lag

    async def lag(self) -> Mapping[tuple[str, int], int]:
        if isinstance(self.behind, Exception):
            raise self.behind
        return {("t", 0): self.behind, ("t", 1): 0}


def rounds(
    ledger: Ledger, clock: ManualClock, *couriers: DeliveryWorker, source: KafkaSource | None = None
) -> ProgressMonitor:
    return ProgressMonitor(
        ledger=ledger,
        couriers={f"courier {one.name}": one for one in couriers},
        source=source,
        tasks={},
        metrics=Metrics(),
        clock=clock,
        patience=MINUTE,
        stopping=asyncio.Event(),
    )


def a_lazy_courier(ledger: Ledger, clock: ManualClock) -> DeliveryWorker:
    return a_courier(ledger, Scripted(lambda _: RECEIPT), clock=clock)


async def test_a_courier_that_leaves_what_is_due_stands_still_until_it_takes_something(ledger: Ledger) -> None:
    clock = ManualClock()
    courier = a_lazy_courier(ledger, clock)
    looking = rounds(ledger, clock, courier)
    await ledger.record([heard(a_delivery(channel="slack", due_at=NOW))], [], now=NOW)
    with structlog.testing.capture_logs() as logs:
        await looking.look()
        clock.advance(MINUTE - SECOND)
        await looking.look()
        assert await looking.trouble() is None
        clock.advance(2 * SECOND)
        await looking.look()
        await looking.look()
        assert await looking.trouble() == "no progress: courier slack"
        assert [entry["room"] for entry in logs] == ["courier slack"]
        assert len(await courier._claim()) == 1
        await looking.look()
    assert await looking.trouble() is None
    assert [entry["event"] for entry in logs][1:] == ["a room makes progress again"]
    assert scraped(looking.metrics)["stalls_total", "courier slack"] == 1


async def test_nothing_to_do_a_provider_that_rests_and_what_is_not_due_are_no_standstill(ledger: Ledger) -> None:
    clock = ManualClock()
    courier = a_lazy_courier(ledger, clock)
    looking = rounds(ledger, clock, courier)
    await looking.look()
    clock.advance(10 * MINUTE)
    await looking.look()
    await ledger.record([heard(a_delivery(channel="slack", due_at=clock.now()))], [], now=clock.now())
    await looking.look()  # it has only just become due
    assert await looking.trouble() is None

    clock.advance(10 * MINUTE)
    courier._breaker = CircuitBreaker(_resting=clock.now())
    await looking.look()
    assert await looking.trouble() is None
    courier._breaker = CircuitBreaker()
    await looking.look()
    assert await looking.trouble() == "no progress: courier slack"


async def test_intake_that_has_messages_and_records_none_stands_still(ledger: Ledger) -> None:
    clock = ManualClock()
    source = Lagging(0)
    looking = rounds(ledger, clock, source=source)
    await looking.look()
    clock.advance(10 * MINUTE)
    source.behind = 7  # after a quiet time
    await looking.look()
    assert await looking.trouble() is None
    clock.advance(MINUTE)
    await looking.look()
    assert await looking.trouble() == "no progress: intake"
    clock.advance(SECOND)
    looking.heard_at = clock.now()
    await looking.look()
    assert await looking.trouble() is None


async def test_intake_that_is_always_behind_and_gets_on_does_not_stand_still(ledger: Ledger) -> None:
    clock = ManualClock()
    looking = rounds(ledger, clock, source=Lagging(5000))
    for _ in range(20):
        await looking.look()
        clock.advance(MINUTE / 4)
        looking.heard_at = clock.now()
    assert await looking.trouble() is None


async def test_a_broker_that_does_not_answer_is_readinesss_business(ledger: Ledger) -> None:
    clock = ManualClock()
    looking = rounds(ledger, clock, source=Lagging(RuntimeError("away")))
    for _ in range(5):
        await looking.look()
        clock.advance(MINUTE)
    assert await looking.trouble() is None


async def test_a_room_that_has_ended_by_itself_is_told(ledger: Ledger) -> None:
    clock = ManualClock()
    looking = rounds(ledger, clock, a_lazy_courier(ledger, clock))

    async def nothing() -> None:
        pass

    async with asyncio.TaskGroup() as group:
        task = group.create_task(nothing())
    looking.tasks = {"courier slack": task}
    await looking.look()
    assert await looking.trouble() == "no progress: courier slack"
