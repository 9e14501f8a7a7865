"""Runs replicas of the service as processes, and measures their memory and CPU."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
from aiokafka import AIOKafkaProducer

from dispatcher.flyte.encode import EncodedMessage
from tests.support.service import COMMAND, free_port

TIMEOUT = 60.0
"""Seconds."""


class Replica:
    """One running `dispatcher serve`."""

    def __init__(self, process: psutil.Popen, port: int, log: Path) -> None:
        self.process = process
        self._port = port
        self._log = log

    def wait_until_ready(self) -> None:
        until = monotonic() + TIMEOUT
        while not ready(self._port):
            if self.process.poll() is not None or monotonic() > until:
                raise RuntimeError(f"the service is not ready: {self._log.read_text()[-2000:]}")
            sleep(0.005)


@contextmanager
def serving(folder: Path, settings: Mapping[str, Any], name: str = "replica") -> Iterator[Replica]:
    """Start a replica, without waiting until it is ready; stop it at the end of the block."""
    port = free_port()
    all_settings = {"http": {"listen": f"127.0.0.1:{port}"}, "log": "json", **settings}
    config, log = folder / f"{name}.yaml", folder / f"{name}.log"
    config.write_text(json.dumps(all_settings))
    with log.open("wb") as sink:
        process = psutil.Popen([*COMMAND, "serve", "--config", str(config)], stdout=sink, stderr=sink)
    try:
        yield Replica(process, port, log)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        try:
            process.wait(TIMEOUT)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def several(folder: Path, settings: Mapping[str, Any], count: int) -> Iterator[list[Replica]]:
    """Start `count` replicas and wait until all are ready."""
    with ExitStack() as stack:
        running = [stack.enter_context(serving(folder, settings, f"replica-{number}")) for number in range(count)]
        for replica in running:
            replica.wait_until_ready()
        yield running


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def resident(pid: int, *, peak: bool = False) -> float:
    """Resident memory of a process in MiB, current or peak (proc(5), VmRSS and VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", status, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"process {pid} has ended")
    return int(found[1]) / 1024


async def fill(servers: str, topic: str, messages: Iterable[tuple[int, EncodedMessage]]) -> None:
    """Publish messages, given as partition and message."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, linger_ms=20, max_batch_size=256 * 1024)
    await producer.start()
    for partition, message in messages:
        await producer.send(topic, message.value, headers=list(message.headers), partition=partition)
    await producer.stop()


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU seconds used so far by processes and all their children, including ended ones."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
        times = process.cpu_times()
        total += times.children_user + times.children_system
    return total
