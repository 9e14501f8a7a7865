"""The console and its API over a ledger in which something has happened; nobody carries anything there by himself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

from channels.contract import Answer, Receipt
from dispatcher.clock import Clock
from dispatcher.config.settings import Settings
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger, Settlement
from dispatcher.model.delivery import Dead, Delivery, Outcome, Retry, Sent
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from dispatcher.operations import Operations
from dispatcher.rules import RuleBook
from dispatcher.runtime.service import make_planner, open_channels
from dispatcher.web.activity_stream import Feed
from dispatcher.web.api import Api
from dispatcher.web.app import application
from dispatcher.web.auth.access import AccessControl
from dispatcher.web.config import HttpConfig
from dispatcher.web.console import Shell, routes
from dispatcher.web.event_intake import EventsPage
from dispatcher.web.health import ReadyPage, alive
from dispatcher.web.server import serving
from tests.support.builders import SECOND, a_launch_plan, an_event
from tests.support.clock import ManualClock

SETTINGS: Mapping[str, Any] = {
    "channels": {
        "email": {"host": "127.0.0.1", "security": "none", "from": "Flyte <flyte@example.com>"},
        "slack": {"token": "xoxb-example"},
        "pagerduty": {"services": {"ml-platform": {"routing_key": "0123456789abcdef0123456789abcdef"}}},
        "teams": {"targets": {"data-eng": {"url": "https://example.com/workflows/data-eng"}}},
    },
    "console_url": "https://flyte.example.com/console",
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
class Site:
    """A console, served; and the hands by which things happen in its ledger."""

    ledger: Ledger
    intake: Intake
    clock: ManualClock
    url: str = ""
    rung: list[int] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def ends(
        self, name: str, phase: Phase = Phase.FAILED, *, told: Sequence[str] = ("email",), **facts: Any
    ) -> Event:
        """An execution ends, and its Options want these channels told."""
        wanted = [
            {"phases": [phase], "channel": channel, "recipients": list(facts.pop("recipients", ADDRESSES[channel]))}
            for channel in told
        ]
        plan = facts.pop("launch_plan", "train.daily")
        event = Event.model_validate(
            {
                **an_event(phase, name=name, launch_plan=a_launch_plan(plan)).model_dump(exclude_defaults=True),
                "occurred_at": self.clock.now() - facts.pop("ago", 2 * SECOND),
                "error": {"message": TRACEBACK} if phase is Phase.FAILED else None,
                "options": {"notifications": wanted, **facts.pop("options", {})},
                **facts,
            }
        )
        written = write(event, Format.NATIVE)
        await self.intake.take([(written.headers, written.value, f"flyte-cloudevents/0@{len(name)}")])
        return event

    async def arrives(self, channel: str, outcome: Outcome | None = None) -> list[Delivery]:
        """What is due on a channel is sent, or what else the outcome says."""
        now = self.clock.now()
        gate = AdmissionControl(pace=RateLimit(), destination=lambda _: "", now=now)
        taken: list[Delivery] = []
        while True:  # of a conversation one message goes after another
            claim = await self.ledger.claim(channel, 500, lease="test", until=now + timedelta(minutes=1), gate=gate)
            if not claim.deliveries:
                return taken
            for delivery in claim.deliveries:
                ending = Settlement(
                    delivery=delivery,
                    outcome=outcome or SENT[channel],
                    started_at=now,
                    ended_at=now + timedelta(milliseconds=180),
                )
                await self.ledger.settle(ending)
            taken += claim.deliveries


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
async def site(
    ledger_url: str, clock: ManualClock | None = None, *, streams: int = 32, **http: Any
) -> AsyncIterator[Site]:
    """The console and its API, served; whoever asks from this machine may do all, unless `tokens` are given."""
    time = clock or ManualClock()
    settings = Settings(**SETTINGS)
    channels = open_channels(settings)
    async with Ledger(ledger_url) as ledger:
        intake = Intake(ledger, RuleBook, make_planner(settings, channels), time)
        made = Site(ledger, intake, time)
        operations = Operations(ledger, intake, time, lambda: made.rung.append(1))
        feed = Feed(ledger.queries, made.stopping, streams=streams)
        more = [*Api(ledger, operations, feed, time).routes, *routes(Shell(ledger, operations, feed, time, channels))]
        door = AccessControl(HttpConfig.model_validate({"console": True, **http}), time)
        pages = application(EventsPage(intake.take), ReadyPage({}), alive, door, more)
        async with serving(pages, "127.0.0.1", 0) as made.url:
            yield made
            made.stopping.set()


async def a_busy_day(site: Site, *, rng: Random | None = None) -> None:
    """A day of executions, most of them well; a revoked Slack channel at its end, and a relay that is down."""
    rng = rng or Random(7)
    hours = 24
    site.clock.advance(timedelta(hours=-hours))
    for hour in range(hours):
        for number in range(rng.randrange(2, 9)):
            site.clock.advance(timedelta(minutes=rng.uniform(2, 5)))
            phase = rng.choices([Phase.SUCCEEDED, Phase.FAILED, Phase.ABORTED], [6, 3, 1])[0]
            plan = rng.choice(["train.daily", "report.weekly", "features.hourly"])
            told = rng.sample(["email", "slack", "pagerduty", "teams"], rng.randrange(1, 4))
            ago = timedelta(seconds=rng.lognormvariate(0.5, 0.9))
            await site.ends(f"f{hour:02}{number}{rng.randbytes(7).hex()}", phase, told=told, launch_plan=plan, ago=ago)
            for channel in ADDRESSES:  # a success also tells those who were told of a failure
                late = hour > hours - 3 and channel == "slack"
                await site.arrives(channel, DEAD if late else None)
        site.clock.advance(
            timedelta(hours=1) * (hour + 1) - (site.clock.now() - ManualClock().now() + timedelta(hours=hours))
        )
    busy = Retry(site.clock.now() + timedelta(seconds=40), "the relay is busy", Answer("451", "4.3.2 try again later"))
    await site.ends("fwaiting0001", told=["email"])
    await site.arrives("email", busy)
    await site.ends("fsilent0001", options={"disable_notifications": True})
    await site.ends("fquiet0001", Phase.SUCCEEDED, told=())
    await site.intake.take([([("content-type", b"application/cloudevents+json")], b"{oops", "flyte-cloudevents/2@41")])


__all__ = ["ADDRESSES", "DEAD", "SENT", "Clock", "Site", "a_busy_day", "site"]
