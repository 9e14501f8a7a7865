"""What is owed for an event: the matched rules become deliveries, each with its key and finished content.

For mail one delivery is a rule's whole recipient list, as Flyte sends it, or one for each look where the
operator gives some of them other templates; everywhere else one target is one delivery. Nobody is told the
same thing twice over one channel, however many rules name them.
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
    in_time,
    thread_key,
)
from dispatcher.model.event import EntityId, Event
from dispatcher.model.phase import Phase
from dispatcher.rules import Rule

GROUPED = frozenset({"email"})
"""Channels on which one message goes to a whole list of recipients."""

LONGEST_VERSION = 255
"""Characters of a launch plan's version by which it is known; flyteadmin has no more, other engines may."""

Address = Callable[[str], str]
"""`Channel.address`: a rule's recipient becomes an address, or raises Unserved."""


class Render(Protocol):
    """A channel's message for an event."""

    def __call__(
        self,
        channel: str,
        event: Event,
        *,
        recipient: str = "",
        template: str | None = None,
        undelivered: str = "",
    ) -> Content:
        """`recipient`: any of those who get it. `template`: the notification's own. `undelivered`: who could
        not be told, and why.
        """


class Look(Protocol):
    """By which templates a recipient's message is made: those of one look share one message."""

    def __call__(self, event: Event, recipient: str) -> Hashable: ...


def _same(event: Event, recipient: str) -> Hashable:
    del event, recipient
    return ()


class Target(NamedTuple):
    channel: str
    recipient: str
    address: str


@dataclass(frozen=True, slots=True)
class Planner:
    """Makes deliveries. Knows the configured channels only by what they call an address."""

    addresses: Mapping[str, Address]
    """The configured channels."""
    fallbacks: Mapping[str, str]
    """Which channel serves the recipients that another one can't: `slack` -> `email`."""
    render: Render
    last_resorts: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """By channel: the channels and recipients that are told where one of its deliveries dies."""
    look: Look = _same
    thread_by: Mapping[str, Callable[[str], ThreadBy | None]] = field(default_factory=dict)
    """By channel: what a conversation with an address is about (`Channel.thread_by`)."""
    changes: Mapping[str, Callable[[Event], Content]] = field(default_factory=dict)
    """By channel that wants to know of a launch plan's new version: what tells of it."""
    moved: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Recipients as rules write them, and the channel and recipient that they stand for instead."""

    def plan(self, event: Event, rules: Sequence[Rule], *, now: datetime) -> tuple[Delivery, ...]:
        """The deliveries that the matched rules owe.

        A recipient that no channel can serve makes a delivery all the same, dead from the start, with the
        reason: it is owed, and somebody has to mend it.
        """
        making = _Making(self, event, now)
        for rule in rules:
            making.add(rule)
        for stillborn in [delivery for delivery in making.deliveries if delivery.state is State.DEAD]:
            making.give_notice(stillborn, stillborn.reason)
        return tuple(making.deliveries)

    def version(self, event: Event, rules: Sequence[Rule], *, now: datetime) -> NewVersion | None:
        """What is told where the event's launch plan ran in a new version, to those whom any of its rules names;
        None where nobody wants to know.
        """
        told = [rule for rule in rules if rule.notification.channel in self.changes]
        plan = event.launch_plan
        if plan is None or not plan.version or not told:
            return None
        making = _Making(self, event, now)
        return NewVersion(
            launch_plan=_matter(plan), version=plan.version[:LONGEST_VERSION], tell=lambda: making.changes(told)
        )

    def resolution(self, event: Event, *, now: datetime) -> Resolution | None:
        """What a launch plan's success ends; None where the event is none, or nobody would be told of it."""
        if event.phase is not Phase.SUCCEEDED or event.launch_plan is None or not self.thread_by:
            return None
        launch_plan = _matter(event.launch_plan)
        return Resolution(launch_plan=launch_plan, occurred_at=event.occurred_at, close=_Making(self, event, now).close)

    def give_notice(self, event: Event, delivery: Delivery, reason: str, *, now: datetime) -> tuple[Delivery, ...]:
        """What tells the fallback recipients that a delivery has died; at most one message each and event."""
        making = _Making(self, event, now)
        making.give_notice(delivery, reason)
        return tuple(making.deliveries)

    def reroute(
        self, event: Event, delivery: Delivery, told: Iterable[tuple[str, str]], *, now: datetime
    ) -> tuple[Delivery, ...]:
        """What becomes of a delivery whose channel found no such recipient: the fallback's, or nothing.

        `told`: the channels and addresses that the event has deliveries for already.
        """
        fallback = self.fallbacks.get(delivery.channel)
        making = _Making(self, event, now)
        for channel, address in told:
            making.first_time(channel, address)
        if fallback is not None:
            making.reroute(delivery, fallback)
        return tuple(making.deliveries)

    def unreachable(self) -> Iterator[str]:
        """The settings' recipients that nobody can serve, each with the reason."""
        for recipient in self.moved:
            try:
                self.target("", recipient)
            except UnknownRecipient as error:
                yield f"rules.recipients: {recipient}: {error.reason}"
        for dying, resorts in self.last_resorts.items():
            for channel, recipients in resorts.items():
                for recipient in recipients:
                    try:
                        self.target(channel, recipient)
                    except UnknownRecipient as error:
                        yield f"channels.{dying}.fallback_recipients.{channel}: {recipient}: {error.reason}"

    def target(self, channel: str, recipient: str) -> Target:
        """Who serves this recipient, at which address. Raises Unserved where nobody does."""
        if recipient in self.moved:
            channel, meant = self.moved[recipient]
            return Target(channel, recipient, self._address(channel, meant))
        try:
            return Target(channel, recipient, self._address(channel, recipient))
        except UnknownRecipient as unknown_recipient:
            if unknown_recipient.by is not None and unknown_recipient.by[0] in self.addresses:
                channel, meant = unknown_recipient.by
                return Target(channel, recipient, self._address(channel, meant))
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


