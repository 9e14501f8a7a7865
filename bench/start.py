"""Seconds until the service is ready, and for `preview` and `--help`, compared with `python -c pass`."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.figures import Figure, Goal, interleaved
from tests.support.service import COMMAND, free_port

SETTINGS = """
http: {{listen: "127.0.0.1:{port}"}}
ledger: {{url: "sqlite+aiosqlite:///{folder}/ledger.db"}}
rules: {{launch_plans: []}}
channels:
  email: {{host: relay.example.com, from: flyte@example.com}}
  slack: {{token: example}}
  pagerduty: {{services: {{service: {{routing_key: 0123456789abcdef0123456789abcdef}}}}}}
  teams: {{targets: {{team: {{url: "https://example.com/workflows/example"}}}}}}
  webhook: {{targets: {{hook: {{url: "https://example.com/hooks/example"}}}}}}
"""


def figures(rounds: int, *, smoke: bool) -> Iterator[Figure]:
    del smoke  # the full benchmark is short
    found = interleaved(
        max(rounds, 1),
        {
            "ready": until_ready,
            "preview": partial(until_done, *COMMAND, "preview", "--channel", "email"),
            "help": partial(until_done, *COMMAND, "--help"),
            "nothing": partial(until_done, sys.executable, "-c", "pass"),
        },
    )
    works = {
        "ready": ("`serve` with five channels and an empty SQLite ledger, to ready", Goal("at most", 2, of="value")),
        "preview": ("`preview --channel email`", None),
        "help": ("`--help`", Goal("at most", 0.3, of="value")),
    }
    for name, (work, goal) in works.items():
        yield Figure(
            path="start",
            work=work,
            baseline="`python -c pass`",
            ours=found[name],
            theirs=found["nothing"],
            unit=" s",
            goal=goal,
        )


def until_done(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def until_ready() -> float:
    """Seconds from the start of the process until it answers 200 to /readyz."""
    with TemporaryDirectory() as folder:
        port = free_port()
        file = Path(folder, "dispatcher.yaml")
        file.write_text(SETTINGS.format(port=port, folder=folder))
        began = time.perf_counter()
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not ready(port):
                if process.poll() is not None:
                    raise RuntimeError(f"serve ended with status {process.returncode}")
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            process.terminate()
            process.wait(30)


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False
