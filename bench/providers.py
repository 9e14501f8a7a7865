"""A mail relay and an HTTP API server that use almost no CPU, so that they do not limit a measurement.

Each runs in its own process on the machine's last core, and counts the messages and how many of them are different.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, cast

import uvloop

BACKLOG = 4096
IDENTITY = re.compile(rb'Message-ID: <(\w{20,})@|"(?:dedup_)?key": ?"(\w{20,})"|\b(train-n\d+)')
"""The part that identifies a message: the delivery's key, or the launch plan's name in messages of the baselines."""


def cores() -> tuple[int, int]:
    """The core for measured programs and the core for providers; the same one if the machine has only one core."""
    available = sorted(os.sched_getaffinity(0))
    return available[0], available[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions:
    """The options of a provider."""

    delay: float = 0
    """Seconds before the answer to each message."""
    pipelining: bool = False
    """True if the relay offers PIPELINING."""
    max_connections: int = 1_000_000
    """The relay answers 421 to connections above this number."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The counts since `begin`."""

    messages: int
    different: int
    refused: int
    """Connections refused because of the limit."""
    max_open: int
    """The largest number of open connections."""
    first: float
    last: float
    """When the first and the last message arrived, in seconds of the monotonic clock."""


@dataclass(slots=True)
class _Count:
    messages: int = 0
    identities: set[bytes] = field(default_factory=set)
    refused: int = 0
    max_open: int = 0
    first: float = 0
    last: float = 0
    open: int = 0

    def begin(self) -> None:
        self.messages = self.refused = self.max_open = 0
        self.identities.clear()

    def arrivals(self) -> Arrivals:
        return Arrivals(self.messages, len(self.identities), self.refused, self.max_open, self.first, self.last)


class _Server(asyncio.Protocol):
    """Base of both servers: counts a message and answers it, after the delay."""

    transport: asyncio.Transport

    def __init__(self, options: ProviderOptions, count: _Count) -> None:
        self.options = options
        self.count = count
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's class does not inherit from it
        self.count.open += 1
        self.count.max_open = max(self.count.max_open, self.count.open)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.count.open -= 1

    def accept(self, message: bytes, answer: bytes) -> None:
        found = IDENTITY.search(message)
        self.count.messages += 1
        if self.count.messages == 1:
            self.count.first = time.monotonic()
        self.count.identities.add(found[found.lastindex or 0] if found else message)
        self.count.last = time.monotonic()
        if self.options.delay:
            asyncio.get_running_loop().call_later(self.options.delay, self.reply, answer)
        else:
            self.transport.write(answer)

    def reply(self, answer: bytes) -> None:
        if not self.transport.is_closing():  # the client may have disconnected during the delay
            self.transport.write(answer)


class Relay(_Server):
    """SMTP with the commands that a mail needs."""

    in_mail = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.count.open > self.options.max_connections:
            self.count.refused += 1
            self.transport.write(b"421 4.7.0 too many connections\r\n")
            self.transport.close()
        else:
            self.transport.write(b"220 bench ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.received += data
        answers = b""
        while True:
            if self.in_mail:
                end = self.received.find(b"\r\n.\r\n")
                if end < 0:
                    break
                mail, self.received, self.in_mail = self.received[:end], self.received[end + 5 :], False
                self.accept(mail, b"250 2.0.0 taken\r\n")
                continue
            line, found, rest = self.received.partition(b"\r\n")
            if not found:
                break
            self.received = rest
            answers += self.answer(line[:4].upper())
        if answers:
            self.transport.write(answers)

    def answer(self, command: bytes) -> bytes:
        match command:
            case b"EHLO":
                return b"250-bench\r\n" + (b"250-PIPELINING\r\n" if self.options.pipelining else b"") + b"250 SIZE\r\n"
            case b"DATA":
                self.in_mail = True
                return b"354 go on\r\n"
            case b"QUIT":
                self.transport.write(b"221 bye\r\n")
                self.transport.close()
                return b""
            case _:
                return b"250 OK\r\n"


class Api(_Server):
    """HTTP/1.1 that accepts every POST, and answers like Slack's Web API, Slack's webhooks or PagerDuty's Events API."""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while True:
            head, found, body = self.received.partition(b"\r\n\r\n")
            length = int(_LENGTH.findall(head)[0]) if found else 0
            if not found or len(body) < length:
                return
            self.received = body[length:]
            status, answer = _answer_to(head.partition(b"\r\n")[0])
            reply = b"HTTP/1.1 %s\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s"
            self.accept(body[:length], reply % (status, len(answer), answer))


_LENGTH = re.compile(rb"(?i)content-length: (\d+)")


def _answer_to(request: bytes) -> tuple[bytes, bytes]:
    if b"/v2/enqueue" in request:
        return b"202 Accepted", b'{"status": "success", "message": "Event processed", "dedup_key": "k"}'
    if b"/api/" in request:
        return b"200 OK", b'{"ok": true, "channel": "C0123456789", "ts": "1763700000.000100"}'
    return b"200 OK", b"ok"


class Provider:
    """A running provider. Its methods raise RuntimeError if its process has died."""

    def __init__(self, port: int, pipe: Connection) -> None:
        self.port = port
        self._pipe = pipe

    def begin(self) -> None:
        """Reset the counts."""
        self._request("begin")

    def arrivals(self) -> Arrivals:
        counts: Arrivals = self._request("count")
        return counts

    def _request(self, command: str) -> Any:
        with _void_if_it_dies():
            self._pipe.send(command)
            return self._pipe.recv()

    def wait_for(self, messages: int, seconds: float) -> Arrivals:
        """Wait until so many messages have arrived, for at most `seconds`. Returns the counts."""
        until = time.monotonic() + seconds
        while (so_far := self.arrivals()).messages < messages and time.monotonic() < until:
            time.sleep(0.02)
        return so_far


@contextmanager
def running_provider(protocol: type[_Server], options: ProviderOptions) -> Iterator[Provider]:
    """A provider that runs until the end of the block. Raises RuntimeError if its process dies at the start."""
    spawn = multiprocessing.get_context("spawn")
    parent_end, child_end = spawn.Pipe()
    process = spawn.Process(target=_run, args=(child_end, protocol, options), daemon=True)
    process.start()
    child_end.close()  # otherwise recv() would not notice that the process has closed its copy
    try:
        with _void_if_it_dies():
            port = parent_end.recv()
        yield Provider(port, parent_end)
    finally:
        with suppress(ConnectionError):
            parent_end.send("stop")
        process.join()


@contextmanager
def _void_if_it_dies() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise RuntimeError("the provider has died: this measurement is void") from None


def _run(pipe: Connection, protocol: type[_Server], options: ProviderOptions) -> None:
    os.sched_setaffinity(0, {cores()[1]})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(pipe, protocol, options))


async def _serve(pipe: Connection, protocol: type[_Server], options: ProviderOptions) -> None:
    count = _Count()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def handle_command() -> None:
        match pipe.recv():
            case "begin":
                count.begin()
                pipe.send(None)
            case "count":
                pipe.send(count.arrivals())
            case _:
                stop.set()

    server = await loop.create_server(lambda: protocol(options, count), "127.0.0.1", 0, backlog=BACKLOG)
    loop.add_reader(pipe.fileno(), handle_command)
    pipe.send(server.sockets[0].getsockname()[1])
    await stop.wait()
    loop.remove_reader(pipe.fileno())
    server.close()
