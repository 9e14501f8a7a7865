"""pytest's side of the brokers: fixtures, and a report of what the broker tests ran against and which could not.

`broker` is the session's broker, whichever it is. `apache` is the same one, for tests that restart it, log in to
it or reach for its files: they run where it is an Apache Kafka of our own, and are named at the end where not.
`make_topic` makes topics of fresh names; `mock_broker` is a broker that fails on request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any, Protocol

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.brokers import ApacheKafka, Broker, choose
from tests.support.brokers.apache import Unavailable
from tests.support.brokers.mock import MockBroker

LEFT_OUT = "needs an Apache Kafka of its own"
_RAN_AGAINST = "ran against"
_numbers = iter(range(1, 1_000_000))


class MakeTopic(Protocol):
    """Make a topic of a fresh name; returns the name."""

    def __call__(self, *, partitions: int = 1, configs: dict[str, str] | None = None) -> Awaitable[str]: ...


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """The session's broker, running."""
    with choose().running() as broker:
        yield broker


@pytest.fixture
def apache(broker: Broker) -> Iterator[ApacheKafka]:
    """The session's broker where it is ours to restart; it runs again after the test, whatever that did to it."""
    if not isinstance(broker, ApacheKafka):
        pytest.skip(f"{LEFT_OUT}; this is {broker.name}")
    yield broker
    broker.thaw()
    if not broker.running:
        broker.start()


@pytest.fixture
async def admin(broker: Broker) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    await client.start()
    yield client
    await client.close()


@pytest.fixture
def make_topic(admin: AIOKafkaAdminClient, fresh_name: str) -> MakeTopic:
    async def make(*, partitions: int = 1, configs: dict[str, str] | None = None) -> str:
        topic = f"{fresh_name}-{next(_numbers)}"
        made = NewTopic(topic, num_partitions=partitions, replication_factor=1, topic_configs=configs or {})
        answer = await admin.create_topics([made])
        assert all(error[1] == 0 for error in answer.topic_errors), answer
        return topic

    return make


@pytest.fixture
def fresh_name(testrun_uid: str) -> str:
    """A name that no other test uses, for groups and for topics that are not there yet."""
    return f"test-{testrun_uid[:8]}-{next(_numbers)}"


@pytest.fixture
def mock_broker() -> Iterator[MockBroker]:
    with MockBroker() as broker:
        yield broker


def pytest_report_header() -> str:
    try:
        return f"broker tests: {choose().described}"
    except Unavailable as error:
        return f"broker tests: CAN'T RUN: {error}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note with each broker test which broker it had: the report crosses from a worker to the summary."""
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    if call.when == "call" and "broker" in funcargs:
        item.user_properties.append((_RAN_AGAINST, funcargs["broker"].name))
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    stats = terminalreporter.stats
    reports = [report for outcome in ("passed", "failed") for report in stats.get(outcome, [])]
    counts = Counter(value for report in reports for name, value in report.user_properties if name == _RAN_AGAINST)
    for name, count in counts.items():
        terminalreporter.write_line(f"broker tests: {count} ran against {name}", green=True)
    left_out = [report.nodeid for report in stats.get("skipped", []) if LEFT_OUT in str(report.longrepr)]
    if left_out:
        terminalreporter.section(f"{len(left_out)} broker tests did NOT run: they need Apache Kafka", red=True)
        for name in left_out:
            terminalreporter.write_line(f"  {name}", red=True)
        terminalreporter.write_line("Java 17 and Maven bring it: then BROKER=auto runs them too.")
