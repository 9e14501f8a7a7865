"""Turns the matched rules of an event into deliveries. Their content is rendered later (`planning/contents.py`).

A message of a channel that groups recipients, such as a mail, goes to a rule's whole recipient list, as in Flyte. If the
recipients have different template sets, time zones or severities, each of these gets its own message, and so does each
recipient who may have quiet hours or digests. On every other channel, each delivery has exactly one address. An address is notified of an event only once per channel. If several rules
name the address, the first of them makes the message, and the delivery lists all of them (`planning/event_plan.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

from channels.contract import ThreadBy, UnknownRecipient
from dispatcher.holding.windows import QuietHours, quiet_now
from dispatcher.model.delivery import (
    Delivery,
    Kind,
    NewVersion,
    State,
    Success,
    delivery_key,
    execution_subject,
)
from dispatcher.model.event import Event, possible, shortened
from dispatcher.model.hold import DigestOptions, Quiet
from dispatcher.model.owner import UnresolvedOwner
from dispatcher.model.phase import Phase
from dispatcher.model.severity import PASSES_QUIET_HOURS
from dispatcher.model.streak import StreakEvent, StreakRoute
from dispatcher.planning.contacts import NO_CONTACTS, Contacts, Recipient
from dispatcher.planning.event_plan import EventPlan
from dispatcher.planning.summary_plan import summary_instead, summary_notices
from dispatcher.planning.targets import Address, Target, find_target
from dispatcher.rules import RouteBook, Rule
from dispatcher.rules.owners import Owners


class TemplateSetOf(Protocol):
    """Returns the template set of a recipient. Recipients with equal template sets can share a message.

    `folders`: the template folders of the recipient's contact.
    """

    def __call__(self, event: Event, recipient: str, folders: tuple[Path, ...] = ()) -> Hashable: ...


def same_templates(event: Event, recipient: str, folders: tuple[Path, ...] = ()) -> Hashable:
    del event, recipient
    return folders


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans deliveries. The planner has no access to the channels, only to functions that the channels provide."""

    addresses: Mapping[str, Address]
    """Mapping from each configured channel to the function that returns a recipient's address."""
    fallbacks: Mapping[str, str]
    """Mapping from a channel to its fallback channel, which is used for recipients that the channel does not know. For
    example, `slack` -> `email`."""
    grouped: frozenset[str] = frozenset()
    """The channels that group recipients: one message may go to several addresses."""
    with_own_template: frozenset[str] = frozenset()
    """The channels whose messages may use a rule's own template."""
    contacts: Contacts = NO_CONTACTS
    """The contacts that rules may name, instead of recipients."""
    fallback_recipients: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Mapping from a channel to the contacts that are notified if one of the channel's deliveries is dead."""
    template_set: TemplateSetOf = same_templates
    thread_by: Mapping[str, Callable[[str], ThreadBy | None]] = field(default_factory=dict)
    """Mapping from a channel to its method `Channel.thread_by`, which returns whether messages to an address form one
    thread per launch plan or one per execution."""
    change_events: frozenset[str] = frozenset()
    """The channels that send change events. A change event reports that a launch plan has run in a new version."""
    owners: Owners | None = None
    """Who the owners of executions are; None if the settings don't say it."""
    paging: frozenset[str] = frozenset()
    """The channels that page people. They have no digests."""

    def plan(self, event: Event, rules: Sequence[Rule], *, now: datetime) -> tuple[Delivery, ...]:
        """Return the deliveries for the matched rules.

        For a recipient that no channel knows, the delivery is undeliverable: it is dead from the start, and its reason
        helps an operator to fix the rule.
        """
        event_plan = EventPlan(self, event, now)
        event_plan.add_rules(rules)
        return self._with_fallback_notices(event_plan)

    def plan_routes(
        self, event: Event, rules: Sequence[Rule], routes: Iterable[Sequence[Rule]], *, now: datetime
    ) -> list[tuple[Delivery, ...]]:
        """Return for each route the deliveries to all whom it names, as they are if it fires beside the matched rules.

        `routes`: the rules of each route. A delivery also lists the matched rules that name its recipients, and has the
        highest severity that one of them gives.
        """
        named = EventPlan(self, event, now).named_by(rules)
        planned = []
        for route in routes:
            event_plan = EventPlan(self, event, now)
            event_plan.add_rules(route, named, len(rules))
            planned.append(self._with_fallback_notices(event_plan))
        return planned

    def streak(self, event: Event, routes: Sequence[StreakRoute], *, now: datetime) -> StreakEvent | None:
        """Return what the event means for its launch plan's streak; None if nothing, or if it does not name the launch
        plan.

        `routes`: the matching routes that wait for the streak, with their deliveries.
        """
        failed = event.phase in {Phase.FAILED, Phase.TIMED_OUT}
        succeeded = event.phase is Phase.SUCCEEDED
        if event.launch_plan is None or not (failed or succeeded or routes):
            return None
        return StreakEvent(
            event=event.key,
            launch_plan=event.launch_plan.key,
            failed_at=possible(event.occurred_at, now) if failed else None,
            well_since=_start(event, now) if succeeded else None,
            routes=routes,
        )

    def new_version(self, event: Event, rules: Sequence[Rule], *, now: datetime) -> NewVersion | None:
        """Return the change events for the event's version of the launch plan, or None if no rule's channel has them.

        The ledger stores the change events only if the launch plan has run in this version for the first time. The
        recipients of all `rules` get them, for any phase.
        """
        plan = event.launch_plan
        if plan is None or not plan.version or not self.change_events:
            return None
        with_change_events = [
            rule for rule in rules if any(channel in self.change_events for channel, _ in self.recipients(rule))
        ]
        if not with_change_events:
            return None
        event_plan = EventPlan(self, event, now)
        return NewVersion(
            launch_plan=plan.key,
            version=shortened(plan.version),
            change_events=event_plan.change_events(with_change_events),
        )

    def success(self, event: Event, *, now: datetime) -> Success | None:
        """Return what the ledger needs after a success, to end threads and to drop held failures.

        A success ends threads about its launch plan. A recovery or relaunch also ends threads about the execution that
        it goes back to. On every channel, it drops the held failures of the same. None if the event is not a success, or
        has no such subject.
        """
        if event.phase is not Phase.SUCCEEDED:
            return None
        subjects = []
        if event.launch_plan is not None:
            subjects.append(event.launch_plan.key)
        if event.origin is not None:
            subjects.append(execution_subject(event.origin))
        if not subjects:
            return None
        return Success(
            event=event.key,
            occurred_at=event.occurred_at,
            started_at=_start(event, now),
            subjects=tuple(subjects),
            channels=frozenset(self.thread_by),
            recorded_at=now,
        )

    def _with_fallback_notices(self, event_plan: EventPlan) -> tuple[Delivery, ...]:
        for undeliverable in [delivery for delivery in event_plan.deliveries if delivery.state is State.DEAD]:
            event_plan.notify_fallback(undeliverable, _undelivered(undeliverable))
        return tuple(event_plan.deliveries)

    def notify_fallback(self, event: Event | None, delivery: Delivery, *, now: datetime) -> tuple[Delivery, ...]:
        """Return the notices that report a dead delivery to the fallback recipients of its channel.

        `event`: None if the delivery has none. Notices of one event to the same recipient have the same key, so the ledger
        stores only one of them.
        """
        return self._notices(event, delivery, _undelivered(delivery), now)

    def _notices(self, event: Event | None, about: Delivery, reason: str, now: datetime) -> tuple[Delivery, ...]:
        if event is None:
            return summary_notices(self, about, reason, now)
        event_plan = EventPlan(self, event, now)
        event_plan.notify_fallback(about, reason)
        return event_plan.instead_of(about)

    def notify_of_channel(
        self, event: Event | None, delivery: Delivery, kind: Kind, since: datetime, *, now: datetime
    ) -> tuple[Delivery, ...]:
        """Return the notices that tell a channel's fallback recipients of a refusal that began at `since`, or its end.

        `delivery`: the delivery that was refused, or accepted again. Notices of one refusal and kind to the same
        recipient have the same key, whichever replica plans them.
        """
        reason = f"{delivery.channel} refuses all messages, which wait until this is corrected: {delivery.reason}"
        if kind is Kind.ACCEPTED_NOTICE:
            reason = f"{delivery.channel} accepts messages again; those that waited are being sent"
        outage = f"{delivery.channel} {since.isoformat()}"
        return tuple(
            notice._replace(
                kind=kind,
                key=delivery_key(outage, f"{kind} {notice.channel}", notice.addresses),
                quiet=None,
                digest=None,
                note="",
            )
            for notice in self._notices(event, delivery._replace(severity=""), reason, now)
        )

    def reroute(
        self, event: Event | None, delivery: Delivery, notified: Iterable[tuple[str, str]], *, now: datetime
    ) -> tuple[Delivery, ...]:
        """If the delivery's channel does not know the recipient, return deliveries on the fallback channel instead.

        `event`: None if the delivery has none. `notified`: pairs of channel and address that already have a delivery of
        this event. They get no other delivery.
        """
        fallback = self.fallbacks.get(delivery.channel)
        if event is None:
            return summary_instead(self, delivery, fallback, now) if fallback is not None else ()
        event_plan = EventPlan(self, event, now)
        for channel, address in notified:
            event_plan.register(Target(channel, "", address))
        if fallback is not None:
            event_plan.reroute(delivery, fallback)
        return event_plan.instead_of(delivery)

    def notify_instead_of_owner(
        self, event: Event, unknown: Iterable[Delivery], notified: Iterable[tuple[str, str]], *, now: datetime
    ) -> tuple[tuple[Delivery, ...], UnresolvedOwner | None]:
        """Return the deliveries to the fallback contact of owners, and what is kept of the owner, if one of these
        deliveries was the owner's.

        `unknown`: dead deliveries, because no provider knows the address. `notified`: as in `reroute`.
        """
        names = self._names_of_owner(event)
        dead = [one for one in unknown if not names.isdisjoint(map(str.lower, one.recipients + one.addresses))]
        if not dead or self.owners is None:
            return (), None
        delivery = dead[0]._replace(recipients=tuple([name for one in dead for name in one.recipients]))
        event_plan = EventPlan(self, event, now)
        for channel, address in notified:
            event_plan.register(Target(channel, "", address))
        event_plan.notify_instead_of_owner(delivery, self.owners.fallback)
        return event_plan.instead_of(delivery), self.owners.unreachable(event, _undelivered(delivery), now)

    def _names_of_owner(self, event: Event) -> frozenset[str]:
        """Return the owner's recipients in lower case. A mail may have others too, who are not the owner."""
        owner = self.owners.find(event) if self.owners is not None else None
        if owner is None:
            return frozenset()
        named = [one for name in owner.recipients for one in self.contacts.expand(name) or ((owner.channel, name),)]
        return frozenset(recipient.lower() for _, recipient in named)

    def quiet_hours(
        self, channel: str, address: str, severity: str, of_rules: Iterable[QuietHours | None]
    ) -> Sequence[Sequence[QuietHours]]:
        """Return the quiet hours that may hold a message: the contact's, and those of rules, in groups (`quiet_now`).

        `of_rules`: the quiet hours of each rule that names the address; None for a rule without any. They hold only what
        no other of these rules lets through. `severity`: the message's; critical messages are not held.
        """
        if severity == PASSES_QUIET_HOURS:
            return ()
        each = [*of_rules]
        of_routes = [one for one in each if one is not None]
        own = self.contacts.options(channel, address).quiet
        groups = ([own] if own is not None else [], of_routes if len(of_routes) == len(each) else [])
        return [group for group in groups if group]

    def quiet_hours_of(self, delivery: Delivery, routes: RouteBook) -> Sequence[Sequence[QuietHours]]:
        """Return the quiet hours that may hold a planned or recorded delivery to one address.

        `routes`: those in effect. A rule without quiet hours, or that is no longer in effect, lets the delivery through.
        """
        of_rules = [routes.quiet(rule.name) for rule in delivery.rules]
        return self.quiet_hours(delivery.channel, delivery.addresses[0], delivery.severity, of_rules)

    def still_quiet(self, delivery: Delivery, routes: RouteBook, *, now: datetime) -> Quiet | None:
        """Return the quiet hours that hold a delivery to one address at `now`, at the end of another hold."""
        return quiet_now(now, self.quiet_hours_of(delivery, routes))

    def digest(self, channel: str, address: str) -> DigestOptions | None:
        """Return when the address gets digests; None if it gets none."""
        return self.contacts.options(channel, address).digest if channel not in self.paging else None

    def unreachable(self) -> Iterator[str]:
        """Yield an error message for each mistake in contacts and owners, and for each unknown contact in the settings."""
        yield from self.contacts.problems
        if self.owners is not None:
            yield from self.owners.problems
        for channel, names in self.fallback_recipients.items():
            for problem in self.contacts.unknown(names):
                yield f"channels.{channel}.fallback_recipients: {problem}"

    def recipients(self, rule: Rule) -> Sequence[Recipient]:
        """Return whom a rule names, each with the channel. A contact's recipients stand in the place of its name.

        A rule for the owner names nobody, if nobody was found.
        """
        if rule.names_owner:
            return ()
        channel = rule.notification.channel
        named: list[Recipient] = []
        for recipient in dict.fromkeys(rule.notification.recipients):
            named += self.contacts.expand(recipient) or ((channel, recipient),)
        return named

    def unreachable_reason(self, channel: str, recipient: str) -> str | None:
        """Return why no channel can reach a recipient; None if one can."""
        try:
            self.target(channel, recipient)
        except UnknownRecipient as error:
            return error.reason
        return None

    def target(self, channel: str, recipient: str) -> Target:
        """Return the channel and address for a recipient. Raises UnknownRecipient if no channel knows it."""
        return find_target(self.addresses, self.fallbacks, channel, recipient)


def _start(event: Event, now: datetime) -> datetime:
    """Return when a successful execution started; the time of its end if that isn't known."""
    return possible(min(event.started_at or event.occurred_at, event.occurred_at), now)


def _undelivered(dead: Delivery) -> str:
    return f"{', '.join(dead.recipients)} could not be notified through {dead.channel}: {dead.reason}"
