"""Turns the matched rules of an event into deliveries. Their content is rendered later (`planning/contents.py`).

A message of a channel that groups recipients, such as a mail, goes to a rule's whole recipient list, as in Flyte. If the
recipients have different template sets, each template set gets its own message. On every other channel, each delivery
has exactly one address. An address is notified of an event only once per channel. If several rules name the address, the
first of them makes the message, and the delivery lists all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from channels.contract import ThreadBy, UnknownRecipient
from dispatcher.model.delivery import (
    Cause,
    Delivery,
    Kind,
    NewVersion,
    State,
    Success,
    delivery_key,
    execution_subject,
    thread_key,
    time_prefixed,
)
from dispatcher.model.event import Event, shortened
from dispatcher.model.phase import Phase
from dispatcher.planning.contacts import NO_CONTACTS, Contacts, Recipient
from dispatcher.planning.targets import Address, Target, find_target
from dispatcher.rules import Rule

MAX_AHEAD = timedelta(minutes=1)
"""How far Flyte's clocks may be ahead of this one. The order of a thread's messages depends on Flyte's clocks alone."""


class TemplateSetOf(Protocol):
    """Returns the template set of a recipient. Recipients with equal template sets can share a message."""

    def __call__(self, event: Event, recipient: str) -> Hashable: ...


def same_templates(event: Event, recipient: str) -> Hashable:
    del event, recipient
    return ()


@dataclass(slots=True)
class _Named:
    """A recipient that matched rules name."""

    target: Target
    """Without an address if no channel knows the recipient."""
    rule: Rule
    """The first rule that names the recipient."""
    place: int
    """The rule's place among the matched rules."""
    undeliverable: str = ""
    """Why no channel knows the recipient; empty if one does."""
    causes: list[Cause] = field(default_factory=list)

    def name(self, rule: Rule) -> None:
        """Note that a rule names the recipient."""
        cause = Cause(rule.name, rule.defined_at)
        if cause not in self.causes:
            self.causes.append(cause)


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

    def plan(self, event: Event, rules: Sequence[Rule], *, now: datetime) -> tuple[Delivery, ...]:
        """Return the deliveries for the matched rules.

        For a recipient that no channel knows, the delivery is undeliverable: it is dead from the start, and its reason
        helps an operator to fix the rule.
        """
        event_plan = _EventPlan(self, event, now)
        event_plan.add_rules(rules)
        for undeliverable in [delivery for delivery in event_plan.deliveries if delivery.state is State.DEAD]:
            event_plan.notify_fallback(undeliverable, _undelivered(undeliverable))
        return tuple(event_plan.deliveries)

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
        event_plan = _EventPlan(self, event, now)
        return NewVersion(
            launch_plan=plan.key,
            version=shortened(plan.version),
            change_events=event_plan.change_events(with_change_events),
        )

    def success(self, event: Event, *, now: datetime) -> Success | None:
        """Return what the ledger needs to end threads after a success.

        A success ends threads about its launch plan. A recovery or relaunch also ends threads about the execution that
        it goes back to. None if the event is not a success, has no such subject, or if no channel has threads.
        """
        if event.phase is not Phase.SUCCEEDED or not self.thread_by:
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
            started_at=_possible(min(event.started_at or event.occurred_at, event.occurred_at), now),
            subjects=tuple(subjects),
            channels=frozenset(self.thread_by),
            recorded_at=now,
        )

    def notify_fallback(self, event: Event, delivery: Delivery, *, now: datetime) -> tuple[Delivery, ...]:
        """Return the notices that report a dead delivery to the fallback recipients of its channel.

        Notices of one event to the same recipient have the same key, so the ledger stores only one of them.
        """
        event_plan = _EventPlan(self, event, now)
        event_plan.notify_fallback(delivery, _undelivered(delivery))
        return tuple(event_plan.deliveries)

    def notify_of_channel(
        self, event: Event, delivery: Delivery, kind: Kind, since: datetime, *, now: datetime
    ) -> tuple[Delivery, ...]:
        """Return the notices that tell a channel's fallback recipients of a refusal that began at `since`, or its end.

        `delivery`: the delivery that was refused, or accepted again. Notices of one refusal and kind to the same
        recipient have the same key, whichever replica plans them.
        """
        event_plan = _EventPlan(self, event, now)
        reason = f"{delivery.channel} refuses all messages, which wait until this is corrected: {delivery.reason}"
        if kind is Kind.ACCEPTED_NOTICE:
            reason = f"{delivery.channel} accepts messages again; those that waited are being sent"
        event_plan.notify_fallback(delivery, reason)
        cause = f"{delivery.channel} {since.isoformat()}"
        return tuple(
            notice._replace(kind=kind, key=delivery_key(cause, f"{kind} {notice.channel}", notice.addresses))
            for notice in event_plan.deliveries
        )

    def reroute(
        self, event: Event, delivery: Delivery, notified: Iterable[tuple[str, str]], *, now: datetime
    ) -> tuple[Delivery, ...]:
        """If the delivery's channel does not know the recipient, return deliveries on the fallback channel instead.

        `notified`: pairs of channel and address that already have a delivery of this event. They get no other delivery.
        """
        fallback = self.fallbacks.get(delivery.channel)
        event_plan = _EventPlan(self, event, now)
        for channel, address in notified:
            event_plan.register(channel, address)
        if fallback is not None:
            event_plan.reroute(delivery, fallback)
        return tuple(event_plan.deliveries)

    def unreachable(self) -> Iterator[str]:
        """Yield an error message for each mistake in the contacts, and for each unknown contact in the settings."""
        yield from self.contacts.problems
        for channel, names in self.fallback_recipients.items():
            for problem in self.contacts.unknown(names):
                yield f"channels.{channel}.fallback_recipients: {problem}"

    def recipients(self, rule: Rule) -> Sequence[Recipient]:
        """Return whom a rule names, each with the channel. A contact's recipients stand in the place of its name."""
        channel = rule.notification.channel
        named: list[Recipient] = []
        for recipient in rule.notification.recipients:
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


