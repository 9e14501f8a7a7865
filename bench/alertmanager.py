"""Debian's prometheus-alertmanager as a baseline: on one core, with one receiver, and with one group per alert.

It keeps its notifications in memory, while the dispatcher writes them to disk before it sends them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import yaml

from bench.burst import BATCH, ERRORS, PROJECTS, TIMEOUT, RunResult, StormResult
from bench.figures import Missing
from bench.providers import Provider, cores
from bench.replicas import resident
from tests.support.service import free_port

COMMAND = "prometheus-alertmanager"


def missing(path: str, work: str) -> Iterator[Missing]:
    """Yield the table's line for a machine without Alertmanager; nothing if it is installed."""
    if not installed():
        yield Missing(path=path, work=work, baseline="Alertmanager", why=f"apt-get install {COMMAND}")


def installed() -> bool:
    return shutil.which(COMMAND) is not None


def carry(count: int, receiver: Mapping[str, Any], provider: Provider) -> RunResult:
    """Send `count` alerts, one message each, until the provider has the last one or the time is over."""
    with _running(receiver) as (url, process):
        _post(url, [_alert(count)])
        provider.wait_for(1, TIMEOUT)
        provider.begin()
        cpu, began = _cpu(process), time.monotonic()
        for first in range(0, count, BATCH):
            _post(url, [_alert(number) for number in range(first, min(first + BATCH, count))])
        arrived = provider.wait_for(count, TIMEOUT)
        if not arrived.messages:
            raise RuntimeError("nothing arrived from Alertmanager: this measurement is void")
        # Messages that did not arrive in time are not counted.
        return RunResult(arrived.messages, arrived.last - began, _cpu(process) - cpu)


def group(count: int, receiver: Mapping[str, Any], provider: Provider, *, interval: int, seconds: float) -> StormResult:
    """Send `count` alerts, grouped by project and error, and count the messages of the next `seconds`.

    A group's first message waits for a second, and each further one for `interval` seconds.
    """
    timing = {"group_by": ["project", "description"], "group_wait": "1s", "group_interval": f"{interval}s"}
    with _running(receiver, timing) as (url, process):
        provider.begin()
        cpu, began = _cpu(process), time.monotonic()
        for first in range(0, count, BATCH):
            _post(url, [_alert(number) for number in range(first, min(first + BATCH, count))])
        time.sleep(seconds)
        arrived = provider.arrivals()
        if not arrived.messages:
            raise RuntimeError("nothing arrived from Alertmanager: this measurement is void")
        return StormResult(arrived.messages, arrived.first - began, _cpu(process) - cpu)


def peak_memory(groups: int, receiver: Mapping[str, Any], provider: Provider) -> float:
    """Peak resident memory in MiB after it has notified of `groups` alert groups, which it still keeps."""
    with _running(receiver) as (url, process):
        provider.begin()
        for first in range(0, groups, BATCH):
            _post(url, [_alert(number) for number in range(first, min(first + BATCH, groups))])
        arrived = provider.wait_for(groups, TIMEOUT)
        if arrived.messages < groups:
            raise RuntimeError(f"Alertmanager sent {arrived.messages} of {groups} groups: this measurement is void")
        return resident(process.pid, peak=True)


def _alert(number: int) -> dict[str, Any]:
    project = f"bench{number % PROJECTS}"
    return {
        "labels": {
            "alertname": "ExecutionFailed",
            "execution": f"f{number:06}",
            "launch_plan": f"train-n{number}",
            "project": project,
            "domain": "production",
            "severity": "error",
            "description": ERRORS[number % len(ERRORS)],
        },
        "annotations": {"summary": f"train-n{number} failed in {project}-production"},
        "startsAt": datetime.now(UTC).isoformat(),
    }


def _post(url: str, alerts: list[dict[str, Any]]) -> None:
    request = urllib.request.Request(f"{url}/api/v2/alerts", json.dumps(alerts).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


SINGLY = {"group_by": ["..."], "group_wait": "0s"}
"""Each alert is its own group, and is notified at once."""


@contextmanager
def _running(receiver: Mapping[str, Any], timing: Mapping[str, Any] = SINGLY) -> Iterator[tuple[str, psutil.Process]]:
    with TemporaryDirectory() as folder:
        config = Path(folder, "alertmanager.yml")
        route = {"receiver": "bench", "repeat_interval": "24h", **timing}
        config.write_text(yaml.safe_dump({"route": route, "receivers": [{"name": "bench", **receiver}]}))
        url = f"http://127.0.0.1:{free_port()}"
        process = subprocess.Popen(
            [
                *("taskset", "--cpu-list", str(cores()[0]), COMMAND),
                f"--config.file={config}",
                f"--storage.path={folder}",
                f"--web.listen-address={url.removeprefix('http://')}",
                "--cluster.listen-address=",
                "--log.level=error",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_ready(url)
            yield url, psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(url: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise RuntimeError("Alertmanager did not start")


def _cpu(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)
