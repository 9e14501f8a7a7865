"""Steps that many tests of the ledger take: what to record, claim and settle."""

from __future__ import annotations

import asyncio
import os
import pwd
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from channels.contract import Answer, Receipt
from dispatcher.ledger import Action, Claim, Deed, Ledger, RecordedEvent, Rejected, Settlement
from dispatcher.model.delivery import Delivery, Outcome, Sent
from dispatcher.model.event import Event
from dispatcher.model.rate_limit import AdmissionControl, Rate, RateLimit
from dispatcher.rendering.cause import cause_of
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, an_event
from tests.support.service import command

MINUTE = timedelta(minutes=1)


def recorded(*deliveries: Delivery, event: Event | None = None) -> RecordedEvent:
    event = event or an_event()
    cause = cause_of(event)
    return RecordedEvent(
        event=event,
        cause=cause.fingerprint,
        cause_name=cause.name,
        position="flyte-cloudevents/0@7",
        verdict="matched",
        reason="1 rule matched",
        considered=[],
        deliveries=deliveries,
    )


def rejected(identity: str = "a", **changes: Any) -> Rejected:
    fields: dict[str, Any] = {
        "id": identity,
        "position": "t/0@1",
        "received_at": NOW,
        "reason": "broken JSON",
        "headers": [("ce_type", b"\xff")],
        "body": b"\0\xff",
        "size": 2,
        **changes,
    }
    return Rejected(**fields)


async def record_digest(ledger: Ledger, digest: Delivery, *members: Delivery, now: datetime = NOW) -> None:
    """Record a digest and its members, each with its event (`builders.members_of`)."""
    names = [member.event.split("/")[2] for member in members]
    entries = [
        recorded(member, event=an_event(name=name, launch_plan=a_launch_plan()))
        for name, member in zip(names, members, strict=True)
    ]
    await ledger.record([*entries[:-1], replace(entries[-1], deliveries=[members[-1], digest])], [], now=now)


async def claim(
    ledger: Ledger, limit: int = 10, *, lease: str = "me", now: datetime = NOW, lasting: timedelta = MINUTE
) -> list[Delivery]:
    admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=now)
    return [*(await ledger.claim("email", limit, lease=lease, until=now + lasting, admission=admission)).deliveries]


def settlement(delivery: Delivery, outcome: Outcome, *follow_ups: Delivery) -> Settlement:
    return Settlement(delivery=delivery, outcome=outcome, started_at=NOW, ended_at=NOW + SECOND, follow_ups=follow_ups)


SENT = Sent(Receipt(answer=Answer("250", "queued as 42"), reference={"message_id": "<1@x>"}))


def slack(to: str, number: int = 0, **fields: Any) -> Delivery:
    due = {"created_at": NOW, "due_at": NOW + number * SECOND / 1000}
    return a_delivery(channel="slack", to=to, key=f"{to}{number:03}", **due | fields)


async def claim_slack(ledger: Ledger, limit: int = 10, *, at: float = 1, rate_limit: RateLimit | None = None) -> Claim:
    now = NOW + at * SECOND
    admission = AdmissionControl(
        rate_limit=rate_limit or RateLimit(rate=Rate(1, "s"), burst=2), destination=lambda to: to[0], now=now
    )
    return await ledger.claim("slack", limit, lease="me", until=now + MINUTE, admission=admission)


def an_action(what: Deed = Deed.REDRIVE, *, at: datetime = NOW, **changes: str) -> Action:
    return Action(at=at, who="ada", what=what, **{"scope": "all", **changes})


def an_event_to_record(name: str) -> Any:
    event = an_event(name=name)
    return recorded(a_delivery(event, content={"subject": name}), event=event)


async def run_command(*arguments: str, before: str = "") -> tuple[int, str]:
    """Run one command; return its exit status and output. `before`: code that runs in its process first."""
    if not before:
        status, said, error = await command(*arguments)
        return status, said + error
    code = f"{before}\nfrom dispatcher.cli import main\nmain()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def settings_file(folder: Path, url: str, name: str = "dispatcher") -> str:
    file = folder / f"{name}.yaml"
    settings = {
        "http": {"listen": "127.0.0.1:0"},
        "channels": {"webhook": {"allow_hosts": ["hooks.example.com"]}},
        "ledger": {"url": url},
    }
    file.write_text(yaml.safe_dump(settings))
    return str(file)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block without root's rights: root can write to read-only files."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(pwd.getpwnam("nobody").pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
