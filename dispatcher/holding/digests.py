"""The digests of one address: which messages go out at once, which wait for a digest, and when a digest closes.

A burst begins with messages that go out at once. When too many came within a short time, a digest opens, and what
follows are its members. When it closes, the next one opens at once. The burst is over when one closes without members.
`ledger/digests.py` has the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from dispatcher.holding.covering import held
from dispatcher.holding.release import Released
from dispatcher.model.delivery import Delivery, State, delivery_key
from dispatcher.model.hold import DigestOptions, Hold, HoldReason, Then

_STEP = timedelta(microseconds=1)


class Recent(NamedTuple):
    """A message that went out at once."""

    at: datetime
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestState:
    """The state of one address on one channel."""

    channel: str
    address: str
    options: DigestOptions
    recent: tuple[Recent, ...] = ()
    """The messages that went out at once within `options.within`, oldest first, at most `options.after`."""
    opened_at: datetime | None = None
    """When the newest digest opened; None if there was none. No two digests of an address have the same time."""
    closes_at: datetime | None = None
    """When the open digest closes; None if none is open."""
    postponed: bool = False
    """True if quiet hours hold the open digest."""
    first_key: str = ""
    """The key of the message with which the burst began; empty if no digest is open."""

    @property
    def open_id(self) -> str:
        """The id of the open digest, which becomes the key of its delivery; empty if none is open."""
        if self.closes_at is None or self.opened_at is None:
            return ""
        opened = self.opened_at.astimezone(UTC).isoformat()
        return delivery_key("", f"digest {self.channel}", (self.address, opened))

    @property
    def hold(self) -> Hold | None:
        """The hold of the open digest's members; None if none is open."""
        if self.closes_at is None:
            return None
        return Hold(HoldReason.DIGEST, self.open_id, self.closes_at, Then.SUMMARY)

    def holds(self, now: datetime) -> Hold | None:
        """Return the hold of a message that no quiet hours hold now; None if it goes out at once.

        So a critical message does not wait with a digest that quiet hours hold.
        """
        return None if self._is_quiet(now) else self.hold

    def _is_quiet(self, now: datetime) -> bool:
        """True if a digest is open that quiet hours hold."""
        return self.closes_at is not None and self.postponed and now < self.closes_at

    def with_options(self, options: DigestOptions) -> DigestState:
        """Return the state with other options. The open digest closes when it would have."""
        return replace(self, options=options)

    def admit(self, key: str, now: datetime) -> DigestState:
        """Return the state after a message. Then `holds` says whether it is a member of a digest.

        If many messages pass the quiet hours that hold the open digest, these hold it no longer: it tells of the rest.
        """
        if self.closes_at is not None and not self._is_quiet(now):
            return self
        recent = tuple(one for one in self.recent if one.at > now - self.options.within)
        if len(recent) < self.options.after:
            return replace(self, recent=(*recent, Recent(now, key)))
        if self.closes_at is not None:
            return replace(self, recent=(), closes_at=min(self.closes_at, now + self.options.every), postponed=False)
        return replace(self, recent=recent).opened(key, now)

    def opened(self, key: str, now: datetime) -> DigestState:
        """Return the state with an open digest: the one that is open, or a new one.

        `key`: the message to which a new one replies, if nothing went out at once.
        """
        if self.closes_at is not None:
            return self
        first_key = self.recent[0].key if self.recent else key
        return _with_next(replace(self, recent=(), first_key=first_key), now)

    def postpone(self, until: datetime) -> DigestState:
        """Return the state with the open digest's end moved to `until`, because quiet hours hold it until then."""
        return replace(self, closes_at=until, postponed=True)

    def closed(self, now: datetime, *, members: int) -> DigestState:
        """Return the state after the open digest has closed: the next one is open, or the burst is over."""
        return (
            _with_next(self, now)
            if members
            else replace(self, recent=(), closes_at=None, postponed=False, first_key="")
        )


def _with_next(state: DigestState, now: datetime) -> DigestState:
    # A clock that was set back must not give a digest the id of an earlier one.
    opened_at = now if state.opened_at is None else max(now, state.opened_at + _STEP)
    return replace(state, opened_at=opened_at, closes_at=now + state.options.every, postponed=False)


def through_digest(
    released: Released, join: Callable[[Delivery], Hold | None], *, now: datetime, longest: timedelta
) -> None:
    """Pass what other holds release through the digests of its address, as if it were new. Changes `released`.

    If a summary would be a member, what it would tell of are members in its place. `longest`: what a digest would hold for
    longer in all goes out.

    `join`: counts a message, and returns its hold if it is a member of a digest; None if it goes out.
    """

    def may_wait(delivery: Delivery, hold: Hold) -> bool:
        return hold.until <= (delivery.held_since or now) + longest

    going, released.going = released.going, []
    for one in going:
        hold = join(one)
        if hold is not None and may_wait(one, hold):
            released.held.append(held(one, hold, now))
        else:
            released.going.append(one)
    summary = released.summary
    if summary is None or (hold := join(summary)) is None:
        return
    told = [one for one in released.dropped if one.included_in == summary.key]
    if all(may_wait(one, hold) for one in told):
        released.held += [held(_untold(one), hold, now) for one in told]
        released.dropped = [one for one in released.dropped if one.included_in != summary.key]
        released.summary = None


def _untold(delivery: Delivery) -> Delivery:
    return delivery._replace(state=State.WAITING, drop_reason=None, reason="", included_in="")
