"""Events, rules and deliveries for tests. A test passes the fields that matter to it; the others have defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from dispatcher.holding.silences import Silence
from dispatcher.holding.windows import QuietHours, Window
from dispatcher.model.delivery import Delivery, DropReason, Kind, RuleRef, State, delivery_key
from dispatcher.model.event import EntityId, Event, ExecutionId, Options
from dispatcher.model.hold import HoldReason, Then
from dispatcher.model.notification import Notification
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.model.replica import ChannelStatus, Replica
from dispatcher.planning.contacts import Contact, Contacts
from dispatcher.rules import Route, Rule
from dispatcher.rules.matcher import Matcher

NOW = datetime(2026, 11, 20, 9, 14, 21, tzinfo=UTC)


def an_execution(
    name: str = "akx7b9q2vjt5fm4c8h2d", project: str = "flytesnacks", domain: str = "production"
) -> ExecutionId:
    return ExecutionId(project=project, domain=domain, name=name)


def a_launch_plan(name: str = "train.daily", version: str = "v1.4.2") -> EntityId:
    return EntityId(project="flytesnacks", domain="production", name=name, version=version)


def an_event(
    phase: Phase = Phase.FAILED,
    *,
    name: str = "akx7b9q2vjt5fm4c8h2d",
    launch_plan: EntityId | None = None,
    options: Options | None = None,
    **fields: Any,
) -> Event:
    return Event(
        execution=an_execution(name), phase=phase, occurred_at=NOW, launch_plan=launch_plan, options=options, **fields
    )


def a_notification(
    *recipients: str, channel: str = "email", phases: tuple[Phase, ...] = (Phase.FAILED,)
) -> Notification:
    return Notification(phases=phases, channel=channel, recipients=recipients or ("dev-team@example.com",))


def a_rule(
    *recipients: str, channel: str = "email", phases: tuple[Phase, ...] = (Phase.FAILED,), defined_at: str = "test"
) -> Rule:
    return Rule(a_notification(*recipients, channel=channel, phases=phases), defined_at)


def some_contacts(**recipients: Mapping[str, Sequence[str]]) -> Contacts:
    """Contacts by name, each with its recipients by channel."""
    return Contacts(
        {
            name: Contact(tuple((channel, to) for channel, several in by_channel.items() for to in several))
            for name, by_channel in recipients.items()
        }
    )


def a_route(
    name: str,
    *recipients: str,
    stop: bool = False,
    rules: str = "add",
    phase: Any = "FAILED",
    channel: str = "email",
    severity: str = "",
    number: int = 0,
    streak: int = 0,
    at_the_end: bool = False,
    quiet: QuietHours | None = None,
    **match: Any,
) -> Route:
    """A route to these recipients, or to one named after it. `number`: of its recipients, if contacts are among them."""
    named = recipients or (f"{name}@example.com",)
    notification = a_notification(*named, channel=channel, phases=tuple(TERMINAL))
    return Route(
        name=name,
        defined_at=f"routes.yaml:{name}",
        match=Matcher.model_validate({"phase": phase, **match}),
        rules=(Rule(notification, f"routes.yaml:{name}", name=name, severity=severity, quiet=quiet),),
        recipients=number or len(named),
        stop=stop,
        replaces=rules == "replace",
        streak=streak,
        at_the_end=at_the_end,
    )


def quiet_hours(by: str, **options: Any) -> QuietHours:
    """Quiet hours of one window; without options, all hours of all days."""
    return QuietHours(by, (Window.model_validate({"zone": "UTC", **options}),))


def a_delivery(
    event: Event | None = None, *, channel: str = "email", to: str = "dev-team@example.com", **fields: Any
) -> Delivery:
    event = event or an_event()
    given: dict[str, Any] = {
        "key": delivery_key(event.key, channel, (to,)),
        "event": event.key,
        "channel": channel,
        "recipients": (to,),
        "addresses": (to,),
        "content": {"subject": "failed"},
        "rules": (RuleRef("", "test"),),
        "created_at": NOW,
        "due_at": NOW,
        "retry_window_start": fields.get("created_at", NOW),
        "occurred_at": NOW,
        "thread_at": fields.get("occurred_at", NOW) if fields.get("thread") else None,
        **fields,
    }
    return Delivery(**given)


def a_digest(*, channel: str = "slack", to: str = "#dev-alerts", **fields: Any) -> Delivery:
    """A digest, which belongs to no event. It is not rendered yet."""
    changes = {"event": "", "kind": Kind.DIGEST, "content": None, "rules": (RuleRef("", "digest of contact ml"),)}
    return a_delivery(channel=channel, to=to)._replace(
        **{"key": delivery_key("", f"digest {channel}", (to, NOW.isoformat())), **changes, **fields}
    )


def members_of(digest: Delivery, number: int, *, first: int = 0, **fields: Any) -> list[Delivery]:
    """Failures that were dropped because the digest tells of them, of the executions `member0000` and so on."""
    (to,) = digest.addresses
    told = {"state": State.DROPPED, "drop_reason": DropReason.DIGEST, "hold": HoldReason.DIGEST, "held_since": NOW}
    told |= {"held_by": digest.key, "hold_then": Then.SUMMARY, "included_in": digest.key}
    events = [an_event(name=f"member{at:04}", launch_plan=a_launch_plan()) for at in range(first, first + number)]
    return [a_delivery(event, channel=digest.channel, to=to, **told | fields) for event in events]


def a_silence(identity: str = "5f0c2a9d", *, starts: timedelta = timedelta(), **fields: Any) -> Silence:
    """A silence of the project of `an_event`, in force for an hour from `NOW` + `starts`."""
    given: dict[str, Any] = {
        "id": identity,
        "matcher": {"project": "flytesnacks"},
        "author": "ada",
        "reason": "maintenance",
        "starts_at": NOW + starts,
        "ends_at": NOW + starts + timedelta(hours=1),
        "then": Then.SUMMARY,
        "created_at": NOW,
        "begun": False,
        **fields,
    }
    return Silence(**given)


SECOND = timedelta(seconds=1)


def a_replica(name: str = "web-1:7", *, at: datetime = NOW, probe_at: datetime | None = None, **fields: Any) -> Replica:
    """A replica with channel email that has just written its row. `probe_at`: email's breaker is open until then."""
    email = ChannelStatus(breaker_open_since=probe_at and at, next_probe_at=probe_at)
    given: dict[str, Any] = {
        "name": name,
        "version": "0.1.0",
        "started_at": at,
        "seen_at": at,
        "clock_offset": 0.0,
        "channels": {"email": email},
        "components": {"worker email": None},
        **fields,
    }
    return Replica(**given)


def a_failure(name: str, *, ago: timedelta = timedelta(), channel: str = "email") -> Event:
    rule = a_notification("jane.doe@example.com", channel=channel)
    return Event(
        execution=ExecutionId(project="p", domain="d", name=name),
        phase=Phase.FAILED,
        occurred_at=datetime.now(UTC) - ago,
        options=Options(notifications=(rule,)),
    )
