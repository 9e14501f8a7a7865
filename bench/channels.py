"""Messages a second through a channel, beside the bare client library that it stands on.

    python -m bench.channels [email] [email-tls] [slack] [pagerduty] [--messages 2000] [--rounds 5]

The provider, a process of its own, takes 50 ms for each message; 50 connections. Rounds alternate, so that both
sides see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import aiosmtplib
import pdpyras
import trustme
from slack_sdk.web.async_client import AsyncWebClient

from channels.contract import Channel, Message
from channels.email import EmailChannel, EmailConfig, compose
from channels.pagerduty import PagerDutyChannel, PagerDutyConfig
from channels.slack import SlackChannel, SlackConfig
from dispatcher.phase import Phase
from dispatcher.rendering import Renderer
from dispatcher.rendering.renderer import sample_event

CONNECTIONS = 50
TAKES = 0.05
"""Seconds for each message."""
KEY = "0123456789abcdef0123456789abcdef"
SENDER, RECIPIENT = "Flyte <flyte@example.com>", "dev-team@example.com"


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider on loopback."""

    port: int
    authority: Path | None
    """Whom to trust; none without TLS."""


Side = Callable[[Provider, list[Message]], Coroutine[Any, Any, float]]
"""Sends the messages to the provider; messages a second."""


class _Relay(asyncio.Protocol):
    """A relay that costs next to nothing: it must not be what is measured."""

    _transport: asyncio.Transport
    _heard = b""
    _in_mail = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 bench ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._heard += data
        end = b"\r\n.\r\n" if self._in_mail else b"\r\n"
        if not self._heard.endswith(end):
            return
        command, self._heard = self._heard[:4], b""
        if self._in_mail:
            self._in_mail = False
            asyncio.get_running_loop().call_later(TAKES, self._transport.write, b"250 taken\r\n")
        elif command == b"DATA":
            self._in_mail = True
            self._transport.write(b"354 go on\r\n")
        elif command == b"QUIT":
            self._transport.write(b"221 bye\r\n")
            self._transport.close()
        else:
            self._transport.write(b"250-bench\r\n250 SIZE 10000000\r\n" if command == b"EHLO" else b"250 OK\r\n")


class _Api(asyncio.Protocol):
    """An HTTP server that takes whatever is posted, by the words of Slack and of PagerDuty at once."""

    _transport: asyncio.Transport
    _heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, found, body = self._heard.partition(b"\r\n\r\n")
        if not found or len(body) < int(_LENGTH.findall(head)[0]):
            return
        self._heard = b""
        status, answer = (b"202 Accepted", _EVENT) if b"/v2/enqueue" in head else (b"200 OK", _POST)
        reply = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        asyncio.get_running_loop().call_later(TAKES, self._transport.write, reply % (status, len(answer), answer))


_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_POST = b'{"ok": true, "channel": "C0123456789", "ts": "1763700000.000100"}'
_EVENT = b'{"status": "success", "message": "Event processed", "dedup_key": "k"}'


async def _serve(ready: Connection, certificate: Path | None, speaks: type[asyncio.Protocol]) -> None:
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(speaks, "127.0.0.1", 0, ssl=tls, backlog=CONNECTIONS)
    ready.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(ready.recv)
    server.close()


def _run(ready: Connection, certificate: Path | None, speaks: type[asyncio.Protocol]) -> None:
    asyncio.run(_serve(ready, certificate, speaks))


