"""Decides which new messages are members of digests, within a transaction of the ledger.

A transaction locks the digests of all addresses that it concerns at once, after the subjects and before held deliveries
(`holds.py`). So of two replicas, the second sees what the first has recorded. A digest closes either after a message
joins it, or before: then the message joins the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, func, literal_column, or_, select, update

from dispatcher.holding.covering import held, may_be_held
from dispatcher.holding.digests import DigestState, Recent
from dispatcher.ledger.holds import IS_HELD
from dispatcher.ledger.schema import deliveries, digests
from dispatcher.ledger.statements import among, insert
from dispatcher.ledger.threads import MAY_HAVE_ARRIVED, TOLD_OF
from dispatcher.model.delivery import Delivery, Kind, State
from dispatcher.model.hold import DigestOptions, Hold, HoldReason


class Target(NamedTuple):
    """An address on a channel."""

    channel: str
    address: str


class Digests:
    """The digests of some addresses in one transaction. `save` writes those that changed."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now
        self._stored: dict[Target, DigestState] = {}
        self._loaded: dict[Target, DigestState] = {}
        self._changed: set[Target] = set()

    def lock(self, options: Mapping[Target, DigestOptions], others: Iterable[Target] = ()) -> None:
        """Read the digests that messages may join, and lock their rows until the transaction ends.

        `options`: the options of some addresses' contacts, which hold from now on. `others`: addresses that may have
        digests. Call it once: every transaction locks rows in the same order, which prevents deadlocks.
        """
        new = [
            DigestState(channel=channel, address=address, options=given)
            for (channel, address), given in sorted(options.items())
        ]
        insert(self._connection, digests, [_row(state) for state in new])
        by_channel: dict[str, list[str]] = {}
        for channel, address in {*options, *others}:
            by_channel.setdefault(channel, []).append(address)
        for channel, addresses in sorted(by_channel.items()):
            for row in self._connection.execute(_LOCK, {"of": channel, "addresses": addresses}):
                self._load(_state(row), options.get(Target(channel, row.address)))

    def _load(self, state: DigestState, options: DigestOptions | None) -> None:
        target = Target(state.channel, state.address)
        self._stored[target] = self._loaded[target] = state
        if options is not None and options != state.options:
            self[target] = state.with_options(options)

    def __getitem__(self, target: Target) -> DigestState | None:
        """The state of a locked address; None if it has no digests."""
        return self._loaded.get(target)

    def __setitem__(self, target: Target, state: DigestState) -> None:
        if state != self._loaded[target]:
            self._loaded[target] = state
            self._changed.add(target)

    def save(self) -> None:
        """Write the states that changed. If an open digest closes at another time, its members' holds end then."""
        changed = {target: self._loaded[target] for target in sorted(self._changed)}
        insert(self._connection, digests, [_row(state) for state in changed.values()], overwrite=True)
        for target, state in changed.items():
            before = self._stored[target]
            if state.open_id == before.open_id and state.closes_at != before.closes_at:
                members = self._connection.scalars(_MEMBERS, {"digest": before.open_id, "at": before.closes_at}).all()
                self._connection.execute(_MOVE, {"members": members, "until": state.closes_at})
            self._stored[target] = state
        self._changed.clear()

    # -- new messages

    def hold(self, target: Target, key: str) -> Hold | None:
        """Count a message that would go out now. Returns the hold if it is a member of a digest; None if it goes.

        `key`: the key of its delivery.
        """
        state = self[target]
        if state is None:
            return None
        self[target] = state = state.admit(key, self._now)
        return state.holds(self._now)

    def admitted(self, planned: Iterable[Delivery], unless_resolved: Callable[[Delivery], Delivery]) -> list[Delivery]:
        """Return new deliveries, with those held that are members of digests.

        `unless_resolved`: returns a member, or drops it if a recorded success has resolved it.
        """
        return [self._admitted(one, unless_resolved) for one in planned]

    def _admitted(self, delivery: Delivery, unless_resolved: Callable[[Delivery], Delivery]) -> Delivery:
        is_new = delivery.digest is not None and delivery.hold is None and len(delivery.addresses) == 1
        if not is_new or not may_be_held(delivery):
            return delivery
        target = _target(delivery)
        before = self[target]
        if before is None or (hold := self.hold(target, delivery.key)) is None:
            return delivery
        member = unless_resolved(held(delivery, hold, self._now))
        if member.state is not State.WAITING:
            self[target] = before  # it opens no digest
        return member

    def with_resolved_notices(self, notices: Iterable[Delivery]) -> list[Delivery]:
        """Return new resolved notices, with those held that resolve only what digests told of.

        They join the open digest, or open one. A notice goes out at once if a failure of its thread was sent singly.
        """
        return [self._with_notice(notice) for notice in notices]

    def _with_notice(self, notice: Delivery) -> Delivery:
        target = _target(notice)
        state = self[target]
        if state is None or len(notice.addresses) != 1 or not (told_in := _told_only_in(self._connection, notice)):
            return notice
        self[target] = state = state.opened(told_in, self._now)
        hold = state.hold
        return notice if hold is None else held(notice, hold, self._now)


