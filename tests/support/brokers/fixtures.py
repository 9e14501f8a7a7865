"""Fixtures: `broker`, one per session; `topic`, a new one per test; `apache` for tests that need Apache Kafka;
`mock_broker`, which fails on request.

The test report ends with the brokers that were used and the tests that the light broker could not run.
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

SKIPPED = "needs an Apache Kafka that the tests started"
_RAN_AGAINST = "ran against"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The broker that the environment selects."""
    started = start()
    yield started
    started.stop()


@pytest.fixture
def apache(broker: Broker) -> Iterator[ApacheKafka]:
    """The session's broker if the tests started it as Apache Kafka; otherwise skip the test and report it in red.

    After the test the broker is running again, even if the test stopped or froze it.
    """
    if not isinstance(broker, ApacheKafka):
        pytest.skip(f"{SKIPPED}, this is {broker.name}")
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
    """A new topic with four partitions."""
    name = f"events-{os.getpid()}-{next(_numbers)}"
    await make_topic(broker.bootstrap_servers, name)
    return name


async def make_topic(servers: str, name: str, *, partitions: int = 4, **options: str) -> None:
    async with asyncio.timeout(30):
        while not await _create(servers, NewTopic(name, partitions, 1, topic_configs=options)):
            await asyncio.sleep(0.1)


async def _create(servers: str, topic: NewTopic) -> bool:
    """Create a topic; False if the broker is not ready. After a start it listens before it has joined its cluster."""
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
    """Add the broker's name to each broker test's report: only reports get from xdist's workers to the summary."""
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
        if SKIPPED in str(report.longrepr):
            terminalreporter.write_line(f"NOT RUN on this broker: {report.nodeid}", red=True)
