"""The console and its API over a ledger that the test fills. No worker runs: the test settles deliveries itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from channels.contract import Answer, Receipt
from channels.registry import CHANNEL_TYPES
from dispatcher.clock import Clock
from dispatcher.config.settings import Settings
from dispatcher.dry_run import DryRun
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger, Settlement
from dispatcher.model.delivery import Dead, Delivery, Outcome, Retry, Sent
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from dispatcher.model.replica import ChannelStatus
from dispatcher.operations import Operations
from dispatcher.rules import RuleBook
from dispatcher.runtime.wiring import make_contents, make_planner, make_send_test, open_channels
from dispatcher.web.activity_stream import ActivityStream
from dispatcher.web.api import Api
from dispatcher.web.app import application
from dispatcher.web.auth.access import AccessControl
from dispatcher.web.config import HttpConfig
from dispatcher.web.console import Console, routes
from dispatcher.web.event_intake import EventsPage
from dispatcher.web.health import ReadyPage, alive
from dispatcher.web.send_test import SendTestForCallers
from dispatcher.web.server import serving
from tests.support.builders import SECOND, a_launch_plan, a_replica, an_event
from tests.support.clock import ManualClock

SETTINGS: Mapping[str, Any] = {
    "channels": {
        "email": {"host": "127.0.0.1", "security": "none", "from": "Flyte <flyte@example.com>"},
        "slack": {"token": "xoxb-example"},
        "pagerduty": {"services": {"ml-platform": {"routing_key": "0123456789abcdef0123456789abcdef"}}},
        "teams": {"targets": {"data-eng": {"url": "https://example.com/workflows/data-eng"}}},
    },
    "console_url": "https://flyte.example.com/console",
    "logs_url": "https://logs.example.com/?q={name}",
}
ADDRESSES = {
    "email": ("dev-team@example.com", "on-call@example.com"),
    "slack": ("#dev-alerts",),
    "pagerduty": ("ml-platform",),
    "teams": ("data-eng",),
}
TRACEBACK = """\
Traceback (most recent call last):

      File "/root/train.py", line 88, in train
        model.fit(batches, learning_rate=rate)
      File "/root/model.py", line 214, in fit
        raise ValueError(f"bad learning rate: <{rate}>")

Message:

    ValueError: bad learning rate: <0.0>

User error."""


@dataclass(slots=True)
class ConsoleServer:
    """A running console, with methods that fill its ledger."""

    ledger: Ledger
    intake: Intake
    clock: ManualClock
    url: str = ""
    wakeups: list[int] = field(default_factory=list)
    """An entry for each time that the workers were notified."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def finish(
        self, name: str, phase: Phase = Phase.FAILED, *, channels: Sequence[str] = ("email",), **fields: Any
    ) -> Event:
        """Record that an execution finished whose Options notify these channels."""
        notifications = [
            {"phases": [phase], "channel": channel, "recipients": list(fields.pop("recipients", ADDRESSES[channel]))}
            for channel in channels
        ]
        plan = fields.pop("launch_plan", "train.daily")
        event = Event.model_validate(
            {
                **an_event(phase, name=name, launch_plan=a_launch_plan(plan)).model_dump(exclude_defaults=True),
                "occurred_at": self.clock.now() - fields.pop("ago", 2 * SECOND),
                "error": {"message": TRACEBACK} if phase is Phase.FAILED else None,
                "options": {"notifications": notifications, **fields.pop("options", {})},
                **fields,
            }
        )
        written = write(event, Format.NATIVE)
        await self.intake.ingest([(written.headers, written.value, f"flyte-cloudevents/0@{len(name)}")])
        return event

    async def deliver(self, channel: str, outcome: Outcome | None = None) -> list[Delivery]:
        """Settle all due deliveries of a channel: as sent, or with the outcome."""
        now = self.clock.now()
        admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
        delivered: list[Delivery] = []
        while True:  # a claim contains only the first message of each thread
            claim = await self.ledger.claim(
                channel, 500, lease="test", until=now + timedelta(minutes=1), admission=admission
            )
            if not claim.deliveries:
                return delivered
            for delivery in claim.deliveries:
                settlement = Settlement(
                    delivery=delivery,
                    outcome=outcome or SENT[channel],
                    started_at=now,
                    ended_at=now + timedelta(milliseconds=180),
                )
                await self.ledger.settle(settlement)
            delivered += claim.deliveries


SENT: Mapping[str, Outcome] = {
    "email": Sent(
        Receipt(answer=Answer("250", "2.0.0 Ok: queued as 4XyZ12"), reference={"message_id": "<1@example.com>"})
    ),
    "slack": Sent(Receipt(answer=Answer("ok"), reference={"channel": "C0000001", "ts": "1763630061.000100"})),
    "pagerduty": Sent(Receipt(answer=Answer("202", "Event processed"), reference={"dedup_key": "flyte"})),
    "teams": Sent(Receipt(answer=Answer("202", "accepted"))),
}
DEAD = Dead(
    "Slack refused: channel_not_found", Answer("channel_not_found", "The channel is gone, or the app can't see it.")
)


