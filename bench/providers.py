"""A mail relay and an API server that cost next to nothing, so that they aren't what is measured.

Each runs in a process of its own, on the machine's last core, and counts what arrives: how much, and how often the same.
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
"""Where a message says which it is: our delivery's key, Alertmanager's group, or the name that a test message has."""


def cores() -> tuple[int, int]:
    """The core of whoever is measured, and the one of the providers: the same where there is but one."""
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a provider behaves."""

    takes: float = 0
    """Seconds for each message."""
    pipelining: bool = False
    """Whether the relay offers it."""
    most_connections: int = 1_000_000
    """It answers 421 to more than these at once."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What has come since the count began."""

    messages: int
    different: int
    refused: int
    """Connections above the limit."""
    most_open: int
    last: float
    """When the last message came, by the machine's monotonic clock."""


@dataclass(slots=True)
class _Count:
    messages: int = 0
    identities: set[bytes] = field(default_factory=set)
    refused: int = 0
    most_open: int = 0
    last: float = 0
    open: int = 0

    def begin(self) -> None:
        self.messages = self.refused = self.most_open = 0
        self.identities.clear()

    def told(self) -> Arrivals:
        return Arrivals(self.messages, len(self.identities), self.refused, self.most_open, self.last)


class _Server(asyncio.Protocol):
    """What the two have in common: taking a message, at once or a while later."""

    transport: asyncio.Transport

    def __init__(self, manner: Manner, count: _Count) -> None:
        self.manner = manner
        self.count = count
        self.heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self.count.open += 1
        self.count.most_open = max(self.count.most_open, self.count.open)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.count.open -= 1

    def take(self, message: bytes, answer: bytes) -> None:
        found = IDENTITY.search(message)
        self.count.messages += 1
        self.count.identities.add(found[found.lastindex or 0] if found else message)
        self.count.last = time.monotonic()
        if self.manner.takes:
            asyncio.get_running_loop().call_later(self.manner.takes, self.say, answer)
        else:
            self.transport.write(answer)

    def say(self, answer: bytes) -> None:
        if not self.transport.is_closing():  # who has all he waited for may be gone
            self.transport.write(answer)


class Relay(_Server):
    """SMTP, as far as a mail needs it."""

    in_mail = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.count.open > self.manner.most_connections:
            self.count.refused += 1
            self.transport.write(b"421 4.7.0 too many connections\r\n")
            self.transport.close()
        else:
            self.transport.write(b"220 bench ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.heard += data
        answers = b""
        while True:
            if self.in_mail:
                end = self.heard.find(b"\r\n.\r\n")
                if end < 0:
                    break
                mail, self.heard, self.in_mail = self.heard[:end], self.heard[end + 5 :], False
                self.take(mail, b"250 2.0.0 taken\r\n")
                continue
            line, found, rest = self.heard.partition(b"\r\n")
            if not found:
                break
            self.heard = rest
            answers += self.answer(line[:4].upper())
        if answers:
            self.transport.write(answers)

    def answer(self, command: bytes) -> bytes:
        match command:
            case b"EHLO":
                return b"250-bench\r\n" + (b"250-PIPELINING\r\n" if self.manner.pipelining else b"") + b"250 SIZE\r\n"
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
    """HTTP/1.1: takes whatever is posted, in the words of Slack's Web API and webhooks and of PagerDuty's Events API."""

    def data_received(self, data: bytes) -> None:
        self.heard += data
        while True:
            head, found, body = self.heard.partition(b"\r\n\r\n")
            length = int(_LENGTH.findall(head)[0]) if found else 0
            if not found or len(body) < length:
                return
            self.heard = body[length:]
            status, answer = _answer_to(head.partition(b"\r\n")[0])
            reply = b"HTTP/1.1 %s\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s"
            self.take(body[:length], reply % (status, len(answer), answer))


_LENGTH = re.compile(rb"(?i)content-length: (\d+)")


def _answer_to(request: bytes) -> tuple[bytes, bytes]:
    if b"/v2/enqueue" in request:
        return b"202 Accepted", b'{"status": "success", "message": "Event processed", "dedup_key": "k"}'
    if b"/api/" in request:
        return b"200 OK", b'{"ok": true, "channel": "C0123456789", "ts": "1763700000.000100"}'
    return b"200 OK", b"ok"


class Provider:
    """A running provider. Raises RuntimeError where its process has died."""

    def __init__(self, port: int, pipe: Connection) -> None:
        self.port = port
        self._pipe = pipe

    def begin(self) -> None:
        """Count from here."""
        self._ask("begin")

    def arrivals(self) -> Arrivals:
        told: Arrivals = self._ask("count")
        return told

    def _ask(self, question: str) -> Any:
        with _void_if_it_dies():
            self._pipe.send(question)
            return self._pipe.recv()

    def wait_for(self, messages: int, seconds: float) -> Arrivals:
        """Until so many have arrived, or the time is over."""
        until = time.monotonic() + seconds
        while (so_far := self.arrivals()).messages < messages and time.monotonic() < until:
            time.sleep(0.02)
        return so_far


@contextmanager
def providing(speaks: type[_Server], manner: Manner) -> Iterator[Provider]:
    """A provider, while the block lasts. Raises RuntimeError where its process dies before it runs."""
    spawn = multiprocessing.get_context("spawn")
    ours, its = spawn.Pipe()
    process = spawn.Process(target=_run, args=(its, speaks, manner), daemon=True)
    process.start()
    its.close()  # the process has its own: as long as this one is open, nobody learns that that one is closed
    try:
        with _void_if_it_dies():
            port = ours.recv()
        yield Provider(port, ours)
    finally:
        with suppress(ConnectionError):
            ours.send("enough")
        process.join()


@contextmanager
def _void_if_it_dies() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError):
        raise RuntimeError("the provider has died: this measurement is void") from None


def _run(pipe: Connection, speaks: type[_Server], manner: Manner) -> None:
    os.sched_setaffinity(0, {cores()[1]})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(pipe, speaks, manner))


async def _serve(pipe: Connection, speaks: type[_Server], manner: Manner) -> None:
    count = _Count()
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def asked() -> None:
        match pipe.recv():
            case "begin":
                count.begin()
                pipe.send(None)
            case "count":
                pipe.send(count.told())
            case _:
                over.set()

    server = await loop.create_server(lambda: speaks(manner, count), "127.0.0.1", 0, backlog=BACKLOG)
    loop.add_reader(pipe.fileno(), asked)
    pipe.send(server.sockets[0].getsockname()[1])
    await over.wait()
    loop.remove_reader(pipe.fileno())
    server.close()
