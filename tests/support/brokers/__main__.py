"""Start a broker for trying things by hand."""

from __future__ import annotations

import signal

from tests.support.brokers import start

broker = start()
print(f"{broker.name}: {broker.bootstrap_servers}; Ctrl-C stops it", flush=True)
try:
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
finally:
    broker.stop()