@dataclass(slots=True)
class _EventPlan:
    """Collects the deliveries of one event."""

    planner: Planner
    event: Event
    now: datetime
    deliveries: list[Delivery] = field(default_factory=list)
    _event: str = field(init=False)
    """The event's key."""
    _registered: set[tuple[str, str]] = field(default_factory=set)
    """The pairs of channel and address that already have a delivery of this event."""

    def __post_init__(self) -> None:
        self._event = self.event.key

    def add_rules(self, rules: Sequence[Rule]) -> None:
        """Add the deliveries that the matched rules ask for: first find out who is named by which rules, then add the
        messages.
        """
        named: dict[tuple[str, str], _Named] = {}
        for place, rule in enumerate(rules):
            for channel, recipient in self.planner.recipients(rule):
                one = self._named(rule, place, channel, recipient)
                to = one.target
                named.setdefault((to.channel, (to.address or to.recipient).casefold()), one).name(rule)
        messages: dict[Hashable, list[_Named]] = {}
        for key, one in named.items():
            messages.setdefault(self._message_of(key, one), []).append(one)
        for together in messages.values():
            self._add_message(together)

    def _named(self, rule: Rule, place: int, channel: str, recipient: str) -> _Named:
        try:
            return _Named(self.planner.target(channel, recipient), rule, place)
        except UnknownRecipient as error:
            return _Named(Target(channel, recipient, ""), rule, place, error.reason)

    def _message_of(self, key: Hashable, named: _Named) -> Hashable:
        """Return what those have in common who share a message. `key`: the result for a recipient with its own message."""
        channel, recipient, _ = named.target
        if named.undeliverable or channel not in self.planner.grouped:
            return key
        return named.place, channel, self.planner.template_set(self.event, recipient)

    def _add_message(self, together: Sequence[_Named]) -> None:
        first = together[0]
        causes = tuple(dict.fromkeys([cause for one in together for cause in one.causes]))
        channel = first.target.channel
        if first.undeliverable:
            recipients = (first.target.recipient,)
            self.deliveries.append(self._delivery(channel, recipients, (), causes, dead=first.undeliverable))
            return
        template = first.rule.notification.template if channel in self.planner.with_own_template else None
        self._add_delivery(channel, [one.target for one in together], causes, template)

    def reroute(self, delivery: Delivery, fallback: str) -> None:
        """Add deliveries on the fallback channel, for those of the delivery's recipients that this channel knows."""
        targets = []
        for recipient in delivery.recipients:
            try:
                target = self.planner.target(fallback, recipient)
            except UnknownRecipient:
                continue  # the fallback does not know the recipient either, so the recipient's delivery stays dead
            if self.register(target.channel, target.address):
                targets.append(target)
        for group in self._messages(fallback, targets):
            self._add_delivery(fallback, group, delivery.rules, None)

    def notify_fallback(self, about: Delivery, reason: str) -> None:
        """Plan a notice about a delivery for each fallback recipient of its channel. `reason`: what the notice says."""
        if about.fallback_for:  # a dead notice causes no further notice, because that could go on forever
            return
        for contact in self.planner.fallback_recipients.get(about.channel, ()):
            for channel, recipient in self.planner.contacts.expand(contact) or ():
                try:
                    target = self.planner.target(channel, recipient)
                except UnknownRecipient:  # already reported: `unreachable` checks contacts at the start
                    continue
                if not self.register(f"fallback {target.channel}", target.address):
                    continue
                notice = self._delivery(
                    target.channel,
                    (target.recipient,),
                    (target.address,),
                    (Cause("", f"channels.{about.channel}.fallback_recipients"),),
                )
                key = self._key(f"fallback {target.channel}", notice.addresses)
                self.deliveries.append(
                    notice._replace(key=key, kind=Kind.FALLBACK_NOTICE, fallback_for=about.key, reason=reason)
                )

    def change_events(self, rules: Sequence[Rule]) -> Sequence[Delivery]:
        """Return a change event for each recipient of the rules, such as a PagerDuty service.

        Unknown recipients are skipped, because a rule that matches later reports them as undeliverable.
        """
        deliveries = []
        for rule in rules:
            for channel, recipient in self.planner.recipients(rule):
                try:
                    target = self.planner.target(channel, recipient)
                except UnknownRecipient:
                    continue
                if target.channel not in self.planner.change_events:
                    continue
                if self.register(target.channel, target.address):
                    causes = (Cause(rule.name, rule.defined_at),)
                    delivery = self._delivery(target.channel, (recipient,), (target.address,), causes)
                    key = self._key(f"version {target.channel}", delivery.addresses)
                    deliveries.append(delivery._replace(key=key, kind=Kind.CHANGE_EVENT))
        return deliveries

    def register(self, channel: str, address: str) -> bool:
        """Note that an address has a delivery on a channel. Returns False if the address already had one."""
        pair = (channel, address.casefold())
        if pair in self._registered:
            return False
        self._registered.add(pair)
        return True

    def _add_delivery(
        self, channel: str, targets: Sequence[Target], rules: tuple[Cause, ...], template: str | None
    ) -> None:
        addresses = tuple([target.address for target in targets])
        recipients = tuple([target.recipient for target in targets])
        delivery = self._delivery(channel, recipients, addresses, rules)._replace(template=template)
        if subject := self._thread_subject(channel, addresses):
            key = thread_key(channel, addresses, subject)
            delivery = delivery._replace(
                thread=key, thread_at=_possible(self.event.occurred_at, self.now), subject=subject
            )
        self.deliveries.append(delivery)

    def _thread_subject(self, channel: str, addresses: Sequence[str]) -> str:
        """Return what the thread of a failure's delivery is about; empty if the delivery has no thread.

        A success has none of its own: its resolved notices stand in the threads of earlier failures.
        """
        thread_by = self.planner.thread_by.get(channel)
        unit = thread_by(addresses[0]) if thread_by is not None else None
        if unit is None or self.event.phase is Phase.SUCCEEDED:
            return ""
        if unit == "execution":
            return execution_subject(self.event.origin or self.event.execution)
        return self.event.launch_plan.key if self.event.launch_plan is not None else ""

    def _messages(self, channel: str, targets: Sequence[Target]) -> list[list[Target]]:
        """Return the targets of each message."""
        if channel not in self.planner.grouped:
            return [[target] for target in targets]
        groups: dict[Hashable, list[Target]] = {}
        for target in targets:
            groups.setdefault(self.planner.template_set(self.event, target.recipient), []).append(target)
        return list(groups.values())

    def _key(self, kind: str, addresses: Sequence[str]) -> str:
        """Return the delivery key.

        The key is the same on every replica. If two replicas reroute the same delivery, the ledger stores one row.
        """
        return time_prefixed(delivery_key(self._event, kind, addresses), self.event.occurred_at)

    def _delivery(
        self,
        channel: str,
        recipients: tuple[str, ...],
        addresses: tuple[str, ...],
        rules: tuple[Cause, ...],
        *,
        dead: str = "",
    ) -> Delivery:
        return Delivery(
            key=self._key(channel, addresses or recipients),
            event=self._event,
            channel=channel,
            recipients=recipients,
            addresses=addresses,
            content=None,
            rules=rules,
            created_at=self.now,
            due_at=self.now,
            retry_window_start=self.now,
            occurred_at=self.event.occurred_at,
            state=State.DEAD if dead else State.WAITING,
            reason=dead,
        )


def _undelivered(dead: Delivery) -> str:
    return f"{', '.join(dead.recipients)} could not be notified through {dead.channel}: {dead.reason}"


def _possible(at: datetime, now: datetime) -> datetime:
    """Return an event's time, or `now` if the time is more than `MAX_AHEAD` in the future.

    Such a time comes from a wrong clock. It would make all failures until then look older than a success.
    """
    return at if at <= now + MAX_AHEAD else now
