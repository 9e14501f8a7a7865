"""Milliseconds from publishing a failure to the provider's acceptance, and CPU a message, at a steady rate.

    python -m bench.latency [--rounds 5] [--seconds 4]

The dispatcher is the whole service in its own process, with a SQLite ledger on disk, so every delivery is durable before it
is sent. The baselines: a loop that consumes from Kafka and sends prepared bytes, without storing anything; and Debian's
Alertmanager, which gets the same failures through its API, one group per alert, without group_wait. All three run the whole
time, and each round measures them one after the other. The dispatcher is also measured on a topic as Flyte writes it, with
nine other messages before each terminal event, and with one message at a time.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import aiosmtplib
import psutil
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from slack_sdk.web.async_client import AsyncWebClient

from bench.figures import Figure, Goal, Missing, as_markdown
from dispatcher.clock import SystemClock
from dispatcher.flyte.encode import Format, write, write_lifecycle
from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.phase import Phase
from dispatcher.runtime import event_loop
from tests.support.brokers import start as start_broker
from tests.support.brokers.fixtures import make_topic
from tests.support.service import free_port, serving

RATE = 200
"""Terminal events per second."""
OTHERS = 9
"""Messages that are no terminal events, before each terminal event, on a topic as Flyte writes it."""
LONE_RATE = 5
"""Terminal events per second that each come after a silence."""
SECONDS = 4
"""Seconds of load per contender and round: 800 messages, of which 8 are slower than p99."""
WARM_UP = 100
"""Messages per contender before the first round."""
CONNECTIONS = 20
"""Connections of the baseline loop, and concurrency of the dispatcher's worker."""
TIMEOUT = 30.0
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
    """A future per awaited message; it gets the time of acceptance (`time.perf_counter`)."""

    awaited: dict[int, asyncio.Future[float]] = field(default_factory=dict)

    def note(self, message: bytes) -> None:
        if (found := _NAME.search(message)) and (waiting := self.awaited.pop(int(found[1]), None)) is not None:
            waiting.set_result(time.perf_counter())


class _Relay(asyncio.Protocol):
    """SMTP with the commands that a mail needs."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._received = b""
        self._in_mail = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(b"220 bench ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n.\r\n" if self._in_mail else b"\r\n")) >= 0:
            line = self._received[:end]
            self._received = self._received[end + (5 if self._in_mail else 2) :]
            self._transport.write(self._answer(line))

    def _answer(self, line: bytes) -> bytes:
        if self._in_mail:
            self._in_mail = False
            self._arrivals.note(line)
            return b"250 taken\r\n"
        match line[:4].upper():
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
    """HTTP that accepts every POST, and answers like Slack."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < int(_LENGTH.findall(head)[0]):
            return
        self._received = b""
        self._arrivals.note(body)
        reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        self._transport.write(reply % (len(_TAKEN), _TAKEN))


PROVIDERS = {"email": _Relay, "slack": _Api}
Publish = Callable[[int], Awaitable[Any]]
"""Publishes one failure, given by its number, to a contender."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that runs, and how to publish a failure to it."""

    publish: Publish
    process: psutil.Process

    def cpu(self) -> float:
        """CPU seconds that the program has used."""
        used = self.process.cpu_times()
        return float(used.user + used.system)


@dataclass(frozen=True, slots=True)
class Round:
    """The result of one round for one contender."""

    latencies: list[float]
    """Milliseconds that each message took, sorted."""
    cpu: float
    """Microseconds of CPU for each failure."""


def failed(number: int) -> Event:
    """The terminal event of a new execution. Its name is in every message about it, and identifies the message."""
    return Event(
        execution=ExecutionId(project="flytesnacks", domain="production", name=f"bench{number:07}"),
        phase=Phase.FAILED,
        occurred_at=SystemClock().now(),
        launch_plan=PLAN,
        error=ExecutionError(code="USER:ValueError", message=f"ValueError: no data in bench{number:07}", kind="USER"),
    )


