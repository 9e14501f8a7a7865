"""Providers for the proofs: quick, in as good or bad a mood as told, and they note every message handed over.

A *door* is a set of addresses of its own onto the same providers: give each replica one, and it is known who came.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

from aiohttp import web

from tests.support.service import free_port

RETRY_AFTER = 2
"""Seconds of peace that a provider in a bad mood asks for."""


class Mood(Enum):
    """What becomes of a message that is handed over."""

    TAKE = "taken"
    REFUSE = "refused for now"
    """Slack and PagerDuty: 429 with Retry-After; mail: 451."""
    SILENCE = "taken without an answer"
    """The connection stays open, and nothing comes."""
    HANG_UP = "taken, then hung up"


@dataclass(frozen=True, slots=True)
class Handover:
    """One message that was handed over."""

    channel: str
    key: str
    target: str
    """Slack's channel, PagerDuty's routing key, the mail's sender."""
    door: str
    came: float
    at: float
    """When it was there in whole, and when it was taken or refused: seconds, as `time.time` tells them."""
    mood: Mood
    body: str
    """A digest of its bytes."""

    @property
    def taken(self) -> bool:
        return self.mood is not Mood.REFUSE


@dataclass
class StandIns:
    """Mail, Slack and PagerDuty. `async with` it, and `open` a door for each who comes."""

    mood: Callable[[str, str], Mood] = lambda _channel, _key: Mood.TAKE
    """Asked with the channel and the delivery's key."""
    latency: Callable[[], float] = lambda: 0.0
    """Seconds, before a message is taken and again before that is answered."""
    handovers: list[Handover] = field(default_factory=list)
    looks: int = 0
    """How often Slack was asked for a channel's history."""
    posted: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    """Slack's channels: each message's ts and key."""
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def open(self, door: str = "", *, mail: bool = True) -> dict[str, Any]:
        """The `channels` section that leads through a new door; without `mail` the relay is down until `open_mail`."""
        port = free_port()
        if mail:
            await self.open_mail(port, door)
        url = await self._open_http(door)
        services = {f"service-{number}": {"routing_key": f"{number:032x}"} for number in range(SERVICES)}
        return {
            "email": {
                "host": "127.0.0.1",
                "port": port,
                "security": "none",
                "from": "Flyte <flyte@example.com>",
            },
            "slack": {"token": "xoxb-of-the-tests", "api_url": f"{url}/api/"},
            "pagerduty": {"events_url": url, "services": services},
        }

    async def open_mail(self, port: int, door: str = "") -> None:
        async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._converse(reader, writer, door)
            writer.close()

        server = await asyncio.start_server(converse, "127.0.0.1", port, limit=2**20)
        self._open.callback(server.close)

    async def _open_http(self, door: str) -> str:
        async def post(request: web.Request) -> web.StreamResponse:
            return await self._slack(request, door)

        async def enqueue(request: web.Request) -> web.StreamResponse:
            return await self._pagerduty(request, door)

        application = web.Application()
        application.router.add_post("/api/chat.postMessage", post)
        application.router.add_get("/api/conversations.history", self._history)
        application.router.add_post("/v2/enqueue", enqueue)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._open.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _take(self, channel: str, key: str, target: str, door: str, body: bytes) -> Mood:
        came = time.time()
        await asyncio.sleep(self.latency())
        mood = self.mood(channel, key)
        digest = hashlib.sha256(body).hexdigest()[:16]
        self.handovers.append(Handover(channel, key, target, door, came, time.time(), mood, digest))
        return mood

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, door: str) -> None:
        """One SMTP session; a mail is refused or taken after its DATA."""
        writer.write(b"220 stand-in\r\n")
        sender = ""
        while line := await reader.readline():
            match line[:4].upper():
                case b"EHLO":
                    writer.write(b"250-stand-in\r\n250 8BITMIME\r\n")
                case b"DATA":
                    writer.write(b"354 go on\r\n")
                    mail = await reader.readuntil(b"\r\n.\r\n")
                    (key,) = _MESSAGE_ID.findall(mail)
                    mood = await self._take("email", key.decode(), sender, door, mail)
                    await asyncio.sleep(self.latency())
                    if mood is Mood.HANG_UP:
                        return
                    writer.write(b"451 try again later\r\n" if mood is Mood.REFUSE else b"250 taken\r\n")
                case b"QUIT":
                    writer.write(b"221 bye\r\n")
                    return
                case verb:
                    sender = line.decode().strip() if verb == b"MAIL" else sender
                    writer.write(b"250 OK\r\n")

    async def _slack(self, request: web.Request, door: str) -> web.StreamResponse:
        body = await request.json()
        key, channel = body["metadata"]["event_payload"]["key"], body["channel"]
        mood = await self._take("slack", key, channel, door, await request.read())
        if mood is Mood.REFUSE:
            return _refusal({"ok": False, "error": "ratelimited"})
        ts = f"{time.time():.6f}"
        self.posted[channel].append((ts, key))
        return await self._answered(request, mood, {"ok": True, "channel": channel, "ts": ts}, 200)

    async def _history(self, request: web.Request) -> web.StreamResponse:
        self.looks += 1
        newest = self.posted[request.query["channel"]][::-1][: int(request.query["limit"])]
        messages = [{"ts": ts, "metadata": {"event_payload": {"key": key}}} for ts, key in newest]
        return web.json_response({"ok": True, "messages": messages})

    async def _pagerduty(self, request: web.Request, door: str) -> web.StreamResponse:
        body = await request.json()
        key = body["dedup_key"]
        mood = await self._take("pagerduty", key, body["routing_key"], door, await request.read())
        if mood is Mood.REFUSE:
            return _refusal({"status": "throttle exceeded"})
        return await self._answered(request, mood, {"status": "success", "dedup_key": key}, 202)

    async def _answered(
        self, request: web.Request, mood: Mood, answer: dict[str, Any], status: int
    ) -> web.StreamResponse:
        await asyncio.sleep(self.latency())
        if mood is Mood.SILENCE:
            await asyncio.sleep(60)
        if mood is Mood.HANG_UP and request.transport is not None:
            request.transport.abort()
        return web.json_response(answer, status=status)


SERVICES = 50
"""PagerDuty services, `service-0` and so on."""
_MESSAGE_ID = re.compile(rb"\r\nMessage-ID: <([0-9a-f]+)@")


def _refusal(body: dict[str, Any]) -> web.Response:
    return web.json_response(body, status=429, headers={"Retry-After": str(RETRY_AFTER)})
