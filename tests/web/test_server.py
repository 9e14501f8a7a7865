"""The listener: timeouts for slow clients, the maximum number of connections, trusted proxies, and TLS."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import structlog
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from dispatcher.errors import DispatcherError, SettingsError
from dispatcher.web.headers import SafeHeaders
from dispatcher.web.limits import log_refusal
from dispatcher.web.server import serving
from dispatcher.web.uvicorn_internals import ConnectionLimits
from tests.support.tls import a_certificate
from tests.support.waiting import until

SHORT, LONG = timedelta(milliseconds=200), timedelta(minutes=5)
LONG_TIMEOUTS = {"headers": LONG, "body": LONG, "unread_body": LONG, "stalled_response": LONG}
REQUEST_HEADERS = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


async def _page(request: Request) -> Response:
    await request.body()
    client = request.client.host if request.client else ""
    return JSONResponse({"client": client, "scheme": request.url.scheme})


async def _refuse(_: Request) -> Response:
    return Response(b"no", 403)


ROUTES = [
    Route("/", _page, methods=["GET", "POST"]),
    Route("/refused", _refuse, methods=["POST"]),
]


@asynccontextmanager
async def served(limits: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[str]:
    connection_limits = ConnectionLimits(**{**LONG_TIMEOUTS, **(limits or {})})
    async with serving(
        SafeHeaders(Starlette(routes=ROUTES)), "127.0.0.1", 0, limits=connection_limits, **options
    ) as url:
        yield url


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", urlsplit(url).port)


async def response_to(url: str, *parts: bytes) -> bytes:
    """Everything that the server sends in response to these bytes until it closes the connection."""
    reader, writer = await connect(url)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(20):
            return await reader.read()
    except ConnectionError:
        return b"reset"
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("headers", b""),
        ("headers", b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: "),
        ("body", REQUEST_HEADERS + b"1234"),
        ("headers", REQUEST_HEADERS + b"12345" + b"GET /"),  # the second request of a connection
    ],
)
async def test_an_incomplete_request_closes_its_connection_after_the_timeout(limit: str, sent: bytes) -> None:
    async with served({limit: SHORT}) as url:
        assert b"413" not in await response_to(url, sent)


async def test_an_answer_over_a_kept_connection_does_not_wait_for_the_clients_acknowledgement() -> None:
    """Linux delays acknowledgements by up to 40 ms, but not those of a connection's first packets."""
    took = []
    async with served() as url, aiohttp.ClientSession() as session:
        for _ in range(40):
            began = time.perf_counter()
            async with session.get(url) as answer:
                await answer.read()
            took.append(time.perf_counter() - began)
    assert min(took[20:]) < 0.035


async def test_a_client_that_sends_a_byte_now_and_then_does_not_extend_the_timeout() -> None:
    async with served({"headers": SHORT}) as url:
        reader, writer = await connect(url)
        writer.write(b"GET / HTTP/1.1\r\n")
        closed = asyncio.ensure_future(reader.read())

        def closed_after_a_byte() -> bool:
            writer.write(b"X-Slow: 1\r\n")
            return closed.done()

        await until(closed_after_a_byte)
        writer.close()


async def test_a_body_that_continues_after_the_response_is_cut_off() -> None:
    async with served({"unread_body": SHORT}) as url:
        answer = await response_to(
            url, b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", b"x" * 65536
        )
        assert answer.startswith(b"HTTP/1.1 403")


def test_refused_requests_cannot_fill_the_log() -> None:
    with structlog.testing.capture_logs() as logged:
        for _ in range(1000):
            log_refusal("203.0.113.7", "the Host header is not valid")
    assert len(logged) <= 10


async def test_a_client_that_does_not_read_its_response_is_disconnected() -> None:
    stopped = asyncio.Event()

    async def endless(_: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                stopped.set()

        return StreamingResponse(parts())

    limits = ConnectionLimits(stalled_response=SHORT)
    async with serving(Starlette(routes=[Route("/", endless)]), "127.0.0.1", 0, limits=limits) as url:
        _, writer = await connect(url)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # the transport also reads
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(stopped.is_set)
        writer.close()


async def test_beyond_the_maximum_of_connections_the_longest_idle_one_is_closed() -> None:
    async with served({"connections": 3}) as url, aiohttp.ClientSession() as session:
        reader, writer = await connect(url)
        others = [await connect(url) for _ in range(5)]
        async with asyncio.timeout(20):
            assert await reader.read() == b""
            async with session.get(url) as answer:
                assert answer.status == 200
        for _, one in others:
            one.close()
        writer.close()


async def test_forwarded_headers_are_believed_only_from_trusted_proxies() -> None:
    forwarded = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    async with aiohttp.ClientSession() as session:
        async with served() as url, session.get(url, headers=forwarded) as answer:
            assert await answer.json() == {"client": "127.0.0.1", "scheme": "http"}
        async with served(trusted_proxies=["127.0.0.0/8"]) as url, session.get(url, headers=forwarded) as answer:
            assert await answer.json() == {"client": "203.0.113.7", "scheme": "https"}


async def test_a_replaced_certificate_is_used_once_it_is_complete(
    tmp_path: Path,
) -> None:
    first, second = trustme.CA(), trustme.CA()
    tls = a_certificate(tmp_path, first)

    async def is_trusted(authority: trustme.CA) -> bool:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        try:
            async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as answer:
                assert answer.headers["Strict-Transport-Security"]
                assert url.startswith("https://")
                return answer.ok
        except aiohttp.ClientConnectorCertificateError:
            return False

    async with served(tls=tls) as url:
        assert [await is_trusted(first), await is_trusted(second)] == [True, False]
        (tmp_path / "cert.pem").write_text("half")
        assert await is_trusted(first)
        a_certificate(tmp_path, second)
        assert [await is_trusted(first), await is_trusted(second)] == [False, True]


async def test_invalid_certificate_files_are_a_settings_error(tmp_path: Path) -> None:
    tls = a_certificate(tmp_path, trustme.CA())
    tls.key_file.write_text("no key")
    with pytest.raises(SettingsError, match=r"http\.tls: cert_file and key_file"):
        async with served(tls=tls):
            pass


async def test_a_uvicorn_that_lacks_what_the_timeouts_need_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(H11Protocol, "on_response_complete")
    with pytest.raises(DispatcherError, match=r"uvicorn \S+ can't be used, .*: it lacks on_response_complete"):
        async with served():
            pass