@contextmanager
def serving(speaks: type[asyncio.Protocol], *, tls: bool = False) -> Iterator[Provider]:
    """A provider in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, its = spawn.Pipe()
    with TemporaryDirectory() as folder:
        certificate, authority = Path(folder, "relay.pem"), Path(folder, "ca.pem")
        made = trustme.CA()
        made.cert_pem.write_to_path(str(authority))
        made.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        process = spawn.Process(target=_run, args=(its, certificate if tls else None, speaks))
        process.start()
        try:
            yield Provider(ours.recv(), authority if tls else None)
        finally:
            ours.send("enough")
            process.join()


def messages(channel: str, recipient: str, count: int) -> list[Message]:
    content = Renderer().render(channel, sample_event(Phase.FAILED))
    now = datetime.now(UTC)
    return [
        Message(key=f"{number:032}", recipients=(recipient,), content=content, created_at=now)
        for number in range(count)
    ]


async def _all_sent(send: Callable[[Message], Coroutine[Any, Any, object]], owed: list[Message]) -> float:
    """As many sends at once as a courier with as many hands as there are connections; messages a second."""
    waiting = list(owed)

    async def work() -> None:
        while waiting:
            await send(waiting.pop())

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work())
    return len(owed) / (time.perf_counter() - began)


async def bare_mail(provider: Provider, messages: list[Message]) -> float:
    """The baseline: aiosmtplib over kept connections, the bytes ready-made, one TLS context."""
    ready = [compose(message, SENDER) for message in messages]
    tls = ssl.create_default_context(cafile=provider.authority) if provider.authority is not None else None
    options: dict[str, Any] = {"use_tls": True, "tls_context": tls} if tls is not None else {"start_tls": False}
    lines = [aiosmtplib.SMTP(hostname="localhost", port=provider.port, **options) for _ in range(CONNECTIONS)]

    async def work(line: aiosmtplib.SMTP) -> None:
        await line.connect()
        while ready:
            await line.sendmail("flyte@example.com", [RECIPIENT], ready.pop())

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for line in lines:
            group.create_task(work(line))
    took = time.perf_counter() - began
    for line in lines:
        await line.quit()
    return len(messages) / took


async def our_mail(provider: Provider, messages: list[Message]) -> float:
    """The channel as a courier uses it: as many sends at once as it has hands."""
    security = "none" if provider.authority is None else "tls"
    options = {"host": "localhost", "port": provider.port, "security": security, "ca_file": provider.authority}
    return await _through(
        EmailChannel(EmailConfig.model_validate({**options, "connections": CONNECTIONS, "from": SENDER})), messages
    )


async def bare_slack(provider: Provider, messages: list[Message]) -> float:
    """The baseline: slack-sdk over one shared session, the bodies ready-made."""
    bodies = {message.key: {"channel": "C0123456789", **message.content} for message in messages}
    async with aiohttp.ClientSession() as session:
        client = AsyncWebClient("xoxb-bench", base_url=f"http://127.0.0.1:{provider.port}/api/", session=session)
        return await _all_sent(lambda message: client.api_call("chat.postMessage", json=bodies[message.key]), messages)


async def our_slack(provider: Provider, messages: list[Message]) -> float:
    """The channel as a courier uses it."""
    url = f"http://127.0.0.1:{provider.port}/api/"
    return await _through(SlackChannel(SlackConfig.model_validate({"token": "xoxb-bench", "api_url": url})), messages)


async def bare_pagerduty(provider: Provider, messages: list[Message]) -> float:
    """The baseline: pdpyras on as many threads, each with a session of its own, the events ready-made."""
    events = {message.key: {**message.content, "dedup_key": message.key} for message in messages}
    own = threading.local()

    def post(key: str) -> None:
        if not hasattr(own, "session"):
            own.session = pdpyras.EventsAPISession(KEY)
            own.session.url = f"http://127.0.0.1:{provider.port}"
        own.session.post("/v2/enqueue", json=events[key])

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        loop = asyncio.get_running_loop()
        return await _all_sent(lambda message: _done(loop.run_in_executor(threads, post, message.key)), messages)


async def _done(future: asyncio.Future[None]) -> None:
    await future


async def our_pagerduty(provider: Provider, messages: list[Message]) -> float:
    """The channel as a courier uses it."""
    url = f"http://127.0.0.1:{provider.port}"
    options = {"events_url": url, "services": {"ml": {"routing_key": KEY}}, "connections": CONNECTIONS}
    return await _through(PagerDutyChannel(PagerDutyConfig.model_validate(options)), messages)


async def _through(channel: Channel, messages: list[Message]) -> float:
    reached = await _all_sent(channel.send, messages)
    await channel.aclose()
    return reached


SIDES: dict[str, tuple[Callable[[], AbstractContextManager[Provider]], Callable[[int], list[Message]], Side, Side]] = {
    "email": (partial(serving, _Relay), partial(messages, "email", RECIPIENT), bare_mail, our_mail),
    "email-tls": (partial(serving, _Relay, tls=True), partial(messages, "email", RECIPIENT), bare_mail, our_mail),
    "slack": (partial(serving, _Api), partial(messages, "slack", "C0123456789"), bare_slack, our_slack),
    "pagerduty": (partial(serving, _Api), partial(messages, "pagerduty", "ml"), bare_pagerduty, our_pagerduty),
}
"""By channel: its provider, its messages, the bare library, and ours."""


def compare(name: str, count: int, rounds: int) -> None:
    provider, make, bare, ours = SIDES[name]
    messages = make(count)
    ratios = []
    with provider() as opened:
        for number in range(rounds + 1):
            baseline, reached = asyncio.run(bare(opened, messages)), asyncio.run(ours(opened, messages))
            if number:  # the first round warms both up
                ratios.append(reached / baseline)
                print(
                    f"{name}: bare {baseline:6.0f}/s, the channel {reached:6.0f}/s, {ratios[-1]:.2f} of it", flush=True
                )
    print(f"{name}: {statistics.median(ratios):.2f} of the bare library (median of {rounds} rounds)")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("channels", nargs="*", default="all", choices=["all", *SIDES])
    options.add_argument("--messages", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    for name in SIDES if "all" in asked.channels else asked.channels:
        compare(name, asked.messages, asked.rounds)


if __name__ == "__main__":
    main()
