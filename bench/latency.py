"""From Kafka's record time to the provider's acceptance, at a steady pace, beside a bare loop and Alertmanager.

    python -m bench.latency [--rounds 5] [--seconds 4]

Ours is the whole service in a process of its own, over a SQLite ledger on disk: what it tells of is durable first. The
loop consumes and sends ready-made bytes, and forgets. Alertmanager (Debian's, where it is installed) gets the same
failures over its API, each a group of its own, without a wait. All three stay up; they take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import aiosmtplib
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from slack_sdk.web.async_client import AsyncWebClient

from bench.figures import Figure, Goal, Missing, as_markdown
from dispatcher.clock import SystemClock
from dispatcher.flyte.encode import Format, write
from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.phase import Phase
from dispatcher.runtime import event_loop
from tests.support.brokers import start as start_broker
from tests.support.brokers.fixtures import make_topic
from tests.support.service import free_port, serving

PACE = 200
"""Terminal events a second."""
SECONDS = 4
"""Of them for each contender in each round: 800 messages, of which 8 are slower than p99."""
WARM_UP = 100
CONNECTIONS = 20
"""The loop's own, and the hands of our courier."""
PATIENCE = 30.0
ALERTMANAGER = "prometheus-alertmanager"
SENDER, READER, CHANNEL = "flyte@example.com", "dev-team@example.com", "#dev-alerts"
PLAN = EntityId(project="flytesnacks", domain="production", name="train.daily", version="v1")
RULES = {
    "email": {"recipients_email": [READER]},
    "slack": {"recipients_email": [CHANNEL]},
}
_NAME = re.compile(rb"bench(\d{7})")
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_TAKEN = b'{"ok": true, "channel": "C0123456789", "ts": "1763700000.000100"}'


@dataclass(slots=True)
class Arrivals:
    """Who waits for which message: each hears when it was taken, by `time.perf_counter`."""

    awaited: dict[int, asyncio.Future[float]] = field(default_factory=dict)

    def note(self, message: bytes) -> None:
        if (found := _NAME.search(message)) and (waiting := self.awaited.pop(int(found[1]), None)) is not None:
            waiting.set_result(time.perf_counter())


class _Relay(asyncio.Protocol):
    """SMTP as far as a mail needs it."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._heard = b""
        self._in_mail = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(b"220 bench ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while (end := self._heard.find(b"\r\n.\r\n" if self._in_mail else b"\r\n")) >= 0:
            said = self._heard[:end]
            self._heard = self._heard[end + (5 if self._in_mail else 2) :]
            self._transport.write(self._answer(said))

    def _answer(self, said: bytes) -> bytes:
        if self._in_mail:
            self._in_mail = False
            self._arrivals.note(said)
            return b"250 taken\r\n"
        match said[:4].upper():
            case b"DATA":
                self._in_mail = True
                return b"354 go on\r\n"
            case b"EHLO":
                return b"250-bench\r\n250 SIZE 10000000\r\n"
            case b"QUIT":
                return b"221 bye\r\n"
            case _:
                return b"250 OK\r\n"


class _Api(asyncio.Protocol):
    """HTTP that takes whatever is posted, in Slack's words."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._heard = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, found, body = self._heard.partition(b"\r\n\r\n")
        if not found or len(body) < int(_LENGTH.findall(head)[0]):
            return
        self._heard = b""
        self._arrivals.note(body)
        reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        self._transport.write(reply % (len(_TAKEN), _TAKEN))


PROVIDERS = {"email": _Relay, "slack": _Api}
Tell = Callable[[int], Awaitable[Any]]
"""Tells a contender of one failure, by its number."""


def failed(number: int) -> Event:
    """The end of an execution of its own; its name is in whatever is sent of it."""
    return Event(
        execution=ExecutionId(project="flytesnacks", domain="production", name=f"bench{number:07}"),
        phase=Phase.FAILED,
        occurred_at=SystemClock().now(),
        launch_plan=PLAN,
        error=ExecutionError(code="USER:ValueError", message=f"ValueError: no data in bench{number:07}", kind="USER"),
    )


