"""The stream of what happens: from the ledger, for everybody who listens, to be gone on with after a break."""

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
from tests.support.console import DEAD, Site, site


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(f"sqlite+aiosqlite:///{tmp_path}/ledger.db", streams=2) as made:
        yield made


class Listener:
    """Reads a stream's events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> tuple[str, str, dict[str, Any]]:
        """An event's kind, id and data; comments are passed over."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(20):
            while True:
                line = (await self.answer.content.readline()).decode().rstrip("\n")
                if not line and "event" in fields:
                    return fields["event"], fields["id"], orjson.loads(fields["data"])
                name, _, value = line.partition(": ")
                fields[name] = value


@asynccontextmanager
async def listening(place: Site, *, last: str = "", status: int = 200) -> AsyncIterator[Listener]:
    headers = {"Last-Event-ID": last} if last else {}
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{place.url}/api/v1/stream", headers=headers) as answer,
    ):
        assert answer.status == status
        if status == 200:
            assert answer.content_type == "text/event-stream"
            assert (await answer.content.readline()).startswith(b"retry:")
            await answer.content.readline()
        yield Listener(answer)


async def newest(place: Site) -> str:
    return event_id((await place.ledger.queries.latest(limit=1))[-1])


async def test_what_another_replica_writes_is_told_to_everybody_who_listens(place: Site) -> None:
    await place.ends("before")
    now = await newest(place)
    async with listening(place, last=now) as one, listening(place, last=now) as two:
        async with Ledger(place.ledger._database.url.render_as_string()) as replica:
            await Site(replica, place.intake, place.clock).arrives("email", DEAD)
        for listener in (one, two):
            kind, _, data = await listener.next()
            assert (kind, data["outcome"], len(data["recipients"])) == ("attempt", "dead", 2)


async def test_who_comes_back_gets_what_was_missed(place: Site) -> None:
    await place.ends("before")
    async with listening(place, last=await newest(place)) as listener:
        await place.ends("one")
        kind, last, data = await listener.next()
        assert (kind, data["name"]) == ("event", "one")
    place.clock.advance(60 * SECOND)
    await place.ends("two")
    await place.intake.take([([("content-type", b"application/cloudevents+json")], b"{oops", "t/0@1")])
    async with listening(place, last=last) as listener:
        missed = [await listener.next() for _ in range(3)]
    kinds = sorted((kind, data.get("name", "")) for kind, _, data in missed)
    assert kinds == [("event", "before"), ("event", "two"), ("rejected", "")]  # what is seconds old comes once more


async def test_too_many_listeners_are_turned_away_and_a_place_is_free_again(place: Site) -> None:
    async with listening(place), listening(place), listening(place, status=503) as refused:
        assert refused.answer.headers["Retry-After"] == "30"
    async with asyncio.timeout(20):
        while True:
            async with aiohttp.ClientSession() as session, session.get(f"{place.url}/api/v1/stream") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.1)


async def test_an_id_that_is_none_of_ours_is_a_mistake(place: Site) -> None:
    async with listening(place, last="7", status=400):
        pass


async def test_a_stop_ends_the_streams(place: Site) -> None:
    async with listening(place) as listener:
        place.stopping.set()
        async with asyncio.timeout(10):
            assert await listener.answer.content.read() == b""
