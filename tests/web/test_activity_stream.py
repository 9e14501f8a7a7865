"""The activity stream: read from the ledger, shared by all listeners, resumed after a break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from dispatcher.ledger import Ledger
from dispatcher.web.activity_stream import event_id
from tests.support.builders import SECOND
from tests.support.console import DEAD, ConsoleServer, serve_console


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/ledger.db"


@pytest.fixture
async def console(url: str) -> AsyncIterator[ConsoleServer]:
    async with serve_console(url, streams=2) as server:
        yield server


class Listener:
    """Reads a stream's events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> tuple[str, str, dict[str, Any]]:
        """An event's kind, id and data; comments are skipped."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(20):
            while True:
                line = (await self.answer.content.readline()).decode().rstrip("\n")
                if not line and "event" in fields:
                    return fields["event"], fields["id"], orjson.loads(fields["data"])
                name, _, value = line.partition(": ")
                fields[name] = value


@asynccontextmanager
async def listening(console: ConsoleServer, *, last: str = "", status: int = 200) -> AsyncIterator[Listener]:
    headers = {"Last-Event-ID": last} if last else {}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{console.url}/api/v1/stream", headers=headers) as answer,
    ):
        assert answer.status == status
        if status == 200:
            assert answer.content_type == "text/event-stream"
            assert (await answer.content.readline()).startswith(b"retry:")
            await answer.content.readline()
        yield Listener(answer)


async def newest(console: ConsoleServer) -> str:
    return event_id((await console.ledger.queries.latest(limit=1))[-1])


async def test_every_listener_gets_what_another_replica_records(console: ConsoleServer, url: str) -> None:
    await console.finish("before")
    now = await newest(console)
    async with listening(console, last=now) as one, listening(console, last=now) as two:
        async with Ledger(url) as replica:
            await ConsoleServer(replica, console.intake, console.clock).deliver("email", DEAD)
        for listener in (one, two):
            kind, _, data = await listener.next()
            assert (kind, data["outcome"], len(data["recipients"])) == ("attempt", "dead", 2)


async def test_a_reconnecting_listener_gets_what_it_missed(console: ConsoleServer) -> None:
    await console.finish("before")
    async with listening(console, last=await newest(console)) as listener:
        await console.finish("one")
        kind, last, data = await listener.next()
        assert (kind, data["name"]) == ("event", "one")
    console.clock.advance(60 * SECOND)
    await console.finish("two")
    await console.intake.ingest([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    async with listening(console, last=last) as listener:
        missed = [await listener.next() for _ in range(3)]
    kinds = sorted((kind, data.get("name", "")) for kind, _, data in missed)
    assert kinds == [
        ("event", "before"),
        ("event", "two"),
        ("rejected", ""),
    ]  # entries of the last seconds are repeated


async def test_listeners_beyond_the_limit_get_503_until_another_disconnects(console: ConsoleServer) -> None:
    async with listening(console), listening(console), listening(console, status=503) as excess:
        assert excess.answer.headers["Retry-After"] == "30"
    async with asyncio.timeout(20):
        while True:
            async with aiohttp.ClientSession() as session, session.get(f"{console.url}/api/v1/stream") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.1)


async def test_an_invalid_last_event_id_gets_400(console: ConsoleServer) -> None:
    async with listening(console, last="7", status=400):
        pass


async def test_stopping_the_service_ends_the_streams(console: ConsoleServer) -> None:
    async with listening(console) as listener:
        console.stopping.set()
        async with asyncio.timeout(10):
            assert await listener.answer.content.read() == b""


TOKEN = "operator-0123456789"


@pytest.mark.parametrize("path", ["/api/v1/stream", "/console/stream"])
@pytest.mark.parametrize("ended_by", ["rotation", "logout", "expiry"])
async def test_a_stream_ends_when_its_token_or_session_does(tmp_path: Path, path: str, ended_by: str) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    tokens = [{"name": "oncall", "token_file": str(file), "scopes": ["read"]}]
    cookies = aiohttp.CookieJar(unsafe=True)  # unsafe: also for IP addresses
    async with (
        serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", tokens=tokens, session="1h") as console,
        aiohttp.ClientSession(cookie_jar=cookies) as browser,
    ):
        headers = {"Authorization": f"Bearer {TOKEN}"} if ended_by == "rotation" else {}
        if ended_by != "rotation":
            async with browser.post(f"{console.url}/login", data={"token": TOKEN}) as answer:
                page = await answer.text()
        copied = {"Cookie": "; ".join(f"{one.key}={one.value}" for one in cookies)}
        async with browser.get(f"{console.url}{path}", headers=headers) as stream:
            assert (stream.status, await stream.content.readline()) == (200, b"retry: 2000\n")
            match ended_by:
                case "rotation":
                    file.write_text(TOKEN[::-1])
                case "logout":
                    form = {"csrf_token": page.partition('name="csrf_token" value="')[2].partition('"')[0]}
                    async with browser.post(f"{console.url}/logout", data=form) as answer:
                        assert answer.url.path == "/login"
                case _:
                    console.clock.advance(3601 * SECOND)
            await console.finish("secret")
            async with asyncio.timeout(10):
                assert b"secret" not in await stream.content.read()
        async with aiohttp.ClientSession() as another, another.get(console.url + path, headers=copied) as answer:
            assert answer.status == 401  # nor does a copy of the cookie