@asynccontextmanager
async def ours(channel: str, port: int, servers: str, folder: Path) -> AsyncIterator[Tell]:
    """The service, as users run it."""
    (folder / "rules").mkdir()
    plan = {"launch_plan": PLAN.model_dump(include={"project", "domain", "name"})}
    rule = {"phases": ["FAILED"], channel: RULES[channel]}
    (folder / "rules" / "plan.yaml").write_text(yaml.safe_dump({**plan, "notifications": [rule]}))
    sections: dict[str, dict[str, Any]] = {
        "email": {"host": "127.0.0.1", "port": port, "security": "none", "from": SENDER},
        # As for the others: no more than one after another, and in no thread.
        "slack": {"api_url": f"http://127.0.0.1:{port}/api/", "token": "xoxb-1", "rate": "none", "thread": "none"},
    }
    settings = {
        "kafka": {"bootstrap_servers": servers, "topics": ["ours"], "group_id": "ours"},
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "rules": {"launch_plans": [str(folder / "rules")]},
        "channels": {channel: {**sections[channel], "concurrency": CONNECTIONS}},
        "log": "json",
    }
    async with publishing(servers, "ours") as tell, serving(folder, settings):
        yield tell


@asynccontextmanager
async def bare(channel: str, port: int, servers: str, _folder: Path) -> AsyncIterator[Tell]:
    """The loop, in a process of its own."""
    arguments = ("-m", "bench.latency", "--loop", channel, "--port", str(port), "--servers", servers)
    async with publishing(servers, "loop") as tell, running(sys.executable, *arguments):
        yield tell


