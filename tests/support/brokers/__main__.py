"""Starts a broker for manual tests: `python -m tests.support.brokers [TOPIC …]` also creates the topics."""

from __future__ import annotations

import asyncio
import signal
import sys

from tests.support.brokers import start
from tests.support.brokers.fixtures import make_topic

broker = start()
try:
    for topic in sys.argv[1:]:
        asyncio.run(make_topic(broker.bootstrap_servers, topic))
    print(f"{broker.name}: {broker.bootstrap_servers}; Ctrl-C stops it", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
finally:
    broker.stop()
