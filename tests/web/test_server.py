"""The listener: clients that keep it waiting, how many there may be, and TLS."""

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
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dispatcher.errors import SettingsError
from dispatcher.web.config import Tls
from dispatcher.web.connection import Patience
from dispatcher.web.headers import SafeHeaders
from dispatcher.web.server import serving

SHORT, LONG = timedelta(milliseconds=200), timedelta(minutes=5)
PATIENT = {"head": LONG, "body": LONG, "rest": LONG, "reading": LONG}
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


async def _page(request: Request) -> Response:
    await request.body()
    client = request.client.host if request.client else ""
    return JSONResponse({"client": client, "scheme": request.url.scheme})


async def _impatient(_: Request) -> Response:
    return Response(b"no", 403)


ROUTES = [
    Route("/", _page, methods=["GET", "POST"]),
    Route("/refused", _impatient, methods=["POST"]),
]


@asynccontextmanager
async def served(patience: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[str]:
    patient = Patience(**{**PATIENT, **(patience or {})})
    async with serving(SafeHeaders(Starlette(routes=ROUTES)), "127.0.0.1", 0, patience=patient, **options) as url:
        yield url


async def connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", urlsplit(url).port)


async def said(url: str, *parts: bytes) -> bytes:
    """What comes back for these bytes until the connection ends."""
    reader, writer = await connected(url)
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
    ("slow", "sent"),
    [
        ("head", b""),
        ("head", b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: "),
        ("body", HEAD + b"1234"),
        ("head", HEAD + b"12345" + b"GET /"),  # the second request of a connection
    ],
)
async def test_a_request_that_does_not_arrive_ends_its_connection(slow: str, sent: bytes) -> None:
    async with served({slow: SHORT}) as url:
        assert b"413" not in await said(url, sent)


async def test_an_answer_over_a_kept_connection_does_not_wait_for_the_clients_acknowledgement() -> None:
    """Linux puts an acknowledgement off for 40 ms; the first answers of a connection don't meet with that."""
    took = []
    async with served() as url, aiohttp.ClientSession() as session:
        for _ in range(40):
            began = time.perf_counter()
            async with session.get(url) as answer:
                await answer.read()
            took.append(time.perf_counter() - began)
    assert min(took[20:]) < 0.035


async def test_a_request_that_trickles_in_has_no_more_time_than_another() -> None:
    async with served({"head": SHORT}) as url:
        reader, writer = await connected(url)
        writer.write(b"GET / HTTP/1.1\r\n")
        ended = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(20):
            while not ended.done():
                writer.write(b"X-Slow: 1\r\n")
                await asyncio.wait([ended], timeout=0.02)
        writer.close()


async def test_what_is_still_sent_after_the_answer_is_not_read_for_long() -> None:
    async with served({"rest": SHORT}) as url:
        answer = await said(
            url, b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", b"x" * 65536
        )
        assert answer.startswith(b"HTTP/1.1 403")


async def test_an_answer_that_nobody_reads_ends_the_connection() -> None:
    over = asyncio.Event()

    async def endless(_: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                over.set()

        return StreamingResponse(parts())

    patience = Patience(reading=SHORT)
    async with serving(Starlette(routes=[Route("/", endless)]), "127.0.0.1", 0, patience=patience) as url:
        _, writer = await connected(url)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # it reads, too
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            await over.wait()
        writer.close()


async def test_past_the_most_connections_the_one_idle_for_longest_goes() -> None:
    async with served({"connections": 3}) as url, aiohttp.ClientSession() as session:
        reader, writer = await connected(url)
        others = [await connected(url) for _ in range(5)]
        async with asyncio.timeout(20):
            assert await reader.read() == b""
            async with session.get(url) as answer:
                assert answer.status == 200
        for _, one in others:
            one.close()
        writer.close()


async def test_what_a_proxy_says_holds_only_where_it_is_trusted() -> None:
    said = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    async with aiohttp.ClientSession() as session:
        async with served() as url, session.get(url, headers=said) as answer:
            assert await answer.json() == {"client": "127.0.0.1", "scheme": "http"}
        async with served(trusted_proxies=["127.0.0.0/8"]) as url, session.get(url, headers=said) as answer:
            assert await answer.json() == {"client": "203.0.113.7", "scheme": "https"}


def a_certificate(folder: Path, authority: trustme.CA) -> Tls:
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    with (folder / "cert.pem").open("wb") as file:
        for blob in leaf.cert_chain_pems:
            file.write(blob.bytes())
    return Tls(cert_file=folder / "cert.pem", key_file=folder / "key.pem")


async def test_tls_takes_a_new_certificate_while_it_runs_and_keeps_the_old_one_while_it_is_half_written(
    tmp_path: Path,
) -> None:
    first, second = trustme.CA(), trustme.CA()
    tls = a_certificate(tmp_path, first)

    async def answers(authority: trustme.CA) -> bool:
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
        assert [await answers(first), await answers(second)] == [True, False]
        (tmp_path / "cert.pem").write_text("half")
        assert await answers(first)
        a_certificate(tmp_path, second)
        assert [await answers(first), await answers(second)] == [False, True]


async def test_files_that_are_no_certificate_are_a_mistake_in_the_settings(tmp_path: Path) -> None:
    tls = a_certificate(tmp_path, trustme.CA())
    tls.key_file.write_text("no key")
    with pytest.raises(SettingsError, match=r"http\.tls: cert_file and key_file"):
        async with served(tls=tls):
            pass