@asynccontextmanager
async def alertmanager(channel: str, port: int, _servers: str, folder: Path) -> AsyncIterator[Tell]:
    """Debian's, told over its API."""
    receivers = {
        "email": {
            "email_configs": [
                {"to": READER, "from": SENDER, "smarthost": f"127.0.0.1:{port}", "require_tls": False, "hello": "bench"}
            ]
        },
        "slack": {"slack_configs": [{"api_url": f"http://127.0.0.1:{port}/hook", "channel": CHANNEL}]},
    }
    route = {"receiver": "all", "group_by": ["execution"], "group_wait": "0s", "repeat_interval": "1h"}
    config = folder / "alertmanager.yml"
    config.write_text(yaml.safe_dump({"route": route, "receivers": [{"name": "all", **receivers[channel]}]}))
    listen = free_port()
    options = {
        "config.file": config,
        "storage.path": folder / "alertmanager",
        "web.listen-address": f"127.0.0.1:{listen}",
        "cluster.listen-address": "",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    async with running(ALERTMANAGER, *arguments), aiohttp.ClientSession() as session:

        async def tell(number: int) -> None:
            labels = {"alertname": "train.daily failed", "execution": f"bench{number:07}", "project": "flytesnacks"}
            notes = {"description": f"ValueError: no data in bench{number:07}"}
            alert = {"labels": labels, "annotations": notes}
            async with session.post(f"http://127.0.0.1:{listen}/api/v2/alerts", json=[alert]) as answer:
                answer.raise_for_status()

        async with asyncio.timeout(PATIENCE):
            while not await _answers(session, f"http://127.0.0.1:{listen}/-/ready"):  # noqa: ASYNC110 - no one rings
                await asyncio.sleep(0.05)
        yield tell


@asynccontextmanager
async def publishing(servers: str, topic: str) -> AsyncIterator[Tell]:
    """Writes failures into a topic."""
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()

    async def tell(number: int) -> None:
        message = write(failed(number), Format.FLYTE_V2)
        await producer.send(topic, message.value, key=b"%07d" % number, headers=list(message.headers))

    try:
        yield tell
    finally:
        await producer.stop()


@asynccontextmanager
async def running(*command: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*command, stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientConnectionError:
        return False


async def consume_and_send(channel: str, port: int, servers: str) -> None:
    """The bare loop: `getmany`, then a mail or a post of ready-made bytes over one of the open connections."""
    async with AsyncExitStack() as stack:
        senders = [await stack.enter_async_context(_sender(channel, port)) for _ in range(CONNECTIONS)]
        free: asyncio.Queue[Callable[[bytes], Awaitable[Any]]] = asyncio.Queue()
        for sender in senders:
            free.put_nowait(sender)
        consumer = AIOKafkaConsumer("loop", bootstrap_servers=servers, group_id="loop", auto_offset_reset="earliest")
        await consumer.start()
        stack.push_async_callback(consumer.stop)

        async def send(name: bytes) -> None:
            sender = await free.get()
            try:
                await sender(name)
            finally:
                free.put_nowait(sender)

        async with asyncio.TaskGroup() as group:
            while True:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    for record in records:
                        group.create_task(send(b"bench" + (record.key or b"")))


@asynccontextmanager
async def _sender(channel: str, port: int) -> AsyncIterator[Callable[[bytes], Awaitable[Any]]]:
    text = "Execution %s of flytesnacks/production/train.daily failed. " * 40
    if channel == "email":
        head = f"From: {SENDER}\r\nTo: {READER}\r\nSubject: %s\r\nMessage-ID: <%s@bench>\r\n\r\n{text}".encode()
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False) as relay:

            async def mail(name: bytes) -> None:
                await relay.sendmail(SENDER, [READER], head.replace(b"%s", name))

            yield mail
        return
    async with aiohttp.ClientSession() as session:
        client = AsyncWebClient(
            token="xoxb-1", base_url=f"http://127.0.0.1:{port}/api/", session=session
        )  # pragma: allowlist secret

        async def post(name: bytes) -> None:
            await client.chat_postMessage(channel=CHANNEL, text=text.replace("%s", name.decode()))

        yield post


CONTENDERS = {"ours": ours, "bare consume-and-send loop": bare, "Alertmanager": alertmanager}


async def measured(channel: str, rounds: int, seconds: float) -> dict[str, list[list[float]]]:
    """By contender and round: the milliseconds that each message took, the shortest first."""
    arrivals, numbers = Arrivals(), count()
    found: dict[str, list[list[float]]] = {}
    async with AsyncExitStack() as stack:
        provider = await asyncio.get_running_loop().create_server(lambda: PROVIDERS[channel](arrivals), "127.0.0.1", 0)
        stack.callback(provider.close)
        broker = await asyncio.to_thread(start_broker)
        stack.callback(broker.stop)
        for topic in ("ours", "loop"):
            await make_topic(broker.bootstrap_servers, topic)
        port = provider.sockets[0].getsockname()[1]
        tellers: dict[str, Tell] = {}
        for name, contender in CONTENDERS.items():
            if name == "Alertmanager" and shutil.which(ALERTMANAGER) is None:
                continue
            folder = Path(stack.enter_context(TemporaryDirectory()))
            opened = contender(channel, port, broker.bootstrap_servers, folder)
            tellers[name] = await stack.enter_async_context(opened)
        for tell in tellers.values():
            await _round(tell, arrivals, numbers, WARM_UP)
        for _ in range(rounds):
            for name, tell in tellers.items():
                took = await _round(tell, arrivals, numbers, int(PACE * seconds))
                found.setdefault(name, []).append(took)
    return found


async def _round(tell: Tell, arrivals: Arrivals, numbers: Iterable[int], messages: int) -> list[float]:
    """Tell of so many failures at the pace, and wait until the provider has taken them all."""
    began = time.perf_counter()
    async with asyncio.timeout(messages / PACE + PATIENCE), asyncio.TaskGroup() as group:
        telling = []
        for index, number in zip(range(messages), numbers, strict=False):
            await asyncio.sleep(max(began + index / PACE - time.perf_counter(), 0))
            telling.append(group.create_task(_told(tell, number, arrivals)))
    return sorted(task.result() for task in telling)


async def _told(tell: Tell, number: int, arrivals: Arrivals) -> float:
    """Milliseconds from the telling to the provider's acceptance."""
    taken = arrivals.awaited[number] = asyncio.get_running_loop().create_future()
    began = time.perf_counter()
    await tell(number)
    return (await taken - began) * 1000


def figures(rounds: int, *, smoke: bool, seconds: float = SECONDS) -> Iterable[Figure | Missing]:
    """The middle and the slow end, of a mail and of a Slack message."""
    for channel, what in (("email", "a mail"), ("slack", "a Slack message")):
        found = event_loop.run(measured(channel, rounds, 1 if smoke else seconds))
        for share, bound in ((0.5, 1.5), (0.99, 3.0)):
            for baseline, goal in (("bare consume-and-send loop", bound), ("Alertmanager", 1.0)):
                work = f"{what}, p{share * 100:.0f} at {PACE}/s"
                if baseline not in found:
                    yield Missing(path="latency", work=work, baseline=baseline, why=f"no {ALERTMANAGER} here")
                    continue
                yield Figure(
                    path="latency",
                    work=work,
                    baseline=baseline,
                    ours=[_quantile(took, share) for took in found["ours"]],
                    theirs=[_quantile(took, share) for took in found[baseline]],
                    unit=" ms",
                    goal=Goal("at most", goal),
                )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of load in each round")
    parser.add_argument("--loop", choices=PROVIDERS, help=argparse.SUPPRESS)  # the bare loop, in its own process
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--servers", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loop:
        event_loop.run(consume_and_send(options.loop, options.port, options.servers))
        return
    print(as_markdown(figures(options.rounds, smoke=False, seconds=options.seconds)))


if __name__ == "__main__":
    main()
