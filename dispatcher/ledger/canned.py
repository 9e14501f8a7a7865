"""Records, claims and settles a canned event with all optional facts, to test whether the ledger works at all."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection

from channels.contract import Answer, Receipt
from dispatcher.holding.silences import LONGEST
from dispatcher.ledger.claim import claim
from dispatcher.ledger.engine import RollBack
from dispatcher.ledger.record import record
from dispatcher.ledger.records import RecordedEvent, Rejected, Settlement
from dispatcher.ledger.settle import settle
from dispatcher.model.delivery import Delivery, NewVersion, RuleRef, Sent, Success, delivery_key, thread_key
from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId, Options
from dispatcher.model.hold import DigestOptions
from dispatcher.model.notification import Notification
from dispatcher.model.owner import UnresolvedOwner
from dispatcher.model.phase import Phase
from dispatcher.model.rate_limit import AdmissionControl, Feedback, RateLimit, parse_rate
from dispatcher.model.streak import StreakEvent, StreakRoute
from dispatcher.tracing import Span

_TEXT = "canned ж 漢 \U0001f514"
"""Text with characters of one to four bytes in UTF-8."""
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
"""When the canned deliveries are due: before all others, so that a claim of one delivery takes the canned one."""


class _CannedSpan(Span):
    @property
    def trace(self) -> str:
        return "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 a=b"


def rehearse(connection: Connection, channels: Sequence[str], *, now: datetime) -> None:
    """Record a canned event, claim and settle its deliveries, and raise RollBack. See `Ledger.rehearse`."""
    entries, rejection = _canned(channels, now)
    record(connection, entries, [rejection], now=now, longest=LONGEST)
    until = now + timedelta(minutes=1)
    admission = AdmissionControl(rate_limit=RateLimit(rate=parse_rate("1/s")), destination=_destination, now=now)
    for channel in channels:
        (delivery,) = claim(connection, channel, 1, lease="canned", until=until, admission=admission).deliveries
        receipt = Receipt(answer=Answer("200", _TEXT), reference={"id": _TEXT})
        feedback = Feedback(_destination(delivery.addresses), now, retry_after=timedelta(seconds=1))
        sent = Settlement(delivery=delivery, outcome=Sent(receipt), started_at=now, ended_at=now, feedback=feedback)
        settle(connection, [sent])
    raise RollBack


class _Canned(NamedTuple):
    entries: Sequence[RecordedEvent]
    """A failure with a delivery for each channel, and a success of the same launch plan in another version."""
    rejected: Rejected


def _canned(channels: Sequence[str], now: datetime) -> _Canned:
    """Return new rows. Their names are random, so that two replicas can test the ledger at the same time."""
    name = secrets.token_hex(8)
    plan = EntityId(project="canned", domain="canned", name=f"{_TEXT} {name}", version="v1")
    failure = _event(name, Phase.FAILED, plan, channels, now)
    success = _event(name, Phase.SUCCEEDED, plan, channels, now)
    started_at = now + timedelta(seconds=1)  # after the failure, so that the success ends the threads
    changes = [_delivery(success, channel, None, now) for channel in channels]
    return _Canned(
        [
            _entry(
                failure,
                deliveries=[
                    one for channel in channels for one in _with_member(_delivery(failure, channel, plan, now))
                ],
                version=NewVersion(launch_plan=plan.key, version="v1", change_events=()),
                streak=StreakEvent(
                    event=failure.key,
                    launch_plan=plan.key,
                    failed_at=now,
                    routes=[StreakRoute(name=_TEXT, streak=1, deliveries=[])],
                ),
            ),
            _entry(
                success,
                version=NewVersion(launch_plan=plan.key, version="v2", change_events=changes),
                success=Success(
                    event=success.key,
                    occurred_at=now,
                    started_at=started_at,
                    subjects=(plan.key,),
                    channels=frozenset(channels),
                    recorded_at=now,
                ),
            ),
        ],
        Rejected(
            id=name,
            position=_TEXT,
            received_at=now,
            reason=_TEXT,
            headers=[(_TEXT, _TEXT.encode())],
            body=_TEXT.encode(),
            size=1,
            event=failure.key,
        ),
    )


def _destination(addresses: Sequence[str]) -> str:
    return addresses[0]


def _event(name: str, phase: Phase, plan: EntityId, channels: Sequence[str], now: datetime) -> Event:
    rules = tuple(Notification(phases=(phase,), channel=channel, recipients=(_TEXT,)) for channel in channels)
    return Event(
        execution=ExecutionId(project="canned", domain=_TEXT, name=name),
        phase=phase,
        occurred_at=now,
        launch_plan=plan,
        workflow=plan,
        reference_execution=ExecutionId(project="canned", domain=_TEXT, name=f"{name}-2"),
        principal=_TEXT,
        labels={_TEXT: _TEXT},
        url=_TEXT,
        started_at=now,
        error=ExecutionError(code=_TEXT, message=f"{_TEXT} " * 500, kind="SYSTEM"),
        options=Options(notifications=rules),
    )


def _entry(event: Event, deliveries: Sequence[Delivery] = (), **facts: Any) -> RecordedEvent:
    return RecordedEvent(
        event=event,
        position=_TEXT,
        verdict="matched",
        reason=_TEXT,
        considered=[{"name": _TEXT, "defined_at": _TEXT}],
        rules_version="0" * 16,
        cause=f"v1:{'0' * 16}",
        cause_name=_TEXT,
        deliveries=deliveries,
        unresolved_owner=UnresolvedOwner(
            event.key, _TEXT, _TEXT, _TEXT, event.key, event.occurred_at, event.occurred_at
        ),
        span=_CannedSpan(),
        **facts,
    )


def _delivery(event: Event, channel: str, plan: EntityId | None, now: datetime) -> Delivery:
    """Return a delivery in a thread about the launch plan, or in no thread. Its address gets digests."""
    recipients = (_TEXT, f"{_TEXT} 2")
    return Delivery(
        key=delivery_key(event.key, channel, recipients),
        event=event.key,
        channel=channel,
        recipients=recipients,
        addresses=(event.execution.name,),
        content={"text": _TEXT},
        rules=(RuleRef(_TEXT, _TEXT),),
        created_at=now,
        due_at=_FIRST,
        retry_window_start=now,
        occurred_at=now,
        reason=_TEXT,
        severity="critical",
        thread=thread_key(channel, recipients, plan.key) if plan is not None else "",
        thread_at=now if plan is not None else None,
        subject=plan.key if plan is not None else "",
        digest=DigestOptions(after=1, within=timedelta(minutes=1), every=timedelta(minutes=1)),
    )


def _with_member(delivery: Delivery) -> list[Delivery]:
    """Return the delivery, which goes out at once, and another one to the same address, which is a member of a digest."""
    return [delivery, delivery._replace(key=delivery_key(delivery.event, f"{delivery.channel} digest", ()))]
