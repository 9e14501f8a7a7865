"""Servers that misbehave below HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self


@asynccontextmanager
async def breaking_server(answer: bytes) -> AsyncIterator[str]:
    """Reads a request, writes these bytes and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"


@asynccontextmanager
async def a_way_there(status: bytes, answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server on the way that gives each request this answer and a cookie: its address, and the heads of what it was sent."""
    heads: list[bytes] = []
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readexactly(int(heads[-1].partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))
                writer.write(status + b"\r\nContent-Type: application/json\r\nSet-Cookie: way=2\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(answer), answer))
        writer.close()
        await writer.wait_closed()
        left.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
        await left.wait()


@asynccontextmanager
async def stranger(answer: bytes | None) -> AsyncIterator[int]:
    """Writes these bytes to whoever says something, and hangs up; None: stays silent. Gives its port."""
    ending = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        if answer is None:
            await ending.wait()
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        ending.set()
        await asyncio.sleep(0.05)


async def until_gone(reader: asyncio.StreamReader, released: asyncio.Event) -> None:
    """Say nothing until the other side hangs up, or `released` is set."""
    leaving = [asyncio.ensure_future(reader.read()), asyncio.ensure_future(released.wait())]
    await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)


class Line:
    """A TCP connection to a server that can go dead: nobody hangs up, nothing comes through. New ones are well."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._pipes: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        for writer in self._writers:
            writer.close()
        self._server.close()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Let every connection there is go dead."""
        for pipe in self._pipes:
            pipe.cancel()
        self._pipes.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, ours]
        self._pipes += [asyncio.create_task(_pipe(reader, ours)), asyncio.create_task(_pipe(theirs, writer))]


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
