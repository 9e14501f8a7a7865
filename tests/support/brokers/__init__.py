"""Brokers for the tests: real Apache Kafka where Java and Maven are, else a lighter one from PyPI.

KAFKA_BOOTSTRAP_SERVERS points at any other cluster; BROKER=apache|light|auto chooses (auto is the default).
`python -m tests.support.brokers` starts the chosen one and prints where it listens.
"""

from __future__ import annotations

import os
import shutil
from typing import Protocol

from tests.support.brokers.apache import ApacheKafka, Unobtainable
from tests.support.brokers.light import LightBroker


class Broker(Protocol):
    """A broker that the tests own, or were pointed at."""

    name: str
    """What it is, for the report."""

    @property
    def bootstrap_servers(self) -> str: ...

    def stop(self) -> None: ...


class Elsewhere:
    """A cluster that somebody else runs."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.name = f"the cluster at {bootstrap_servers}"

    def stop(self) -> None:
        """It is not ours to stop."""


def start() -> Broker:
    """Start the broker that the environment asks for. Raises Unobtainable where BROKER=apache can't be had."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        return Elsewhere(given)
    wanted = os.environ.get("BROKER", "auto") or "auto"
    if wanted == "light":
        return LightBroker().start()
    if wanted == "auto" and not (shutil.which("java") and shutil.which("mvn")):
        return LightBroker("no Java or no Maven here").start()
    try:
        return ApacheKafka().start()
    except Unobtainable as error:
        if wanted == "apache":
            raise
        return LightBroker(str(error)).start()
