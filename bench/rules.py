"""Terminal events per second through intake with a FlyteAdmin that answers in 20 ms, compared with rules from files.

Each event has three deliveries. FlyteAdmin is a local gRPC server with Flyte's services, in another process. The source
gives batches from memory, without Kafka: the benchmark measures the path from the batch to the ledger.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.figures import Figure, interleaved
from channels.registry import CHANNEL_TYPES
from dispatcher.clock import SystemClock
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.flyte.admin import FlyteAdminConfig, open_flyte_admin
from dispatcher.flyte.encode import EncodedMessage, Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.intake.source import Batch
from dispatcher.ledger import Ledger
from dispatcher.model.event import EntityId, Event, ExecutionId
from dispatcher.model.phase import Phase
from dispatcher.observability import logs
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rendering.renderer import Renderer
from dispatcher.rules.files import RuleFiles
from dispatcher.runtime import event_loop

ANSWER_SECONDS = 0.02
EVENTS = 2000
BATCH = 100
"""Terminal events per batch: on a busy topic, a batch has this many among some thousand other events."""
NOTIFICATIONS = [
    {"phases": ["FAILED"], "email": {"recipientsEmail": ["dev-team@example.com", "on-call@example.com"]}},
    {"phases": ["FAILED"], "slack": {"recipientsEmail": ["#dev-alerts"]}},
    {"phases": ["FAILED"], "pagerDuty": {"recipientsEmail": ["service"]}},
]
PLAN = EntityId(project="flytesnacks", domain="production", name="train.daily", version="v1")


@dataclass(slots=True)
class _Batch:
    messages: Sequence[EncodedMessage]
    first: int
    committed: list[int]
    undecodable: Sequence[tuple[str, str]] = ()
    skipped: int = 0

    def position(self, message: EncodedMessage) -> str:
        return f"bench/0@{self.first + self.messages.index(message)}"

    async def commit(self) -> None:
        self.committed.append(self.first)


@dataclass(slots=True)
class _Topic:
    """A source of messages in memory, in batches."""

    messages: Sequence[EncodedMessage]
    committed: list[int] = field(default_factory=list)

    async def batches(self) -> AsyncGenerator[Batch]:
        for first in range(0, len(self.messages), BATCH):
            yield _Batch(self.messages[first : first + BATCH], first, self.committed)

    async def wait(self, duration: timedelta) -> bool:
        raise RuntimeError(f"intake had to wait {duration}: this measurement is void")

    def stop(self) -> None:
        pass

    async def unready_reason(self) -> str | None:
        return None


def events(count: int) -> list[Event]:
    return [
        Event(
            execution=ExecutionId(project="flytesnacks", domain="production", name=f"bench{number}"),
            phase=Phase.FAILED,
            occurred_at=SystemClock().now(),
            launch_plan=PLAN,
        )
        for number in range(count)
    ]


def serve(port: Connection, count: int) -> None:
    """Run FlyteAdmin until the other end of the pipe sends or closes."""

    async def run() -> None:
        async with LocalFlyteAdmin(delay=ANSWER_SECONDS) as server:
            for event in events(count):
                server.add(
                    {
                        "id": event.execution.model_dump(),
                        "spec": {
                            "launchPlan": PLAN.model_dump(exclude_defaults=True),
                            "metadata": {"principal": "jane.doe"},
                        },
                        "closure": {"phase": "FAILED", "notifications": NOTIFICATIONS},
                    }
                )
            port.send(server.port)
            await asyncio.to_thread(port.poll, None)

    asyncio.run(run())


async def intake(folder: Path, count: int, port: int | None) -> float:
    """Events per second, from the encoded event to the commit."""
    (folder / "plan.json").write_text(
        f'{{"id": {PLAN.model_dump_json()}, "notifications": {NOTIFICATIONS}}}'.replace("'", '"')
    )
    rules = RuleFiles([folder / "plan.json"] if port is None else [])
    rules.load()
    renderer = Renderer(CHANNEL_TYPES)
    renderer.check()  # compiles the templates, as a service does once
    planner = Planner(
        addresses={"email": str, "slack": str, "pagerduty": str},
        fallbacks={},
        grouped=frozenset({"email"}),
    )
    # Without FlyteAdmin the event must name its launch plan; with it, a bare v1 event is enough.
    form = Format.FLYTE_V2 if port is None else Format.FLYTE_V1
    topic = _Topic([write(event, form) for event in events(count)])
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(Ledger(f"sqlite+aiosqlite:///{folder}/ledger.db"))
        admin = None
        if port is not None:
            config = FlyteAdminConfig(endpoint=f"127.0.0.1:{port}", insecure=True)
            admin = await stack.enter_async_context(open_flyte_admin(config, SystemClock()))
            await admin.unready_reason()  # connects before the measurement
        recorded: list[str] = []
        intake = Intake(
            ledger,
            lambda: rules.book,
            planner,
            Contents(renderer.render),
            SystemClock(),
            on_batch=lambda batch: recorded.extend(one.key for entry in batch.recorded for one in entry.deliveries),
            look_up=admin.look_up if admin is not None else None,
        )
        began = time.perf_counter()
        await intake.run(topic)
        seconds = time.perf_counter() - began
    if len(set(recorded)) != 3 * count or topic.committed != sorted(topic.committed):
        raise RuntimeError(f"{len(set(recorded))} deliveries, commits {topic.committed}: this measurement is void")
    return count / seconds


def measure(count: int, port: int | None) -> float:
    """Run one measurement in this process. `port`: FlyteAdmin's; None for rules from files."""
    logs.configure("json", level=40)
    event_loop.freeze_garbage_collector()  # as the service does
    with TemporaryDirectory() as folder:
        return event_loop.run(intake(Path(folder), count, port))


def figures(rounds: int, *, smoke: bool) -> Iterator[Figure]:
    count = 300 if smoke else EVENTS
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, count), daemon=True)
    server.start()
    theirs.close()  # otherwise recv() would not notice that the process has ended
    port = ours.recv()
    try:
        with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:

            def rate(port: int | None) -> float:
                return processes.submit(measure, count, port).result()

            found = interleaved(rounds, {"FlyteAdmin": partial(rate, port), "files": partial(rate, None)})
    finally:
        ours.send("end")
        server.join(10)
    yield Figure(
        path="rules",
        work=f"{count:,} terminal events into the ledger, FlyteAdmin asked about each and answering in {1000 * ANSWER_SECONDS:.0f} ms",
        baseline="the same with rules from files",
        ours=found["FlyteAdmin"],
        theirs=found["files"],
    )
