"""Fixtures: `broker`, one for the session; `topic`, a fresh one for a test; `apache` where nothing lighter will do;
`mock_broker`, which fails on request.

What the broker tests ran against, and what the light broker could not run, is said at the end of the run.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import InvalidReplicationFactorError, NodeNotReadyError

from tests.support.brokers import Broker, start
from tests.support.brokers.apache import ApacheKafka
from tests.support.brokers.mock import MockBroker

LEFT_OUT = "needs an Apache Kafka of our own"
_RAN_AGAINST = "ran against"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The broker that the environment asks for."""
    started = start()
    yield started
    started.stop()


@pytest.fixture
def apache(broker: Broker) -> Iterator[ApacheKafka]:
    """The session's broker where it is Apache Kafka of our own; else the test is left out, and that is said loudly.

    It runs again after the test, whatever that did to it.
    """
    if not isinstance(broker, ApacheKafka):
        pytest.skip(f"{LEFT_OUT}, this is {broker.name}")
    yield broker
    broker.signal(signal.SIGCONT)
    if not broker.running:
        broker.start()


@pytest.fixture
def mock_broker() -> Iterator[MockBroker]:
    with MockBroker() as started:
        yield started


@pytest.fixture
async def topic(broker: Broker) -> str:
    """A fresh topic with four partitions."""
    name = f"events-{os.getpid()}-{next(_numbers)}"
    await make_topic(broker.bootstrap_servers, name)
    return name


async def make_topic(servers: str, name: str, *, partitions: int = 4, **options: str) -> None:
    async with asyncio.timeout(30):
        while not await _made(servers, NewTopic(name, partitions, 1, topic_configs=options)):
            await asyncio.sleep(0.1)


async def _made(servers: str, topic: NewTopic) -> bool:
    """Whether the broker took it: one that just started, or was frozen, listens before it counts itself in."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    try:
        await admin.start()
        if not (await admin.describe_cluster())["brokers"]:
            return False
        answer = await admin.create_topics([topic])
    except NodeNotReadyError:
        return False
    finally:
        await admin.close()
    codes = {code for _, code, *_ in answer.topic_errors}
    assert codes <= {0, InvalidReplicationFactorError.errno}, answer
    return codes == {0}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note with each broker test which broker it had: only the report reaches the summary from a worker of xdist."""
    arguments = getattr(item, "funcargs", {})
    if call.when == "call" and "broker" in arguments:
        item.user_properties.append((_RAN_AGAINST, arguments["broker"].name))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    ended = [report for outcome in ("passed", "failed") for report in stats.get(outcome, []) if report.when == "call"]
    names = Counter(str(value) for report in ended for key, value in report.user_properties if key == _RAN_AGAINST)
    for name, count in names.items():
        terminalreporter.write_line(f"{count} broker tests ran against {name}")
    for report in stats.get("skipped", []):
        if LEFT_OUT in str(report.longrepr):
            terminalreporter.write_line(f"NOT RUN on this broker: {report.nodeid}", red=True)
