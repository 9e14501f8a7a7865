"""A component that fails is started again, and the others go on."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn

from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.kafka.session import ConsumerSession
from dispatcher.ledger import Ledger
from dispatcher.model.event import Options
from dispatcher.observability.metrics import Metrics
from dispatcher.rules.files import RuleFiles
from dispatcher.runtime import components
from dispatcher.runtime.components import FAILURES, Components
from tests.support.brokers import Broker
from tests.support.builders import a_notification, an_event
from tests.support.kafka import publish_messages
from tests.support.metrics import scraped
from tests.support.running import running
from tests.support.smtp import ScriptedRelay


def failing(*errors: BaseException | None) -> Callable[[], Awaitable[None]]:
    """A component that raises these errors, one at each start, and returns at the first None."""
    left = [*errors, None]

    async def work() -> None:
        if (error := left.pop(0)) is not None:
            raise error

    return work


async def run(some: Components, work: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(5):
        await some.run("retention", work)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses before each start, which take no time."""
    made: list[float] = []

    async def is_set_within(event: asyncio.Event, seconds: float) -> bool:
        made.append(seconds)
        return event.is_set()

    monkeypatch.setattr(components, "is_set_within", is_set_within)
    return made


async def test_the_pause_doubles_up_to_a_minute(pauses: list[float]) -> None:
    some = Components(asyncio.Event(), Metrics())
    await run(some, failing(*[ZeroDivisionError("0")] * 7))

    assert pauses == [1, 2, 4, 8, 16, 32, 60]
    assert scraped(some.metrics)["component_failures_total", "retention"] == 7


async def test_after_five_minutes_of_work_the_pause_is_short_again(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(components, "loop_time", lambda: now)
    seconds = [0, 299, 301, 0]

    async def work() -> None:
        nonlocal now
        if seconds:
            now += seconds.pop(0)
            raise ZeroDivisionError

    await run(Components(asyncio.Event(), Metrics()), work)

    assert pauses == [1, 2, 1, 2]


async def test_from_the_third_failure_within_five_minutes_on_it_is_not_ready(
    pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(components, "loop_time", lambda: now)
    some = Components(asyncio.Event(), Metrics())
    await run(some, failing(*[ZeroDivisionError("0")] * (FAILURES - 1)))
    assert await some.unready_reason() is None

    await run(some, failing(ExceptionGroup("", [KeyError("x"), ValueError()])))
    reason = await some.unready_reason()
    assert reason == "retention failed 3 times within 5 minutes: KeyError: 'x'; see the log"

    now += components.PERIOD + 1
    assert await some.unready_reason() is None


async def test_a_cancellation_that_nobody_asked_for_is_a_failure(pauses: list[float]) -> None:
    some = Components(asyncio.Event(), Metrics())
    await run(some, failing(asyncio.CancelledError()))
    assert pauses == [1]

    asleep = asyncio.create_task(some.run("retention", lambda: asyncio.sleep(60)))
    await asyncio.sleep(0)
    asleep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asleep


async def test_a_component_that_failed_is_not_started_again_after_a_stop() -> None:
    stopping = asyncio.Event()
    some = Components(stopping, Metrics())
    task = asyncio.create_task(run(some, failing(ZeroDivisionError(), SystemError())))
    await asyncio.sleep(0.01)
    stopping.set()
    await task

    assert scraped(some.metrics)["component_failures_total", "retention"] == 1


@pytest.mark.broker
async def test_each_component_of_the_service_is_contained(
    broker: Broker, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "FIRST_PAUSE", 0.05)
    for owner, name in (
        (ConsumerSession, "read"),
        (DeliveryWorker, "run"),
        (RuleFiles, "watch"),
        (Ledger, "purge"),
        (uvicorn.Server, "main_loop"),
    ):
        raise_once(monkeypatch, owner, name)
    options = Options(notifications=(a_notification(),))
    async with ScriptedRelay() as relay:
        settings = {
            "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topics": [topic], "group_id": topic},
            "ledger": {"url": f"sqlite+aiosqlite:///{tmp_path}/ledger.db"},
            "channels": {
                "email": {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "f@example.com"}
            },
        }
        async with running(tmp_path, settings) as url, aiohttp.ClientSession() as session:
            await publish_messages(broker, topic, [write(an_event(options=options), Format.NATIVE)])
            await relay.until(lambda: relay.mails)
            async with session.get(f"{url}/readyz") as answer:
                assert answer.status == 200, await answer.text()
            async with session.get(f"{url}/metrics") as answer:
                page = await answer.text()

    failed = re.findall(r'dispatcher_component_failures_total{component="(.*)"} 1\.0', page)
    assert sorted(failed) == ["http", "intake", "retention", "rules", "worker email"]


def raise_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    original = getattr(owner, name)
    raised = False

    async def method(*arguments: Any, **keywords: Any) -> Any:
        nonlocal raised
        if not raised:
            raised = True
            raise ZeroDivisionError(name)
        return await original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, method)
