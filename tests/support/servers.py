"""TCP servers and proxies that misbehave."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Self


@asynccontextmanager
async def breaking_server(answer: bytes) -> AsyncIterator[str]:
    """A server that reads a request's headers, writes these bytes and closes the connection; yields its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"


@asynccontextmanager
async def proxy_server(status: bytes, answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An HTTP server, or proxy, that gives each request this response and a cookie.

    Yields its URL, and the list of the headers of the requests that it received.
    """
    heads: list[bytes] = []
    disconnected = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                await reader.readexactly(int(heads[-1].partition(b"Content-Length: ")[2].partition(b"\r\n")[0]))
                writer.write(status + b"\r\nContent-Type: application/json\r\nSet-Cookie: way=2\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(answer), answer))
        writer.close()
        await writer.wait_closed()
        disconnected.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
        await disconnected.wait()


@asynccontextmanager
async def garbage_server(answer: bytes | None) -> AsyncIterator[int]:
    """A server that answers anything with these bytes and closes the connection; None: never answers. Yields its port."""
    finished = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        if answer is None:
            await finished.wait()
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        finished.set()
        await asyncio.sleep(0.05)


class ForwardProxy:
    """An HTTP proxy that forwards everything to one local port, whatever host the client names.

    It takes CONNECT, and requests with a whole URL. With `login` it wants that login (Basic), else it answers 407.
    """

    def __init__(self, port: int, *, login: str = "", refusal: int = 0) -> None:
        """`refusal`: the status that answers every request; 0: requests are forwarded."""
        self._port = port
        self._login = base64.b64encode(login.encode()).decode()
        self._refusal = refusal
        self._pipes: set[asyncio.Task[None]] = set()
        self._serving: set[Any] = set()
        self.targets: list[str] = []
        """The target in each request line: `HOST:PORT` after CONNECT, otherwise a URL."""
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.decode("latin-1").split(" ", 2)
            self.targets.append(target)
            missing = self._login and f"Basic {self._login}\r\n".encode() not in head
            if refusal := 407 if missing else self._refusal:
                writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % refusal)
            else:
                await self._forward(method, head, reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _forward(
        self, method: str, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:  # as proxies do: only the path, and one request for each connection
            first, rest = head.split(b"\r\n", 1)
            method_name, url, version = first.split(b" ")
            path = b"/" + url.split(b"/", 3)[3]
            server_writer.write(b" ".join((method_name, path, version)) + b"\r\nConnection: close\r\n" + rest)
        pipes = [asyncio.create_task(_pipe(reader, server_writer)), asyncio.create_task(_pipe(server_reader, writer))]
        self._pipes.update(pipes)
        await asyncio.wait(pipes)
        server_writer.close()
        with suppress(ConnectionError):
            await server_writer.wait_closed()


@asynccontextmanager
async def endless_server(head: bytes, piece: bytes, *, pause: float = 0) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that answers each request with this head, and then sends the piece again and again, until the client
    disconnects. `pause`: seconds between two pieces.

    Yields its URL, and a list with the number of bytes that were sent to each client.
    """
    sent: list[int] = []
    finished = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        index = len(sent)
        sent.append(0)
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
            while not finished.is_set():
                writer.write(piece)
                await writer.drain()
                sent[index] += len(piece)
                await asyncio.sleep(pause)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has disconnected
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", sent
        finished.set()
        await asyncio.sleep(pause + 0.05)


async def wait_for_disconnect(reader: asyncio.StreamReader, released: asyncio.Event) -> None:
    """Send nothing until the client closes the connection or `released` is set."""
    tasks = [asyncio.ensure_future(reader.read()), asyncio.ensure_future(released.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class TcpProxy:
    """A proxy to a local port that can stop forwarding without closing connections, like a network that drops packets."""

    def __init__(self, port: int) -> None:
        self._target_port = port
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
        """Stop forwarding on all present connections. New connections work."""
        for pipe in self._pipes:
            pipe.cancel()
        self._pipes.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers += [writer, server_writer]
        self._pipes += [
            asyncio.create_task(_pipe(reader, server_writer)),
            asyncio.create_task(_pipe(server_reader, writer)),
        ]


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()
