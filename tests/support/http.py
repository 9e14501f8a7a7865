"""An HTTP server with scripted answers, as raw bytes; it records each complete request."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from tests.support.servers import wait_for_disconnect
from tests.support.waiting import until


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request."""

    method: str
    path: str
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A complete HTTP response that keeps the connection open."""
    lines = [f"HTTP/1.1 {status} Some words", f"Content-Length: {len(body)}", "Content-Type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(slots=True)
class ScriptedHttp:
    """A server on a free loopback port, for the duration of the block."""

    default: bytes = field(default_factory=lambda: answer(200))
    steps: list[bytes | None] = field(default_factory=list)
    """Answers for the next requests, each before `default` is used. After each one the connection is closed. None: no
    answer until the block ends."""
    requests: list[Request] = field(default_factory=list)
    check_request: Callable[[Request], object] = lambda _: None
    """Called with each request; if it raises an exception, the answer is a 599 with that exception."""
    tls: ssl.SSLContext | None = None
    open: int = 0
    """Number of open connections."""
    connections: int = 0
    """Number of connections so far."""
    url: str = ""
    _server: asyncio.Server | None = None
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20, ssl=self.tls)
        self.url = f"http{'s' if self.tls is not None else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self._released.set()
        for writer in self._writers:
            writer.close()
        await self.until(lambda: not self.open)
        await self._server.wait_closed()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true; fails after ten seconds."""
        await until(condition, 10)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.connections += 1
        self._writers.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._answer(await _read(reader), reader, writer):
                    pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self.open -= 1

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return True if the connection stays open."""
        self.requests.append(request)
        scripted = bool(self.steps)
        response = self.steps.pop(0) if scripted else self.default
        try:
            self.check_request(request)
        except Exception as error:  # noqa: BLE001 - the test reads it in the answer
            response = answer(599, repr(error).encode())
        if response is None:
            await wait_for_disconnect(reader, self._released)
            return False
        writer.write(response)
        await writer.drain()
        return not scripted


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)