class _Talk(NamedTuple):
    """A delivery's place in a conversation."""

    thread: str
    launch_plan: str


_ALONE = _Talk("", "")


@dataclass(slots=True)
class _Making:
    """The deliveries of one event, in the making."""

    planner: Planner
    event: Event
    now: datetime
    deliveries: list[Delivery] = field(default_factory=list)
    _event: str = field(init=False)
    """The event's key."""
    _told: set[tuple[str, str]] = field(default_factory=set)
    _contents: dict[tuple[str, str | None, Hashable], Content] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._event = self.event.key

    def add(self, rule: Rule) -> None:
        served: dict[str, list[Target]] = {}
        for recipient in rule.notification.recipients:
            try:
                target = self.planner.target(rule.notification.channel, recipient)
            except UnknownRecipient as error:
                self._owe_in_vain(rule, recipient, error.reason)
                continue
            if self.first_time(target.channel, target.address):
                served.setdefault(target.channel, []).append(target)
        for channel, targets in served.items():
            for group in self._alike(targets) if channel in GROUPED else [[target] for target in targets]:
                self._append(channel, group, rule.source, rule.notification.template if channel == "email" else None)

    def reroute(self, delivery: Delivery, fallback: str) -> None:
        targets = []
        for recipient in delivery.recipients:
            try:
                target = self.planner.target(fallback, recipient)
            except UnknownRecipient:
                continue  # the dead delivery it came from says why
            if self.first_time(target.channel, target.address):
                targets.append(target)
        for group in self._alike(targets):
            self._append(fallback, group, delivery.rule, None)

    def give_notice(self, dead: Delivery, reason: str) -> None:
        last_resorts = self.planner.last_resorts.get(dead.channel, {})
        if dead.fallback_for:  # nobody is told that the fallback could not be told: the ledger and the log say so
            return
        undelivered = f"{', '.join(dead.recipients)} could not be told by {dead.channel}: {reason}"
        for channel, recipients in last_resorts.items():
            for recipient in recipients:
                try:
                    target = self.planner.target(channel, recipient)
                except UnknownRecipient:  # `unreachable` has told the operator
                    continue
                if not self.first_time(f"fallback {target.channel}", target.address):
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

    def changes(self, rules: Sequence[Rule]) -> Sequence[Delivery]:
        """A change event for each service that a rule names; whom nobody serves, a failure will tell."""
        made = []
        for rule in rules:
            for recipient in rule.notification.recipients:
                try:
                    target = self.planner.target(rule.notification.channel, recipient)
                except UnknownRecipient:
                    continue
                if target.channel not in self.planner.changes or not self.first_time(target.channel, target.address):
                    continue
                content = self.planner.changes[target.channel](self.event)
                one = self._delivery(target.channel, (recipient,), (target.address,), rule.source, content)
                key = self._key(f"version {target.channel}", one.addresses)
                made.append(one._replace(key=key))
        return made

    def close(self, opened: OpenThread) -> Delivery | None:
        """The good news for those who had the bad; one message, whether a rule asks for it or not."""
        scope = self.planner.thread_by.get(opened.channel)
        if scope is None or scope(opened.addresses[0]) is None or self.event.launch_plan is None:
            return None
        content = self._content(opened.channel, opened.recipients[0], None)
        rule = f"recovery after {opened.event}"
        talk = _Talk(opened.thread, _matter(self.event.launch_plan))
        made = self._delivery(opened.channel, opened.recipients, opened.addresses, rule, content, talk=talk)
        key = self._key(f"recovery {opened.thread}", opened.addresses)
        return made._replace(key=key, resolves=True)

    def first_time(self, channel: str, address: str) -> bool:
        told = (channel, address.casefold())
        if told in self._told:
            return False
        self._told.add(told)
        return True

    def _append(self, channel: str, targets: Sequence[Target], rule: str, template: str | None) -> None:
        addresses = tuple([target.address for target in targets])
        recipients = tuple([target.recipient for target in targets])
        content = self._content(channel, recipients[0], template)
        talk = self._talk(channel, addresses)
        self.deliveries.append(self._delivery(channel, recipients, addresses, rule, content, talk=talk))

    def _talk(self, channel: str, addresses: Sequence[str]) -> _Talk:
        """What fails in a launch plan belongs together. A success has nothing to add unless something is open, and
        then `close` makes its delivery.
        """
        scope = self.planner.thread_by.get(channel)
        about = scope(addresses[0]) if scope is not None else None
        if about is None or self.event.phase is Phase.SUCCEEDED or self.event.launch_plan is None:
            return _ALONE
        launch_plan = _matter(self.event.launch_plan)
        subject = launch_plan if about == "launch_plan" else f"execution {self.event.execution}"
        return _Talk(thread_key(channel, addresses, subject), launch_plan)

    def _alike(self, targets: Sequence[Target]) -> list[list[Target]]:
        """Those whose messages are made by the same templates, together."""
        groups: dict[Hashable, list[Target]] = {}
        for target in targets:
            groups.setdefault(self.planner.look(self.event, target.recipient), []).append(target)
        return list(groups.values())

    def _owe_in_vain(self, rule: Rule, recipient: str, reason: str) -> None:
        channel = rule.notification.channel
        if self.first_time(channel, recipient):
            content = self._content(channel, recipient, None)
            self.deliveries.append(self._delivery(channel, (recipient,), (), rule.source, content, dead=reason))

    def _key(self, kind: str, addresses: Sequence[str]) -> str:
        """The same on every replica: two that reroute a delivery at once write one row."""
        return in_time(delivery_key(self._event, kind, addresses), self.event.occurred_at)

    def _delivery(
        self,
        channel: str,
        recipients: tuple[str, ...],
        addresses: tuple[str, ...],
        rule: str,
        content: Content,
        *,
        talk: _Talk = _ALONE,
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
            thread=talk.thread,
            launch_plan=talk.launch_plan,
        )

    def _content(self, channel: str, recipient: str, template: str | None) -> Content:
        """The message for this recipient and all others of its look, rendered once."""
        key = (channel, template, self.planner.look(self.event, recipient))
        if key not in self._contents:
            self._contents[key] = self.planner.render(channel, self.event, recipient=recipient, template=template)
        return self._contents[key]


def _matter(plan: EntityId) -> str:
    """The launch plan, whatever its version."""
    return f"{plan.project}/{plan.domain}/{plan.name}"