def options_of(planned: Iterable[Delivery]) -> dict[Target, DigestOptions]:
    """Return the options of the contacts of new deliveries' addresses, which get digests."""
    return {_target(one): one.digest for one in planned if one.digest is not None and len(one.addresses) == 1}


def _target(delivery: Delivery) -> Target:
    return Target(delivery.channel, delivery.addresses[0] if delivery.addresses else "")


# -- threads that digests told of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def told_of(connection: Connection, open_since: Mapping[str, datetime]) -> set[Target]:
    """Return the addresses whose digests have told of failures, or may tell of them.

    `open_since`: the subjects of the failures, each with the time from which on its threads are open.
    """
    return {
        Target(row.channel, row.addresses[0])
        for subject, since in open_since.items()
        for row in connection.execute(_TOLD_OF, {"about": subject, "since": since})
        if row.addresses
    }


_DIGEST: ColumnElement[str] = literal_column(f"'{HoldReason.DIGEST}'")
_WAITING: ColumnElement[str] = literal_column(f"'{State.WAITING}'")
_TOLD_OF = (
    select(deliveries.c.channel, deliveries.c.addresses)
    .where(
        deliveries.c.subject == bindparam("about"),
        deliveries.c.thread_at >= bindparam("since"),
        or_(TOLD_OF, and_(deliveries.c.state == _WAITING, deliveries.c.hold == _DIGEST)),
        select(digests.c.channel).exists(),  # reads nothing else if no address has digests
    )
    .distinct()
)


def _told_only_in(connection: Connection, notice: Delivery) -> str:
    """Return the key of the last digest that told of what the notice resolves, or will tell; empty if there is none, or if
    a message told of it singly.
    """
    parameters: dict[str, Any] = {"in_thread": notice.thread}
    parameters["since"] = connection.scalar(_RESOLVED_AT, parameters) or _EPOCH
    if connection.scalar(_TOLD_SINGLY, parameters) is not None:
        return ""
    return connection.scalar(_TOLD_IN_DIGEST, parameters) or ""


_RESOLVED_AT = select(func.max(deliveries.c.thread_at)).where(
    deliveries.c.thread == bindparam("in_thread"),
    deliveries.c.kind == Kind.RESOLVED_NOTICE,
    or_(deliveries.c.state == State.SENT, deliveries.c.state == _WAITING, TOLD_OF),
)
_FAILURES = (
    deliveries.c.thread == bindparam("in_thread"),
    deliveries.c.kind != Kind.RESOLVED_NOTICE,
    deliveries.c.thread_at >= bindparam("since"),
)
_TOLD_SINGLY = (
    select(deliveries.c.key)
    .where(*_FAILURES, or_(MAY_HAVE_ARRIVED, and_(deliveries.c.state == _WAITING, deliveries.c.hold.is_(None))))
    .limit(1)
)
_message = deliveries.alias("message")
_TOLD_IN_DIGEST = (
    select(_message.c.key)
    .join(deliveries, deliveries.c.included_in == _message.c.key)
    .where(
        *(*_FAILURES, _message.c.kind == Kind.DIGEST),
        or_(_message.c.state.in_((State.SENT, State.WAITING)), _message.c.in_doubt),
    )
    .order_by(deliveries.c.thread_at.desc(), deliveries.c.key)
    .limit(1)
)


# -- rows

IS_MEMBER = (
    *(*IS_HELD, deliveries.c.hold == _DIGEST, deliveries.c.held_by == bindparam("digest")),
    deliveries.c.due_at == bindparam("at"),  # finds them by the index of held deliveries
)
"""SQL conditions: the delivery is a member of the open digest with the id `digest`, which closes `at`."""
_MEMBERS = select(deliveries.c.key).where(*IS_MEMBER).order_by(deliveries.c.key).with_for_update()
_MOVE = update(deliveries).where(among(deliveries.c.key, "members")).values(due_at=bindparam("until"))
_LOCK = (
    select(digests)
    .where(digests.c.channel == bindparam("of"), among(digests.c.address, "addresses"))
    .order_by(digests.c.address)
    .with_for_update()
)


def _row(state: DigestState) -> dict[str, Any]:
    after, within, every = state.options
    return {
        "channel": state.channel,
        "address": state.address,
        "recent": [[one.at.isoformat(), one.key] for one in state.recent],
        "opened_at": state.opened_at,
        "closes_at": state.closes_at,
        "postponed": state.postponed,
        "options": [after, within.total_seconds(), every.total_seconds()],
        "first_key": state.first_key,
    }


def _state(row: Row[Any]) -> DigestState:
    after, within, every = row.options
    return DigestState(
        channel=row.channel,
        address=row.address,
        options=DigestOptions(after, timedelta(seconds=within), timedelta(seconds=every)),
        recent=tuple(Recent(datetime.fromisoformat(at), key) for at, key in row.recent),
        opened_at=row.opened_at,
        closes_at=row.closes_at,
        postponed=row.postponed,
        first_key=row.first_key,
    )
