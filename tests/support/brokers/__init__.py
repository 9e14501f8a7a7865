"""Brokers for the tests: Apache Kafka if Java and Maven are installed, otherwise a lighter one from PyPI.

KAFKA_BOOTSTRAP_SERVERS selects an existing cluster, BROKER=apache|light|auto a kind of broker (default: auto).
`python -m tests.support.brokers` starts that broker and prints its address.
"""

from __future__ import annotations

import os
import shutil
from typing import Protocol

from tests.support.brokers.apache import ApacheKafka, Unobtainable
from tests.support.brokers.light import LightBroker


class Broker(Protocol):
    """A broker that the tests started, or an existing cluster."""

    name: str
    """What the broker is, for the test report."""

    @property
    def bootstrap_servers(self) -> str: ...

    def stop(self) -> None: ...


class ExistingCluster:
    """A cluster that the tests did not start."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.name = f"the cluster at {bootstrap_servers}"

    def stop(self) -> None:
        """Do nothing: the tests did not start it."""


def start() -> Broker:
    """Start the broker that the environment selects. Raises Unobtainable if BROKER=apache can't be started."""
    given = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if given:
        return ExistingCluster(given)
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
