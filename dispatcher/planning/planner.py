"""Turns the matched rules of an event into deliveries with a key and rendered content.

For mail, one delivery has a rule's whole recipient list, as in Flyte, or the recipients that share a template set. On
every other channel, one delivery has one address. An address is notified of an event once per channel, even
if several rules name it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Protocol

from channels.contract import Content, ThreadBy, UnknownRecipient
from dispatcher.model.delivery import (
    Delivery,
    NewVersion,
    OpenThread,
    Resolution,
    State,
    delivery_key,
    thread_key,
    time_prefixed,
)
from dispatcher.model.event import EntityId, Event
from dispatcher.model.phase import Phase
from dispatcher.rules import Rule

GROUPED = frozenset({"email"})
"""Channels on which one message has several recipients."""

MAX_VERSION_LENGTH = 255
"""Maximum number of characters of a launch plan's version that are stored. flyteadmin allows no more, but other engines
may."""

Address = Callable[[str], str]
"""`Channel.address`: returns the address of a rule's recipient. Raises UnknownRecipient."""


class Render(Protocol):
    """Renders a channel's message for an event."""

    def __call__(
        self,
        channel: str,
        event: Event,
        *,
        recipient: str = "",
        template: str | None = None,
        undelivered: str = "",
    ) -> Content:
        """Return the content.

        `recipient`: one of the recipients, who share a template set. `template`: the rule's own template.
        `undelivered`: only for a notice to fallback recipients: the recipients that could not be notified, and why.
        """


class TemplateSetOf(Protocol):
    """Returns the template set of a recipient. Recipients with equal template sets share a message."""

    def __call__(self, event: Event, recipient: str) -> Hashable: ...


def _same_templates(event: Event, recipient: str) -> Hashable:
    del event, recipient
    return ()


class Target(NamedTuple):
    channel: str
    recipient: str
    address: str


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans deliveries. It does not use the channels themselves, only functions that the channels provide."""

    addresses: Mapping[str, Address]
    """Mapping from each configured channel to the function that returns a recipient's address."""
    fallbacks: Mapping[str, str]
    """Mapping from a channel to the channel that is used instead if it does not know the recipient, such as `slack` ->
    `email`."""
    render: Render
    fallback_recipients: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Mapping from a channel to the channels and recipients that are notified when one of its deliveries is dead."""
    template_set: TemplateSetOf = _same_templates
    thread_by: Mapping[str, Callable[[str], ThreadBy | None]] = field(default_factory=dict)
    """Mapping from a channel to the function that returns whether messages to an address are threaded by launch plan or
    by execution (`Channel.thread_by`)."""
    change_events: Mapping[str, Callable[[Event], Content]] = field(default_factory=dict)
    """Mapping from each channel that sends change events to the function that renders the change event for a new
    version of a launch plan."""
    aliases: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Mapping from a recipient in a rule to the channel and recipient that replace it (`rules.recipients`)."""

    def plan(self, event: Event, rules: Sequence[Rule], *, now: datetime) -> tuple[Delivery, ...]:
        """Return the deliveries for the matched rules.

        A recipient that no channel knows gets an undeliverable delivery: dead from the start, with the reason, so that
        an operator can fix the rule.
        """
        event_plan = _EventPlan(self, event, now)
        for rule in rules:
            event_plan.add_rule(rule)
        for undeliverable in [delivery for delivery in event_plan.deliveries if delivery.state is State.DEAD]:
            event_plan.notify_fallback(undeliverable, undeliverable.reason)
        return tuple(event_plan.deliveries)

    def new_version(self, event: Event, rules: Sequence[Rule], *, now: datetime) -> NewVersion | None:
        """Return the change events to send if the launch plan ran in this version for the first time.

        They are sent to the recipients of all `rules`. None if no channel of the rules has change events.
        """
        with_change_events = [rule for rule in rules if rule.notification.channel in self.change_events]
        plan = event.launch_plan
        if plan is None or not plan.version or not with_change_events:
            return None
        event_plan = _EventPlan(self, event, now)
        return NewVersion(
            launch_plan=_launch_plan_key(plan),
            version=plan.version[:MAX_VERSION_LENGTH],
            plan_deliveries=lambda: event_plan.change_events(with_change_events),
        )

    def resolution(self, event: Event, *, now: datetime) -> Resolution | None:
        """Return the resolved notices to send after a launch plan's success; None if no channel has threads."""
        if event.phase is not Phase.SUCCEEDED or event.launch_plan is None or not self.thread_by:
            return None
        return Resolution(
            launch_plan=_launch_plan_key(event.launch_plan),
            occurred_at=event.occurred_at,
            plan_resolved_notice=_EventPlan(self, event, now).plan_resolved_notice,
        )

    def notify_fallback(self, event: Event, delivery: Delivery, reason: str, *, now: datetime) -> tuple[Delivery, ...]:
        """Return notices to the fallback recipients about a dead delivery, at most one for each recipient and event."""
        event_plan = _EventPlan(self, event, now)
        event_plan.notify_fallback(delivery, reason)
        return tuple(event_plan.deliveries)

    def reroute(
        self, event: Event, delivery: Delivery, notified: Iterable[tuple[str, str]], *, now: datetime
    ) -> tuple[Delivery, ...]:
        """Return deliveries on the fallback channel for a delivery whose channel does not know the recipient.

        `notified`: the channels and addresses that have a delivery of this event already. They get no second one.
        """
        fallback = self.fallbacks.get(delivery.channel)
        event_plan = _EventPlan(self, event, now)
        for channel, address in notified:
            event_plan.register(channel, address)
        if fallback is not None:
            event_plan.reroute(delivery, fallback)
        return tuple(event_plan.deliveries)

    def unreachable(self) -> Iterator[str]:
        """Yield a problem for each recipient in the settings that no channel knows."""
        for recipient in self.aliases:
            try:
                self.target("", recipient)
            except UnknownRecipient as error:
                yield f"rules.recipients: {recipient}: {error.reason}"
        for dead_channel, fallback in self.fallback_recipients.items():
            for channel, recipients in fallback.items():
                for recipient in recipients:
                    try:
                        self.target(channel, recipient)
                    except UnknownRecipient as error:
                        yield f"channels.{dead_channel}.fallback_recipients.{channel}: {recipient}: {error.reason}"

    def target(self, channel: str, recipient: str) -> Target:
        """Return the channel and address for a rule's recipient. Raises UnknownRecipient if no channel knows it."""
        if recipient in self.aliases:
            channel, alias = self.aliases[recipient]
            return Target(channel, recipient, self._address(channel, alias))
        try:
            return Target(channel, recipient, self._address(channel, recipient))
        except UnknownRecipient as unknown_recipient:
            if unknown_recipient.reachable_by is not None and unknown_recipient.reachable_by[0] in self.addresses:
                channel, alias = unknown_recipient.reachable_by
                return Target(channel, recipient, self._address(channel, alias))
            fallback = self.fallbacks.get(channel)
            if fallback is None:
                raise
            try:
                return Target(fallback, recipient, self._address(fallback, recipient))
            except UnknownRecipient as neither:
                raise UnknownRecipient(f"{unknown_recipient.reason}; nor does {fallback}: {neither.reason}") from None

    def _address(self, channel: str, recipient: str) -> str:
        if channel not in self.addresses:
            raise UnknownRecipient(f"no such channel is configured: add channels.{channel} to the settings")
        return self.addresses[channel](recipient)


