"""Messages a second through a channel, beside the bare client library that it stands on.

    python -m bench.channels [email] [email-tls] [--messages 2000] [--rounds 5]

The provider, a process of its own, takes 50 ms for each message; 50 connections. Rounds alternate, so that both
sides see the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import ssl
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiosmtplib
import trustme

from channels.contract import Message
from channels.email import EmailChannel, EmailConfig, compose
from dispatcher.phase import Phase
from dispatcher.rendering import Renderer
from dispatcher.rendering.renderer import sample_event

CONNECTIONS = 50
TAKES = 0.05
"""Seconds for each message."""
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


async def _relay(ready: Connection, certificate: Path | None) -> None:
    tls = None
    if certificate is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate)
    server = await asyncio.get_running_loop().create_server(_Relay, "127.0.0.1", 0, ssl=tls, backlog=CONNECTIONS)
    ready.send(server.sockets[0].getsockname()[1])
    await asyncio.to_thread(ready.recv)
    server.close()


def _run_relay(ready: Connection, certificate: Path | None) -> None:
    asyncio.run(_relay(ready, certificate))


@contextmanager
def relay(*, tls: bool = False) -> Iterator[Provider]:
    """A mail relay."""
    spawn = multiprocessing.get_context("spawn")
    ours, its = spawn.Pipe()
    with TemporaryDirectory() as folder:
        certificate, authority = Path(folder, "relay.pem"), Path(folder, "ca.pem")
        made = trustme.CA()
        made.cert_pem.write_to_path(str(authority))
        made.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(certificate))
        process = spawn.Process(target=_run_relay, args=(its, certificate if tls else None))
        process.start()
        try:
            yield Provider(ours.recv(), authority if tls else None)
        finally:
            ours.send("enough")
            process.join()


def mails(count: int) -> list[Message]:
    content = Renderer().render("email", sample_event(Phase.FAILED))
    now = datetime.now(UTC)
    return [
        Message(key=f"{number:032}", recipients=(RECIPIENT,), content=content, created_at=now)
        for number in range(count)
    ]


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
    channel = EmailChannel(EmailConfig.model_validate({**options, "connections": CONNECTIONS, "from": SENDER}))
    waiting = list(messages)

    async def work() -> None:
        while waiting:
            await channel.send(waiting.pop())

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work())
    took = time.perf_counter() - began
    await channel.aclose()
    return len(messages) / took


SIDES: dict[str, tuple[Callable[[], AbstractContextManager[Provider]], Callable[[int], list[Message]], Side, Side]] = {
    "email": (relay, mails, bare_mail, our_mail),
    "email-tls": (partial(relay, tls=True), mails, bare_mail, our_mail),
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