@asynccontextmanager
async def ours(channel: str, port: int, servers: str, folder: Path) -> AsyncIterator[Contender]:
    """The dispatcher as a service, with its default settings where possible."""
    (folder / "rules").mkdir()
    plan = {"launch_plan": PLAN.model_dump(include={"project", "domain", "name"})}
    rule = {"phases": ["FAILED"], channel: RULES[channel]}
    (folder / "rules" / "plan.yaml").write_text(yaml.safe_dump({**plan, "notifications": [rule]}))
    sections: dict[str, dict[str, Any]] = {
        "email": {"host": "127.0.0.1", "port": port, "security": "none", "from": SENDER},
        # Without rate limit and threads, like the baselines.
        "slack": {"api_url": f"http://127.0.0.1:{port}/api/", "token": "xoxb-1", "rate": "none", "thread": "none"},
    }
    settings = {
        "kafka": {"bootstrap_servers": servers, "topics": ["ours"], "group_id": "ours"},
        "ledger": {"url": f"sqlite:///{folder}/ledger.db"},
        "rules": {"launch_plans": [str(folder / "rules")]},
        "channels": {channel: {**sections[channel], "concurrency": CONNECTIONS}},
        "log": "json",
    }
    async with publishing(servers, "ours") as publish, serving(folder, settings) as replica:
        yield Contender(publish, psutil.Process(replica.process.pid))


@asynccontextmanager
async def bare(channel: str, port: int, servers: str, _folder: Path) -> AsyncIterator[Contender]:
    """The baseline loop, in its own process."""
    arguments = ("-m", "bench.latency", "--loop", channel, "--port", str(port), "--servers", servers)
    async with publishing(servers, "loop") as publish, running(sys.executable, *arguments) as process:
        yield Contender(publish, psutil.Process(process.pid))


@asynccontextmanager
async def alertmanager(channel: str, port: int, _servers: str, folder: Path) -> AsyncIterator[Contender]:
    """Debian's Alertmanager, which gets failures through its API."""
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
    async with running(ALERTMANAGER, *arguments) as process, aiohttp.ClientSession() as session:

        async def publish(number: int) -> None:
            labels = {"alertname": "train.daily failed", "execution": f"bench{number:07}", "project": "flytesnacks"}
            notes = {"description": f"ValueError: no data in bench{number:07}"}
            alert = {"labels": labels, "annotations": notes}
            async with session.post(f"http://127.0.0.1:{listen}/api/v2/alerts", json=[alert]) as answer:
                answer.raise_for_status()

        async with asyncio.timeout(TIMEOUT):
            while not await _answers(session, f"http://127.0.0.1:{listen}/-/ready"):  # noqa: ASYNC110 - no event to wait for
                await asyncio.sleep(0.05)
        yield Contender(publish, psutil.Process(process.pid))