class _ThreadPosition(NamedTuple):
    """The thread of a delivery, and the launch plan whose success resolves it."""

    thread: str
    launch_plan: str


_NO_THREAD = _ThreadPosition("", "")


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
    """The pairs of channel and address that have a delivery of this event."""
    _contents: dict[tuple[str, str | None, Hashable], Content] = field(default_factory=dict)
    """Mapping from channel, the rule's own template and the template set to the rendered content."""

    def __post_init__(self) -> None:
        self._event = self.event.key

    def add_rule(self, rule: Rule) -> None:
        """Add the deliveries of one matched rule."""
        by_channel: dict[str, list[Target]] = {}
        for recipient in rule.notification.recipients:
            try:
                target = self.planner.target(rule.notification.channel, recipient)
            except UnknownRecipient as error:
                self._add_undeliverable(rule, recipient, error.reason)
                continue
            if self.register(target.channel, target.address):
                by_channel.setdefault(target.channel, []).append(target)
        for channel, targets in by_channel.items():
            template = rule.notification.template if channel == "email" else None
            for group in self._by_template_set(targets) if channel in GROUPED else [[target] for target in targets]:
                self._add_delivery(channel, group, rule.defined_at, template)

    def reroute(self, delivery: Delivery, fallback: str) -> None:
        """Add deliveries on the fallback channel for the recipients that it knows."""
        targets = []
        for recipient in delivery.recipients:
            try:
                target = self.planner.target(fallback, recipient)
            except UnknownRecipient:
                continue  # the dead delivery contains the reason
            if self.register(target.channel, target.address):
                targets.append(target)
        for group in self._by_template_set(targets):
            self._add_delivery(fallback, group, delivery.rule, None)

    def notify_fallback(self, dead: Delivery, reason: str) -> None:
        """Plan a notice about the dead delivery for each fallback recipient of its channel."""
        if dead.fallback_for:  # a dead notice causes no further notice; it is in the ledger and the log
            return
        undelivered = f"{', '.join(dead.recipients)} could not be notified through {dead.channel}: {reason}"
        for channel, recipients in self.planner.fallback_recipients.get(dead.channel, {}).items():
            for recipient in recipients:
                try:
                    target = self.planner.target(channel, recipient)
                except UnknownRecipient:  # `unreachable` reports the recipient at the start
                    continue
                if not self.register(f"fallback {target.channel}", target.address):
                    continue
                notice = self._delivery(
                    target.channel,
                    (target.recipient,),
                    (target.address,),
                    f"channels.{dead.channel}.fallback_recipients",
                    self.planner.render(
                        target.channel, self.event, recipient=target.recipient, undelivered=undelivered
                    ),
                )
                key = self._key(f"fallback {target.channel}", notice.addresses)
                self.deliveries.append(notice._replace(key=key, fallback_for=dead.key))

    def change_events(self, rules: Sequence[Rule]) -> Sequence[Delivery]:
        """Return a change event for each service that a rule names.

        Unknown recipients are left out, because they are reported when the launch plan fails.
        """
        deliveries = []
        for rule in rules:
            for recipient in rule.notification.recipients:
                try:
                    target = self.planner.target(rule.notification.channel, recipient)
                except UnknownRecipient:
                    continue
                render = self.planner.change_events.get(target.channel)
                if render is None or not self.register(target.channel, target.address):
                    continue
                delivery = self._delivery(
                    target.channel, (recipient,), (target.address,), rule.defined_at, render(self.event)
                )
                key = self._key(f"version {target.channel}", delivery.addresses)
                deliveries.append(delivery._replace(key=key))
        return deliveries

    def plan_resolved_notice(self, opened: OpenThread) -> Delivery | None:
        """Return the resolved notice of a thread, whether or not a rule asks for successes.

        None if the channel is no longer configured or no longer threads messages to this address.
        """
        thread_by = self.planner.thread_by.get(opened.channel)
        if thread_by is None or thread_by(opened.addresses[0]) is None or self.event.launch_plan is None:
            return None
        content = self._content(opened.channel, opened.recipients[0], None)
        rule = f"resolved notice after {opened.event}"
        position = _ThreadPosition(opened.thread, _launch_plan_key(self.event.launch_plan))
        notice = self._delivery(opened.channel, opened.recipients, opened.addresses, rule, content, position=position)
        return notice._replace(key=self._key(f"resolved {opened.thread}", opened.addresses), resolves=True)

    def register(self, channel: str, address: str) -> bool:
        """Note that an address has a delivery on this channel; False if it had one already."""
        pair = (channel, address.casefold())
        if pair in self._registered:
            return False
        self._registered.add(pair)
        return True

    def _add_delivery(self, channel: str, targets: Sequence[Target], rule: str, template: str | None) -> None:
        addresses = tuple([target.address for target in targets])
        recipients = tuple([target.recipient for target in targets])
        content = self._content(channel, recipients[0], template)
        position = self._thread_position(channel, addresses)
        self.deliveries.append(self._delivery(channel, recipients, addresses, rule, content, position=position))

    def _thread_position(self, channel: str, addresses: Sequence[str]) -> _ThreadPosition:
        """Return the thread of a failure. A success gets none: `plan_resolved_notice` adds it to the open threads."""
        thread_by = self.planner.thread_by.get(channel)
        unit = thread_by(addresses[0]) if thread_by is not None else None
        if unit is None or self.event.phase is Phase.SUCCEEDED or self.event.launch_plan is None:
            return _NO_THREAD
        launch_plan = _launch_plan_key(self.event.launch_plan)
        subject = launch_plan if unit == "launch_plan" else f"execution {self.event.execution}"
        return _ThreadPosition(thread_key(channel, addresses, subject), launch_plan)

    def _by_template_set(self, targets: Sequence[Target]) -> list[list[Target]]:
        groups: dict[Hashable, list[Target]] = {}
        for target in targets:
            groups.setdefault(self.planner.template_set(self.event, target.recipient), []).append(target)
        return list(groups.values())

    def _add_undeliverable(self, rule: Rule, recipient: str, reason: str) -> None:
        channel = rule.notification.channel
        if self.register(channel, recipient):
            content = self._content(channel, recipient, None)
            self.deliveries.append(self._delivery(channel, (recipient,), (), rule.defined_at, content, dead=reason))

    def _key(self, kind: str, addresses: Sequence[str]) -> str:
        """Return the delivery key. It is the same on every replica, so two that reroute a delivery write one row."""
        return time_prefixed(delivery_key(self._event, kind, addresses), self.event.occurred_at)

    def _delivery(
        self,
        channel: str,
        recipients: tuple[str, ...],
        addresses: tuple[str, ...],
        rule: str,
        content: Content,
        *,
        position: _ThreadPosition = _NO_THREAD,
        dead: str = "",
    ) -> Delivery:
        return Delivery(
            key=self._key(channel, addresses or recipients),
            event=self._event,
            channel=channel,
            recipients=recipients,
            addresses=addresses,
            content=content,
            rule=rule,
            created_at=self.now,
            due_at=self.now,
            retry_window_start=self.now,
            occurred_at=self.event.occurred_at,
            state=State.DEAD if dead else State.WAITING,
            reason=dead,
            thread=position.thread,
            launch_plan=position.launch_plan,
        )

    def _content(self, channel: str, recipient: str, template: str | None) -> Content:
        """Return the message for this recipient. It is rendered once for all recipients with the same template set."""
        key = (channel, template, self.planner.template_set(self.event, recipient))
        if key not in self._contents:
            self._contents[key] = self.planner.render(channel, self.event, recipient=recipient, template=template)
        return self._contents[key]


def _launch_plan_key(plan: EntityId) -> str:
    """Return `project/domain/name`, without the version."""
    return f"{plan.project}/{plan.domain}/{plan.name}"
