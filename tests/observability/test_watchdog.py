"""The watchdog notices a blocked event loop and stalled components, and logs where they hang."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest
import structlog.testing
import yaml

from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.intake.kafka.consumer import KafkaSource
from dispatcher.ledger import Ledger
from dispatcher.model.circuit_breaker import CircuitBreaker
from dispatcher.observability.metrics import Metrics
from dispatcher.observability.watchdog import EXIT_STATUS, ProgressMonitor, Watchdog, WatchdogConfig, await_stack
from tests.support.builders import NOW, SECOND, a_delivery
from tests.support.clock import ManualClock
from tests.support.ledger_steps import recorded
from tests.support.metrics import scraped
from tests.support.service import free_port
from tests.support.waiting import until
from tests.support.workers import RECEIPT, ScriptedChannel, a_worker, deliver_due

MINUTE = timedelta(minutes=1)
SHORT = WatchdogConfig(loop_stall=timedelta(milliseconds=400))


async def test_a_blocked_loop_is_logged_once_with_its_task_and_stack() -> None:
    metrics = Metrics()

    async def hang() -> None:
        time.sleep(1.5)  # noqa: ASYNC251 - as a third-party channel might

    with structlog.testing.capture_logs() as logs, Watchdog(SHORT, metrics):
        await asyncio.sleep(0.2)
        async with asyncio.TaskGroup() as group:
            group.create_task(hang(), name="worker third-party")
        await until(lambda: len(logs) == 2)

    hung, recovered = logs
    assert (hung["log_level"], hung["component"], hung["task"]) == ("critical", "loop", "worker third-party")
    assert "time.sleep(1.5)" in hung["stack"]
    assert hung["seconds"] >= 0.4
    assert recovered["event"] == "the event loop runs again"
    seen = scraped(metrics)
    assert (seen["stalls_total", "loop"], seen["stalled", "loop"]) == (1, 0)
    assert seen["loop_delay_seconds"] >= 0


async def test_a_busy_loop_that_still_runs_is_not_reported() -> None:
    metrics = Metrics()
    with structlog.testing.capture_logs() as logs, Watchdog(SHORT, metrics):
        for _ in range(20):
            time.sleep(0.05)  # noqa: ASYNC251
            await asyncio.sleep(0)
    assert logs == []


async def test_a_disabled_watchdog_starts_no_thread() -> None:
    with Watchdog(WatchdogConfig(loop_stall=timedelta()), Metrics()):
        assert "watchdog" not in {thread.name for thread in threading.enumerate()}


async def test_a_blocked_loop_ends_the_process_if_exit_is_set(tmp_path: Path) -> None:
    settings = {
        "http": {"listen": f"127.0.0.1:{free_port()}"},
        "watchdog": {"loop_stall": "400ms", "exit": True},
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

event_loop.run(Service(load(Path(sys.argv[1])), on_ready=hang_soon).run())
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
        _, output = await process.communicate()
    assert process.returncode == EXIT_STATUS
    assert "stalled: the event loop hangs" in output.decode()


async def test_an_await_stack_names_every_coroutine_down_to_the_innermost() -> None:
    event = asyncio.Event()

    async def inner() -> None:
        await event.wait()

    async def outer() -> None:
        await inner()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(outer())
        await asyncio.sleep(0)
        places = await_stack(task)
        event.set()
    assert [place.rpartition(" ")[2] for place in places] == ["outer", "inner", "wait"]
    assert __file__ in places[0]


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


class LaggingSource(KafkaSource):
    """A source with a given lag: a number of messages, or the error with which the broker answers."""

    def __init__(self, lag: int | Exception) -> None:
        super().__init__(KafkaConfig(bootstrap_servers="127.0.0.1:1"))
        self.messages = lag

    async def lag(self) -> Mapping[tuple[str, int], int]:
        if isinstance(self.messages, Exception):
            raise self.messages
        return {("t", 0): self.messages, ("t", 1): 0}


def a_monitor(
    ledger: Ledger, clock: ManualClock, *workers: DeliveryWorker, source: KafkaSource | None = None
) -> ProgressMonitor:
    return ProgressMonitor(
        ledger=ledger,
        workers={f"worker {worker.name}": worker for worker in workers},
        source=source,
        tasks={},
        metrics=Metrics(),
        clock=clock,
        no_progress_after=MINUTE,
        stopping=asyncio.Event(),
    )


def an_idle_worker(ledger: Ledger, clock: ManualClock) -> DeliveryWorker:
    return a_worker(ledger, ScriptedChannel(lambda _: RECEIPT), clock=clock)


async def test_a_worker_that_does_not_claim_due_deliveries_is_stalled_until_it_claims_one(ledger: Ledger) -> None:
    clock = ManualClock()
    worker = an_idle_worker(ledger, clock)
    monitor = a_monitor(ledger, clock, worker)
    await ledger.record([recorded(a_delivery(channel="slack", due_at=NOW))], [], now=NOW)
    with structlog.testing.capture_logs() as logs:
        await monitor.check()
        clock.advance(MINUTE - SECOND)
        await monitor.check()
        assert await monitor.unready_reason() is None
        clock.advance(2 * SECOND)
        await monitor.check()
        await monitor.check()
        assert await monitor.unready_reason() == "no progress: worker slack"
        assert [entry["component"] for entry in logs] == ["worker slack"]
        await deliver_due(worker)
        await monitor.check()
    assert await monitor.unready_reason() is None
    of_components = [entry["event"] for entry in logs if "component" in entry]
    assert of_components[1:] == ["a component makes progress again"]
    assert scraped(monitor.metrics)["stalls_total", "worker slack"] == 1


async def test_a_worker_without_due_deliveries_or_with_an_open_breaker_is_not_stalled(ledger: Ledger) -> None:
    clock = ManualClock()
    worker = an_idle_worker(ledger, clock)
    monitor = a_monitor(ledger, clock, worker)
    await monitor.check()
    clock.advance(10 * MINUTE)
    await monitor.check()
    await ledger.record([recorded(a_delivery(channel="slack", due_at=clock.now()))], [], now=clock.now())
    await monitor.check()  # the delivery has been due for less than a minute
    assert await monitor.unready_reason() is None

    clock.advance(10 * MINUTE)
    worker.slots.breaker = CircuitBreaker(next_probe_at=clock.now())
    await monitor.check()
    assert await monitor.unready_reason() is None
    worker.slots.breaker = CircuitBreaker()
    await monitor.check()
    assert await monitor.unready_reason() == "no progress: worker slack"


async def test_intake_with_unread_messages_that_records_no_batch_is_stalled(ledger: Ledger) -> None:
    clock = ManualClock()
    source = LaggingSource(0)
    monitor = a_monitor(ledger, clock, source=source)
    await monitor.check()
    clock.advance(10 * MINUTE)
    source.messages = 7  # the first messages after ten minutes without any
    await monitor.check()
    assert await monitor.unready_reason() is None
    clock.advance(MINUTE)
    await monitor.check()
    assert await monitor.unready_reason() == "no progress: intake"
    clock.advance(SECOND)
    monitor.last_batch_at = clock.now()
    await monitor.check()
    assert await monitor.unready_reason() is None


async def test_intake_that_always_lags_but_records_batches_is_not_stalled(ledger: Ledger) -> None:
    clock = ManualClock()
    monitor = a_monitor(ledger, clock, source=LaggingSource(5000))
    for _ in range(20):
        await monitor.check()
        clock.advance(MINUTE / 4)
        monitor.last_batch_at = clock.now()
    assert await monitor.unready_reason() is None


async def test_a_broker_that_does_not_answer_is_not_a_stall(ledger: Ledger) -> None:
    clock = ManualClock()
    monitor = a_monitor(ledger, clock, source=LaggingSource(RuntimeError("away")))
    for _ in range(5):
        await monitor.check()
        clock.advance(MINUTE)
    assert await monitor.unready_reason() is None


async def test_a_component_whose_task_has_ended_is_stalled(ledger: Ledger) -> None:
    clock = ManualClock()
    monitor = a_monitor(ledger, clock, an_idle_worker(ledger, clock))

    async def end() -> None:
        pass

    async with asyncio.TaskGroup() as group:
        task = group.create_task(end())
    monitor.tasks = {"worker slack": task}
    await monitor.check()
    assert await monitor.unready_reason() == "no progress: worker slack"
