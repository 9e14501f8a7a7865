"""Stand-ins for mail, Slack and PagerDuty that react as the test says and record every message that they receive.

Each caller gets its own addresses of the same providers: give each replica one, and the records show who sent what.
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
"""Seconds in the Retry-After header of a refusal."""


class Reaction(Enum):
    """What a provider does with a message that it received."""

    TAKE = "taken"
    REFUSE = "refused for now"
    """Slack and PagerDuty answer 429 with Retry-After, mail 451."""
    NO_ANSWER = "taken without an answer"
    """The connection stays open without an answer."""
    DISCONNECT = "taken, then hung up"


@dataclass(frozen=True, slots=True)
class Handover:
    """One message that a provider received."""

    channel: str
    key: str
    target: str
    """The Slack channel, the PagerDuty routing key, or the mail's sender."""
    caller: str
    arrived_at: float
    decided_at: float
    """Times of `time.time`: `arrived_at` when it was received, `decided_at` when it was taken or refused."""
    reaction: Reaction
    body: str
    """SHA-256 of its bytes, the first 16 hex digits."""

    @property
    def taken(self) -> bool:
        return self.reaction is not Reaction.REFUSE


@dataclass
class StandIns:
    """Mail, Slack and PagerDuty. Use it in `async with`, and call `open` for each caller."""

    reaction: Callable[[str, str], Reaction] = lambda _channel, _key: Reaction.TAKE
    """Called with the channel and the delivery's key."""
    latency: Callable[[], float] = lambda: 0.0
    """Returns a delay in seconds: used once before a message is taken, and again before the answer."""
    handovers: list[Handover] = field(default_factory=list)
    history_requests: int = 0
    """Number of requests for a Slack channel's history."""
    posted: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    """By Slack channel: ts and key of each message."""
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def open(self, caller: str = "", *, mail: bool = True) -> dict[str, Any]:
        """Open new addresses for the caller; returns the `channels` section of the settings with them.

        `mail=False`: the relay can't be reached before `open_mail`.
        """
        port = free_port()
        if mail:
            await self.open_mail(port, caller)
        url = await self._open_http(caller)
        services = {f"service-{number}": {"routing_key": f"a{number:031x}"} for number in range(SERVICES)}
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

    async def open_mail(self, port: int, caller: str = "") -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._run_smtp_session(reader, writer, caller)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", port, limit=2**20)
        self._open.callback(server.close)

    async def _open_http(self, caller: str) -> str:
        async def post(request: web.Request) -> web.StreamResponse:
            return await self._slack(request, caller)

        async def enqueue(request: web.Request) -> web.StreamResponse:
            return await self._pagerduty(request, caller)

        application = web.Application()
        application.router.add_post("/api/chat.postMessage", post)
        application.router.add_get("/api/conversations.history", self._history)
        application.router.add_post("/v2/enqueue", enqueue)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._open.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _take(self, channel: str, key: str, target: str, caller: str, body: bytes) -> Reaction:
        arrived_at = time.time()
        await asyncio.sleep(self.latency())
        reaction = self.reaction(channel, key)
        digest = hashlib.sha256(body).hexdigest()[:16]
        self.handovers.append(Handover(channel, key, target, caller, arrived_at, time.time(), reaction, digest))
        return reaction

    async def _run_smtp_session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: str) -> None:
        """Serve one SMTP session. A mail is refused or taken after its last line."""
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
                    reaction = await self._take("email", key.decode(), sender, caller, mail)
                    await asyncio.sleep(self.latency())
                    if reaction is Reaction.DISCONNECT:
                        return
                    writer.write(b"451 try again later\r\n" if reaction is Reaction.REFUSE else b"250 taken\r\n")
                case b"QUIT":
                    writer.write(b"221 bye\r\n")
                    return
                case verb:
                    sender = line.decode().strip() if verb == b"MAIL" else sender
                    writer.write(b"250 OK\r\n")

    async def _slack(self, request: web.Request, caller: str) -> web.StreamResponse:
        body = await request.json()
        key, channel = body["metadata"]["event_payload"]["key"], body["channel"]
        reaction = await self._take("slack", key, channel, caller, await request.read())
        if reaction is Reaction.REFUSE:
            return _refusal({"ok": False, "error": "ratelimited"})
        ts = f"{time.time():.6f}"
        self.posted[channel].append((ts, key))
        return await self._answer(request, reaction, {"ok": True, "channel": channel, "ts": ts}, 200)

    async def _history(self, request: web.Request) -> web.StreamResponse:
        self.history_requests += 1
        newest = self.posted[request.query["channel"]][::-1][: int(request.query["limit"])]
        messages = [{"ts": ts, "metadata": {"event_payload": {"key": key}}} for ts, key in newest]
        return web.json_response({"ok": True, "messages": messages})

    async def _pagerduty(self, request: web.Request, caller: str) -> web.StreamResponse:
        body = await request.json()
        key = body["dedup_key"]
        reaction = await self._take("pagerduty", key, body["routing_key"], caller, await request.read())
        if reaction is Reaction.REFUSE:
            return _refusal({"status": "throttle exceeded"})
        return await self._answer(request, reaction, {"status": "success", "dedup_key": key}, 202)

    async def _answer(
        self, request: web.Request, reaction: Reaction, answer: dict[str, Any], status: int
    ) -> web.StreamResponse:
        await asyncio.sleep(self.latency())
        if reaction is Reaction.NO_ANSWER:
            await asyncio.sleep(60)
        if reaction is Reaction.DISCONNECT and request.transport is not None:
            request.transport.abort()
        return web.json_response(answer, status=status)


SERVICES = 50
"""PagerDuty services, `service-0` and so on."""
_MESSAGE_ID = re.compile(rb"\r\nMessage-ID: <([0-9a-f]+)@")


def _refusal(body: dict[str, Any]) -> web.Response:
    return web.json_response(body, status=429, headers={"Retry-After": str(RETRY_AFTER)})
