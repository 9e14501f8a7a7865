"""Fixtures: `broker`, one for the session; `topic`, a fresh one for a test; `apache` where nothing lighter will do.

What the broker tests ran against, and what the light broker could not run, is said at the end of the run.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.brokers import Broker, start
from tests.support.brokers.apache import ApacheKafka

_numbers = itertools.count(1)
_ran_against: list[str] = []
_left_out: list[str] = []


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The broker that the environment asks for."""
    started = start()
    _ran_against.append(started.name)
    yield started
    started.stop()


@pytest.fixture
def apache(broker: Broker, request: pytest.FixtureRequest) -> ApacheKafka:
    """The session's broker where it is Apache Kafka of our own; else the test is left out, and that is said loudly."""
    if not isinstance(broker, ApacheKafka):
        _left_out.append(request.node.nodeid)
        pytest.skip(f"{broker.name} can't do this")
    return broker


@pytest.fixture
async def topic(broker: Broker) -> str:
    """A fresh topic with four partitions."""
    name = f"events-{os.getpid()}-{next(_numbers)}"
    await make_topic(broker.bootstrap_servers, name)
    return name


async def make_topic(servers: str, name: str, *, partitions: int = 4, **options: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=options)])
    finally:
        await admin.close()


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _ran_against:
        terminalreporter.write_line(f"broker tests ran against {_ran_against[0]}")
    for test in _left_out:
        terminalreporter.write_line(f"NOT RUN on this broker: {test}", red=True)
