"""Collects the deliveries of one event.

First it finds out who is named, and by which rules; then it makes the messages. So a delivery lists all rules that named
its recipients, and gets the highest severity that one of them gives.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from channels.contract import UnknownRecipient
from dispatcher.holding.windows import QuietHours, quiet_now
from dispatcher.model.delivery import (
    Delivery,
    Kind,
    RuleRef,
    State,
    delivery_key,
    execution_subject,
    thread_key,
    time_prefixed,
)
from dispatcher.model.event import Event, possible
from dispatcher.model.hold import DigestOptions
from dispatcher.model.phase import Phase
from dispatcher.model.severity import highest
from dispatcher.planning.contacts import NO_OPTIONS, Options, Recipient
from dispatcher.planning.targets import Target
from dispatcher.rules import Rule

if TYPE_CHECKING:
    from dispatcher.planning.planner import Planner


@dataclass(slots=True)
class Named:
    """Somebody to notify, and why."""

    target: Target
    """Without an address if no channel knows the recipient."""
    options: Options = NO_OPTIONS
    """The options of the address's contact."""
    severity: str = ""
    undeliverable: str = ""
    """Why no channel knows the recipient; empty if one does."""
    place: int = 0
    """The place of the first rule that names the recipient, among the matched rules. That rule makes the message."""
    template: str | None = None
    """That rule's own template."""
    rules: dict[RuleRef, QuietHours | None] = field(default_factory=dict)
    """The rules that name the recipient, each once, with their quiet hours."""
    quiet_hours: Sequence[Sequence[QuietHours]] = ()
    """The quiet hours that may hold the message to this recipient, in groups (`quiet_now`)."""
    digest: DigestOptions | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The same for all recipients whose address is the same."""
        return self.target.channel, (self.target.address or self.target.recipient).lower()

    def name(self, rule: Rule) -> None:
        """Note that a rule names the recipient."""
        self.severity = highest(self.severity, rule.severity)
        self.rules[rule.ref] = rule.quiet


@dataclass(slots=True)
class EventPlan:
    """The deliveries of one event so far."""

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

    def add_rules(
        self, rules: Sequence[Rule], beside: Mapping[Hashable, Named] = MappingProxyType({}), first: int = 0
    ) -> None:
        """Add the deliveries that the matched rules ask for.

        `beside`: whom rules before these name (`named_by`), and `first` their number. Whom these rules name too, these
        rules' deliveries notify for both.
        """
        self._add_messages(self.named_by(rules, beside, first).values())

    def named_by(
        self, rules: Sequence[Rule], beside: Mapping[Hashable, Named] = MappingProxyType({}), first: int = 0
    ) -> dict[Hashable, Named]:
        """Return whom the rules name, each address once. `beside`, `first`: as in `add_rules`."""
        named: dict[Hashable, Named] = {}
        for place, rule in enumerate(rules, start=first):
            for channel, recipient in self.planner.recipients(rule):
                one = self._named(channel, recipient)
                if (earlier := named.get(one.key)) is None:
                    one.place, one.template = place, rule.notification.template
                    before = beside.get(one.key)
                    earlier = one if before is None else replace(before, rules=dict(before.rules))
                    named[one.key] = earlier
                earlier.name(rule)
        return named

    def reroute(self, delivery: Delivery, fallback: str) -> None:
        """Add deliveries on the fallback channel, for those of the delivery's recipients that this channel knows."""
        self._notify_instead(delivery, [(fallback, recipient) for recipient in delivery.recipients], delivery.rules)

    def notify_instead_of_owner(self, delivery: Delivery, contact: str) -> None:
        """Add deliveries to the contact's recipients, because the owner's address does not exist."""
        rules = [rule._replace(owner=False) for rule in delivery.rules if rule.owner]
        self._notify_instead(delivery, self.planner.contacts.expand(contact) or (), rules)

    def _notify_instead(self, delivery: Delivery, recipients: Iterable[Recipient], rules: Iterable[RuleRef]) -> None:
        named = []
        for channel, recipient in recipients:
            one = self._named(channel, recipient)
            if one.undeliverable:
                continue  # nobody else can be notified, so the recipient's delivery stays dead
            if self.register(one.target):
                one.rules = dict.fromkeys(rules)
                one.severity = highest(one.severity, delivery.severity)
                named.append(one)
        self._add_messages(named)

    def notify_fallback(self, about: Delivery, reason: str) -> None:
        """Plan a notice about a delivery for each fallback recipient of its channel. `reason`: what the notice says."""
        if about.fallback_for:  # a dead notice causes no further notice, because that could go on forever
            return
        for contact in self.planner.fallback_recipients.get(about.channel, ()):
            for channel, recipient in self.planner.contacts.expand(contact) or ():
                one = self._named(channel, recipient)
                kind = f"fallback {one.target.channel}"
                # An undeliverable one is already reported: `Planner.unreachable` checks contacts at the start.
                if one.undeliverable or not self.register(one.target._replace(channel=kind)):
                    continue
                one.rules = {RuleRef("", f"channels.{about.channel}.fallback_recipients"): None}
                one.severity = highest(one.severity, about.severity)
                self._hold(one)
                notice = self._delivery([one])
                self.deliveries.append(
                    notice._replace(
                        key=self._key(kind, notice.addresses),
                        kind=Kind.FALLBACK_NOTICE,
                        fallback_for=about.key,
                        reason=reason,
                    )
                )

    def instead_of(self, lost: Delivery) -> tuple[Delivery, ...]:
        """Return the deliveries, with the note of the one in whose place they are: it may count other failures."""
        return tuple(one._replace(note=lost.note) for one in self.deliveries)

    def change_events(self, rules: Sequence[Rule]) -> Sequence[Delivery]:
        """Return a change event for each recipient of the rules, such as a PagerDuty service.

        Unknown recipients are skipped, because a rule that matches later reports them as undeliverable.
        """
        deliveries = []
        for rule in rules:
            for channel, recipient in self.planner.recipients(rule):
                one = self._named(channel, recipient)
                has_them = one.target.channel in self.planner.change_events
                if one.undeliverable or not has_them or not self.register(one.target):
                    continue
                one.name(rule)
                delivery = self._delivery([one])
                key = self._key(f"version {delivery.channel}", delivery.addresses)
                deliveries.append(delivery._replace(key=key, kind=Kind.CHANGE_EVENT))
        return deliveries

    def register(self, target: Target) -> bool:
        """Note that an address has a delivery on a channel. Returns False if the address already had one."""
        pair = (target.channel, target.address.lower())
        if pair in self._registered:
            return False
        self._registered.add(pair)
        return True

    def _named(self, channel: str, recipient: str) -> Named:
        try:
            target = self.planner.target(channel, recipient)
        except UnknownRecipient as error:
            return Named(Target(channel, recipient, ""), undeliverable=error.reason)
        options = self.planner.contacts.options(target.channel, target.address)
        return Named(target, options, options.severity)

    def _add_messages(self, named: Iterable[Named]) -> None:
        messages: dict[Hashable, list[Named]] = {}
        for one in named:
            self._hold(one)
            messages.setdefault(self._shared_by(one), []).append(one)
        for together in messages.values():
            self._add_message(together)

    def _hold(self, one: Named) -> None:
        """Find out what may hold the message to a recipient."""
        if one.undeliverable or self.event.is_canary:
            return
        channel, _, address = one.target
        one.quiet_hours = self.planner.quiet_hours(channel, address, one.severity, one.rules.values())
        one.digest = self.planner.digest(channel, address)

    def _shared_by(self, one: Named) -> Hashable:
        """Return what those have in common who share a message."""
        channel, recipient, _ = one.target
        if one.undeliverable or channel not in self.planner.grouped or one.quiet_hours or one.digest:
            return one.key
        template_set = self.planner.template_set(self.event, recipient, one.options.templates)
        return one.place, channel, template_set, one.options.timezone, one.severity

    def _add_message(self, together: Sequence[Named]) -> None:
        delivery = self._delivery(together)
        if delivery.channel in self.planner.with_own_template:
            delivery = delivery._replace(template=together[0].template)
        if delivery.state is not State.DEAD and (subject := self._thread_subject(delivery)):
            key = thread_key(delivery.channel, delivery.addresses, subject)
            delivery = delivery._replace(
                thread=key, thread_at=possible(self.event.occurred_at, self.now), subject=subject
            )
        self.deliveries.append(delivery)

    def _thread_subject(self, delivery: Delivery) -> str:
        """Return what the thread of a failure's delivery is about; empty if the delivery has no thread.

        A success has none of its own: its resolved notices stand in the threads of earlier failures.
        """
        thread_by = self.planner.thread_by.get(delivery.channel)
        unit = thread_by(delivery.addresses[0]) if thread_by is not None else None
        if unit is None or self.event.phase is Phase.SUCCEEDED:
            return ""
        if unit == "execution":
            return execution_subject(self.event.origin or self.event.execution)
        return self.event.launch_plan.key if self.event.launch_plan is not None else ""

    def _key(self, kind: str, addresses: Sequence[str]) -> str:
        """Return the delivery key.

        The key is the same on every replica. If two replicas reroute the same delivery, the ledger stores one row.
        """
        return time_prefixed(delivery_key(self._event, kind, addresses), self.event.occurred_at)

    def _delivery(self, together: Sequence[Named]) -> Delivery:
        """Return the delivery to those who share a message."""
        first = together[0]
        channel, dead = first.target.channel, first.undeliverable
        recipients = tuple([one.target.recipient for one in together])
        addresses = tuple([one.target.address for one in together]) if not dead else ()
        return Delivery(
            key=self._key(channel, addresses or recipients),
            event=self._event,
            channel=channel,
            recipients=recipients,
            addresses=addresses,
            content=None,
            rules=tuple(dict.fromkeys([rule for one in together for rule in one.rules])),
            created_at=self.now,
            due_at=self.now,
            retry_window_start=self.now,
            occurred_at=self.event.occurred_at,
            state=State.DEAD if dead else State.WAITING,
            reason=dead,
            severity=first.severity,
            quiet=quiet_now(self.now, first.quiet_hours),
            digest=first.digest,
        )