@asynccontextmanager
async def serve_console(
    ledger_url: str,
    clock: ManualClock | None = None,
    *,
    streams: int = 32,
    rules: Callable[[], RuleBook] = RuleBook,
    given: Mapping[str, Any] = SETTINGS,
    **http: Any,
) -> AsyncIterator[ConsoleServer]:
    """Serve the console and its API. Requests from this machine have full access, unless `tokens` are given.

    `given`: the settings without the section `http`. `rules` returns the rules of files. `http`: other settings of the
    section `http`.
    """
    clock = clock or ManualClock()
    config = HttpConfig.model_validate({"console": True, **http})
    settings = Settings(**given)
    channels = open_channels(settings)
    async with Ledger(ledger_url) as ledger:
        planner = make_planner(settings, channels)
        intake = Intake(ledger, rules, planner, make_contents(settings, planner.contacts), clock)
        server = ConsoleServer(ledger, intake, clock)
        dry_run = DryRun(intake.rules, intake.planner, clock, None)
        operations = Operations(ledger, intake, clock, lambda: server.wakeups.append(1))
        activity_stream = ActivityStream(ledger.queries, server.stopping, streams=streams)
        send_test = SendTestForCallers(make_send_test(settings, channels, intake.planner, clock), rules, ledger)
        more = [
            *Api(
                ledger,
                operations,
                activity_stream,
                clock,
                CHANNEL_TYPES,
                dry_run,
                send_test,
                base_path=config.base_path,
            ).routes,
            *routes(
                Console(
                    ledger,
                    operations,
                    activity_stream,
                    clock,
                    channels,
                    CHANNEL_TYPES,
                    dry_run,
                    send_test,
                    base_path=config.base_path,
                    console_url=settings.console_url,
                    logs_url=settings.logs_url,
                )
            ),
        ]
        access_control = AccessControl(config, clock)
        pages = application(
            EventsPage(intake.ingest), ReadyPage({}), alive, access_control, more, base_path=config.base_path
        )
        async with serving(pages, "127.0.0.1", 0, trusted_proxies=config.trusted_proxies) as server.url:
            yield server
            server.stopping.set()
    for channel in channels.values():
        await channel.aclose()


async def add_busy_day(console: ConsoleServer, *, rng: Random | None = None) -> None:
    """Add a day of executions, mostly successful; in its last hours Slack refuses the channel, and the relay is busy."""
    rng = rng or Random(7)
    hours = 24
    console.clock.advance(timedelta(hours=-hours))
    for hour in range(hours):
        for number in range(rng.randrange(2, 9)):
            console.clock.advance(timedelta(minutes=rng.uniform(2, 5)))
            phase = rng.choices([Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED], [6, 3, 1])[0]
            plan = rng.choice(["train.daily", "report.weekly", "features.hourly"])
            channels = rng.sample(["email", "slack", "pagerduty", "teams"], rng.randrange(1, 4))
            ago = timedelta(seconds=rng.lognormvariate(0.5, 0.9))
            await console.finish(
                f"f{hour:02}{number}{rng.randbytes(7).hex()}", phase, channels=channels, launch_plan=plan, ago=ago
            )
            for channel in ADDRESSES:  # a success also notifies the recipients of an earlier failure
                dead = hour > hours - 3 and channel == "slack"
                await console.deliver(channel, DEAD if dead else None)
        console.clock.advance(
            timedelta(hours=1) * (hour + 1) - (console.clock.now() - ManualClock().now() + timedelta(hours=hours))
        )
    await add_replicas(console)
    busy = Retry(
        console.clock.now() + timedelta(seconds=40), "the relay is busy", Answer("451", "4.3.2 try again later")
    )
    await console.finish("fwaiting0001", channels=["email"])
    await console.deliver("email", busy)
    await console.finish("fdisabled0001", options={"disable_notifications": True})
    await console.finish("fnorules0001", Phase.SUCCEEDED, channels=())
    await console.intake.ingest(
        [([("content-type", b"application/cloudevents+json")], b"{oops", "flyte-cloudevents/2@41")]
    )


async def add_replicas(console: ConsoleServer) -> None:
    """Add two running replicas, of which one has problems, and one that was not seen for five minutes."""
    now = console.clock.now()
    started, channels = now - timedelta(days=3), {name: ChannelStatus() for name in ADDRESSES}
    failing = ChannelStatus(breaker_open_since=now - timedelta(minutes=4), next_probe_at=now + timedelta(seconds=30))
    works = {"kafka": None, "intake": None, "rules": None, "retention": None}
    works |= {f"worker {name}": None for name in ADDRESSES}
    refused = {"kafka": "the brokers do not answer", "intake": "KafkaConnectionError: no broker available"}
    for replica in (
        a_replica("dispatcher-7f9c-x2k4:1", at=now, started_at=started, channels=channels, components=works, lag=12),
        a_replica(
            "dispatcher-7f9c-b8rt:1",
            at=now,
            started_at=started,
            channels={**channels, "slack": failing},
            components={**works, **refused},
            clock_offset=-7.2,
            lag=1840,
        ),
        a_replica("dispatcher-66d1-old:1", at=now - timedelta(minutes=5), started_at=started, channels=channels),
    ):
        await console.ledger.replicas.write(replica)


__all__ = ["ADDRESSES", "DEAD", "SENT", "Clock", "ConsoleServer", "add_busy_day", "serve_console"]
