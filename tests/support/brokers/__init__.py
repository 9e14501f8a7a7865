"""Kafka-protocol brokers for the tests, started on loopback ports as they are needed.

`choose` says which: the cluster that KAFKA_BOOTSTRAP_SERVERS names, else by BROKER=auto|apache|light. auto takes
the real thing, Apache Kafka, where Java and Maven are there to run it, else the light broker of a PyPI wheel.
`python -m tests.support.brokers` starts one for people who want to try things.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tests.support.brokers.apache import ApacheKafka, Unavailable, missing, resolve
from tests.support.brokers.light import LightBroker

__all__ = ["ApacheKafka", "Broker", "Choice", "Cluster", "LightBroker", "choose"]


class Broker(Protocol):
    """Something that speaks Kafka's protocol."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def bootstrap_servers(self) -> str:
        """Where it listens, without encryption or login."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that someone else runs."""

    bootstrap_servers: str

    @property
    def name(self) -> str:
        return f"the cluster at {self.bootstrap_servers}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which broker it will be, and why."""

    described: str
    _start: Callable[[], Broker]

    @contextmanager
    def running(self) -> Iterator[Broker]:
        broker = self._start()
        try:
            yield broker
        finally:
            if isinstance(broker, ApacheKafka | LightBroker):
                broker.remove()


def choose(environment: Mapping[str, str] = os.environ) -> Choice:
    """Decide by the environment; starts nothing. Raises Unavailable where what is asked for can't be had."""
    cluster = environment.get("KAFKA_BOOTSTRAP_SERVERS")
    if cluster:
        return Choice(f"the cluster at {cluster} (KAFKA_BOOTSTRAP_SERVERS)", lambda: Cluster(cluster))
    wish = environment.get("BROKER", "auto")
    if wish == "light":
        return Choice("the light broker (BROKER=light)", LightBroker.started)
    if wish not in {"auto", "apache"}:
        raise Unavailable(f"BROKER={wish}: write auto, apache or light")
    lacking = missing()
    if lacking is None:
        return Choice("Apache Kafka, started here", ApacheKafka.started if wish == "apache" else _apache_or_light)
    if wish == "apache":
        raise Unavailable(f"BROKER=apache, but {lacking}")
    return Choice(f"the light broker: {lacking}", LightBroker.started)


def _apache_or_light() -> Broker:
    try:
        resolve()
    except Unavailable:
        return LightBroker.started()
    return ApacheKafka.started()