@asynccontextmanager
async def publishing(servers: str, topic: str) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Publishes failures to a Kafka topic, each after `others` events of nodes and tasks."""
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()

    async def publish(number: int, others: int = 0) -> None:
        event = failed(number)
        inner = [one for one in write_lifecycle(event, Format.FLYTE_V2) if " n0 " in one.summary] if others else []
        for index in range(others):
            other = inner[index % len(inner)]
            await producer.send(topic, other.value, headers=list(other.headers))
        message = write(event, Format.FLYTE_V2)
        await producer.send(topic, message.value, key=b"%07d" % number, headers=list(message.headers))

    try:
        yield publish
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
    """The baseline loop: `getmany`, then a prepared mail or post over one of the open connections."""
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


BARE = "bare consume-and-send loop"
AMONG_OTHERS, LONE = "ours, among others", " with lone messages"
CONTENDERS = {"ours": ours, BARE: bare, "Alertmanager": alertmanager}


async def measured(channel: str, rounds: int, seconds: float) -> dict[str, list[Round]]:
    """The rounds by contender. The dispatcher is three contenders: also as Flyte writes, and with lone messages."""
    arrivals, numbers = Arrivals(), count()
    found: dict[str, list[Round]] = {}
    async with AsyncExitStack() as stack:
        provider = await asyncio.get_running_loop().create_server(lambda: PROVIDERS[channel](arrivals), "127.0.0.1", 0)
        stack.callback(provider.close)
        broker = await asyncio.to_thread(start_broker)
        stack.callback(broker.stop)
        for topic in ("ours", "loop"):
            await make_topic(broker.bootstrap_servers, topic)
        port = provider.sockets[0].getsockname()[1]
        contenders: dict[str, Contender] = {}
        for name, contender in CONTENDERS.items():
            if name == "Alertmanager" and shutil.which(ALERTMANAGER) is None:
                continue
            folder = Path(stack.enter_context(TemporaryDirectory()))
            opened = contender(channel, port, broker.bootstrap_servers, folder)
            contenders[name] = await stack.enter_async_context(opened)
        contenders[AMONG_OTHERS] = replace(
            contenders["ours"], publish=partial(contenders["ours"].publish, others=OTHERS)
        )
        for contender in contenders.values():
            await _round(contender, arrivals, numbers, WARM_UP)
        for _ in range(rounds):
            for name, contender in contenders.items():
                found.setdefault(name, []).append(await _round(contender, arrivals, numbers, int(RATE * seconds)))
            lone = await _round(contenders["ours"], arrivals, numbers, int(LONE_RATE * seconds), rate=LONE_RATE)
            found.setdefault(LONE, []).append(lone)
            lone = await _round(contenders[BARE], arrivals, numbers, int(LONE_RATE * seconds), rate=LONE_RATE)
            found.setdefault(f"{BARE}{LONE}", []).append(lone)
    return found


async def _round(
    contender: Contender, arrivals: Arrivals, numbers: Iterable[int], messages: int, rate: int = RATE
) -> Round:
    """Publish `messages` failures, `rate` a second, and wait until the provider has accepted all."""
    began, cpu = time.perf_counter(), contender.cpu()
    async with asyncio.timeout(messages / rate + TIMEOUT), asyncio.TaskGroup() as group:
        tasks = []
        for index, number in zip(range(messages), numbers, strict=False):
            await asyncio.sleep(max(began + index / rate - time.perf_counter(), 0))
            tasks.append(group.create_task(_latency(contender.publish, number, arrivals)))
    return Round(sorted(task.result() for task in tasks), (contender.cpu() - cpu) / messages * 1e6)


async def _latency(publish: Publish, number: int, arrivals: Arrivals) -> float:
    """Milliseconds from publishing to the provider's acceptance."""
    accepted = arrivals.awaited[number] = asyncio.get_running_loop().create_future()
    began = time.perf_counter()
    await publish(number)
    return (await accepted - began) * 1000


def figures(rounds: int, *, smoke: bool, seconds: float = SECONDS) -> Iterable[Figure | Missing]:
    """p50, p99 and CPU, for a mail and for a Slack message."""
    for channel, what in (("email", "a mail"), ("slack", "a Slack message")):
        found = event_loop.run(measured(channel, rounds, 1 if smoke else seconds))
        for contender, how in (("ours", f"{RATE}/s"), (AMONG_OTHERS, f"{RATE}/s among {OTHERS} others each")):
            for baseline in (BARE, "Alertmanager"):
                if baseline in found:
                    yield from _beside(f"{what} at {how}", baseline, found[contender], found[baseline])
                else:
                    yield Missing(
                        path="latency", work=f"{what} at {how}", baseline=baseline, why=f"no {ALERTMANAGER} here"
                    )
        yield _quantiles(f"a lone {what[2:]}", BARE, found[LONE], found[f"{BARE}{LONE}"], 0.5, None)


def _beside(work: str, baseline: str, ours: Sequence[Round], theirs: Sequence[Round]) -> Iterator[Figure]:
    """Three figures: two quantiles of the latency, and CPU."""
    yield _quantiles(work, baseline, ours, theirs, 0.5, Goal("at most", 25, of="value"))
    yield _quantiles(work, baseline, ours, theirs, 0.99, None)
    yield Figure(
        path="latency",
        work=f"{work}: CPU a message",
        baseline=baseline,
        ours=[one.cpu for one in ours],
        theirs=[one.cpu for one in theirs],
        unit=" us",
        goal=Goal("at most", 1) if baseline == "Alertmanager" else None,
    )


def _quantiles(
    work: str, baseline: str, ours: Sequence[Round], theirs: Sequence[Round], share: float, goal: Goal | None
) -> Figure:
    return Figure(
        path="latency",
        work=f"{work}, p{share * 100:.0f}",
        baseline=baseline,
        ours=[_quantile(one.latencies, share) for one in ours],
        theirs=[_quantile(one.latencies, share) for one in theirs],
        unit=" ms",
        goal=goal,
    )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds of load in each round")
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
