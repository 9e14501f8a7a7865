"""A model of holding back: what becomes of each message, and when. Pure, in memory, and one message after another.

It knows one message for each event and address. Of the dispatcher's code it uses only names of values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from dispatcher.model.hold import DigestOptions, Then

STEP = timedelta(minutes=5)
"""Late comers of a silence gather for this long. For silences, an event that is further in the future is one of now."""
AHEAD = timedelta(minutes=1)
"""In threads, what is further in the future is of now."""
EVER, NEVER = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
FAILURE, SUCCESS, RESOLVED, SUMMARY, DIGEST = "failure", "success", "resolved", "summary", "digest"


def possible(at: datetime, now: datetime) -> datetime:
    return at if at <= now + AHEAD else now


class Place(NamedTuple):
    """An address on a channel."""

    channel: str
    address: str
    threads: bool = True
    """True if the messages about a launch plan form a thread."""
    pages: bool = False


class Ending(NamedTuple):
    """One hold of a message."""

    until: datetime
    what: str
    by: str
    then: Then | None


@dataclass
class Silenced:
    """A silence of the events of one launch plan, or of all if the name is empty."""

    name: str
    plan: str
    start: datetime
    end: datetime
    then: Then

    def in_force(self, at: datetime) -> bool:
        return self.start <= at < self.end


@dataclass(eq=False)
class Told:
    """One message."""

    kind: str
    place: Place
    due: datetime
    """The end of its hold, if it is held."""
    event: str = ""
    plan: str = ""
    occurred: datetime = NEVER
    at: datetime = NEVER
    """Its place in its thread."""
    state: str = "waiting"
    why: str = ""
    hold: str = ""
    by: str = ""
    then: Then | None = None
    since: datetime | None = None
    teller: Told | None = None
    """The message that tells of this one."""
    created: datetime = field(init=False)
    dropped_at: datetime | None = None
    """When it was superseded."""

    @property
    def held(self) -> bool:
        return self.state == "waiting" and bool(self.hold)

    @property
    def goes(self) -> bool:
        return self.state == "waiting" and not self.hold

    @property
    def in_thread(self) -> bool:
        return self.place.threads and self.kind in {FAILURE, RESOLVED}

    @property
    def known(self) -> bool:
        """True if it was sent, or another message tells of it."""
        return self.state == "sent" or self.teller is not None

    @property
    def order(self) -> tuple[datetime, bool]:
        return self.at if self.in_thread else self.occurred, self.kind != RESOLVED

    def ended(self, now: datetime) -> datetime:
        """When the execution ended, as far as that is possible."""
        return self.at if self.place.threads else possible(self.occurred, now)

    def __post_init__(self) -> None:
        self.created = self.due

    def drop(self, why: str, teller: Told | None = None, at: datetime | None = None) -> None:
        self.state, self.why, self.teller, self.dropped_at = "dropped", why, teller, at

    def go(self, now: datetime) -> None:
        self.hold, self.by, self.then, self.due = "", "", None, now


@dataclass(eq=False)
class Burst:
    """The messages of one place that may be included in digests."""

    options: DigestOptions
    at_once: list[datetime] = field(default_factory=list)
    closes: datetime | None = None
    opened: int = 0
    """How many digests have opened."""
    quiet: bool = False
    """True if quiet hours hold the open digest."""

    def open(self, now: datetime) -> None:
        self.opened, self.at_once, self.closes, self.quiet = self.opened + 1, [], now + self.options.every, False


@dataclass(eq=False)
class Model:
    """All messages, as they are at `now`."""

    now: datetime
    longest: timedelta
    quiet: Callable[[Told], Ending | None]
    """The quiet hours that hold a message now."""
    digests: Callable[[Place], DigestOptions | None]
    """The digests that the place's contact has now."""
    messages: list[Told] = field(default_factory=list)
    silences: list[Silenced] = field(default_factory=list)
    bursts: dict[Place, Burst] = field(default_factory=dict)
    well_since: dict[str, datetime] = field(default_factory=dict)
    open_since: dict[str, datetime] = field(default_factory=dict)

    # -- events

    def has_digests(self, place: Place) -> bool:
        """Note which digests the place's contact has now, before a message. Returns True if it has any."""
        digest = self.digests(place)
        if digest is not None:
            self.bursts.setdefault(place, Burst(digest)).options = digest
        return digest is not None

    def record(self, one: Told) -> None:
        """Record a failure, or a success that somebody is told of."""
        self.messages.append(one)
        if not self._hold(one, [*self._covers(one), *self._quiet(one)]) and self.has_digests(one.place):
            self._join(one)
        if one.kind == FAILURE and one.place.threads and one.state == "waiting":
            self.open_since[one.plan] = min(one.at, self.open_since.get(one.plan, one.at))

    def succeed(self, event: str, plan: str, occurred: datetime, started: datetime) -> list[Place]:
        """Record a success. Returns the places that get a resolved notice."""
        started = possible(started, self.now)
        for one in self.messages:
            if one.held and one.kind == FAILURE and one.plan == plan and one.ended(one.since or self.now) < started:
                one.drop("superseded", at=self.now)
        self.well_since[plan] = max(started, self.well_since.get(plan, started))
        since = self.open_since.get(plan)
        threads: dict[Place, list[Told]] = {}
        for one in sorted(self.messages, key=lambda one: one.order):
            alive = one.in_thread and one.plan == plan and (one.state == "waiting" or one.known)
            if alive and since is not None and one.at >= since:
                threads.setdefault(one.place, []).append(one)
        unresolved = {place: thread for place, thread in threads.items() if thread[-1].kind != RESOLVED}
        ended = [
            place
            for place, thread in unresolved.items()
            if thread[-1].at < started and any(one.goes or one.known for one in thread)
        ]
        if len(ended) == len(unresolved):
            self.open_since.pop(plan, None)
        for place in ended:
            notice = Told(RESOLVED, place, self.now, event, plan, occurred, started)
            if place in self.bursts and self._told_only_in_digests(notice):
                self._join(notice)
            self.messages.append(notice)
        return ended

    def _told_only_in_digests(self, notice: Told) -> bool:
        thread = [
            one for one in self.messages if one.in_thread and one.place == notice.place and one.plan == notice.plan
        ]
        resolved = [one.at for one in thread if one.kind == RESOLVED and (one.state == "waiting" or one.known)]
        failures = [one for one in thread if one.kind == FAILURE and one.at >= max(resolved, default=one.at)]
        singly = any(one.state == "sent" or one.goes for one in failures)
        return not singly and any(
            one.teller is not None and one.teller.kind == DIGEST and one.teller.state in {"sent", "waiting"}
            for one in failures
        )

    # -- holds

    def _covers(self, one: Told) -> Iterator[Ending]:
        """The silences that cover a message which may be held."""
        for silence in self.silences:
            occurred = one.occurred if one.occurred <= self.now + STEP else self.now
            within = silence.in_force(occurred)
            if silence.plan in {"", one.plan} and (within or silence.in_force(self.now)):
                late = max((self.now - silence.end) // STEP + 1, 0)
                then = silence.then if within or silence.then is not Then.DROP else None
                yield Ending(silence.end + late * STEP, "silence", silence.name, then)

    def _quiet(self, one: Told) -> Iterator[Ending]:
        if (quiet := self.quiet(one)) is not None:
            yield quiet

    def _hold(self, one: Told, holds: list[Ending], then: Then | None = None) -> bool:
        """Hold a message until the last of the holds ends. Returns False if it is not held."""
        if not holds:
            return False
        last = max(holds, key=lambda hold: hold.until)
        one.since = one.since or self.now
        one.due = min(last.until, one.since + self.longest)
        telling = {hold.then for hold in holds} | {then}
        one.then = next((each for each in (Then.SEND, Then.SUMMARY, Then.DROP) if each in telling), Then.SEND)
        one.hold, one.by = last.what, last.by
        self._unless_resolved(one)
        return True

    def _unless_resolved(self, one: Told) -> bool:
        well = self.well_since.get(one.plan)
        if one.kind == FAILURE and well is not None and well > one.ended(self.now):
            one.drop("superseded", at=self.now)
        return one.state == "dropped"

    def _join(self, one: Told) -> None:
        """Pass a message through the digests of its place: it goes at once, or is a member."""
        burst = self.bursts[one.place]
        recent = [at for at in burst.at_once if at > self.now - burst.options.within]
        passes = burst.quiet and burst.closes is not None and self.now < burst.closes and one.kind != RESOLVED
        if one.kind != RESOLVED and (burst.closes is None or passes) and len(recent) < burst.options.after:
            burst.at_once = [*recent, self.now]
            return
        one.hold, one.then, one.since = "digest", Then.SUMMARY, one.since or self.now
        closes = burst.closes
        if closes is not None and passes:  # no quiet hours hold the message itself, and it is one of many
            closes = min(closes, self.now + burst.options.every)
        if self._unless_resolved(one):
            if closes is not None:
                one.by, one.due = str(burst.opened), closes
            return
        if closes != burst.closes:
            burst.closes, burst.at_once, burst.quiet = closes, [], False
            for member in self.messages:
                if member.held and member.hold == "digest" and member.place == one.place and member is not one:
                    assert closes is not None
                    member.due = closes
        if burst.closes is None:
            burst.open(self.now)
        assert burst.closes is not None
        one.by, one.due = str(burst.opened), burst.closes
        if one.due > one.since + self.longest:
            one.go(self.now)

    # -- silences begin, and are changed

    def begin(self, silence: Silenced) -> None:
        """Hold what waits already."""
        if not silence.in_force(self.now):
            return
        for one in self.messages:
            mine = [hold for hold in self._covers(one) if hold.by == silence.name]
            held = one.hold in {"silence", "window"}
            if one.state != "waiting" or one.kind not in {FAILURE, SUCCESS} or not mine:
                continue
            too_long = one.since is not None and one.since + self.longest <= self.now
            if too_long or (not held and mine[0].until <= one.due):
                continue
            now = [Ending(one.due, one.hold, one.by, one.then)] if held else []
            self._hold(one, [*now, *mine], one.then if held else None)

    def end(self, silence: Silenced) -> None:
        """End a silence now."""
        silence.start, silence.end = min(silence.start, self.now), self.now
        for one in self.messages:
            came_late = one.since is not None and self.now < one.since and one.due <= self.now + STEP
            if one.held and one.by == silence.name and one.due > self.now and not came_late:
                one.due = self.now

    # -- holds end

    def release(self) -> None:
        """Release what a silence or quiet hours have held until now, then close the digests that are due."""
        due = [one for one in self.messages if one.held and one.hold != "digest" and one.due <= self.now]
        for place in dict.fromkeys(one.place for one in due):
            self._release(place, sorted((one for one in due if one.place == place), key=lambda one: one.order))
        for place, burst in self.bursts.items():
            if burst.closes is not None and burst.closes <= self.now:
                self._close(place, burst)

    def _release(self, place: Place, due: list[Told]) -> None:
        going, gathered, joins = list[Told](), list[Told](), self.has_digests(place)
        for one in due:
            in_force = {silence.name for silence in self.silences if silence.in_force(self.now)}
            holds = [*(hold for hold in self._covers(one) if hold.by in in_force), *self._quiet(one)]
            assert one.since is not None
            if holds and one.since + self.longest > self.now:
                self._hold(one, holds, one.then)
            elif not holds and one.then is Then.SUMMARY:
                gathered.append(one)
            elif not holds and one.then is Then.DROP:
                one.drop(one.hold)
            elif holds:
                one.go(self.now)
            else:
                going.append(one)
        newest = {one.plan: one for one in gathered if one.kind == FAILURE} if place.pages else {}
        if len(gathered) == 1 or place.pages:
            still_fails = gathered if len(gathered) == 1 else [*newest.values()]
            going += still_fails
            for one in gathered:
                if one not in still_fails:
                    one.drop(one.hold, newest.get(one.plan) if one.kind == FAILURE else None)
            gathered = []
        for one in sorted(going, key=lambda one: one.order):
            one.go(self.now)
            if joins:
                self._join(one)
        if gathered:
            self._summarize(place, gathered)

    def _summarize(self, place: Place, gathered: list[Told]) -> None:
        summary = Told(SUMMARY, place, self.now, since=min(one.since or self.now for one in gathered))
        if self.has_digests(place):
            self._join(summary)
        for one in gathered:
            if summary.hold:
                one.hold, one.by, one.due, one.then = summary.hold, summary.by, summary.due, summary.then
            else:
                one.drop(one.hold, summary)
        if not summary.hold:
            self.messages.append(summary)

    def _close(self, place: Place, burst: Burst) -> None:
        members = [one for one in self.messages if one.held and one.hold == "digest" and one.place == place]
        digest = Told(DIGEST, place, self.now)
        if not members:
            burst.closes, burst.at_once, burst.quiet = None, [], False
            return
        latest = min(one.since or self.now for one in members) + self.longest
        until = min([latest, *(hold.until for hold in self._quiet(digest))]) if self.quiet(digest) else self.now
        if until > self.now:
            burst.closes, burst.quiet = until, True
            for one in members:
                one.due = until
            return
        burst.open(self.now)
        if len(members) == 1:
            members[0].go(self.now)
            return
        self.messages.append(digest)
        digest.by = members[0].by
        for one in members:
            one.drop("digest", digest)

    # -- sending, and operators

    def deliver(self, refused: frozenset[Place]) -> None:
        """Send what is due, each thread in its order. At the refused places, every message of one event is dead."""
        blocked = set[tuple[Place, str]]()
        for one in sorted((one for one in self.messages if one.goes), key=lambda one: one.order):
            if (one.place, one.plan) in blocked and one.in_thread:
                continue
            if one.due > self.now:
                blocked.add((one.place, one.plan) if one.in_thread else (one.place, ""))
            elif not self._misleads(one):
                one.state = "dead" if one.place in refused and one.event else "sent"

    def _misleads(self, one: Told) -> bool:
        """Drop a message that is outdated, or resolves nothing of which anybody was told."""
        if one.kind == FAILURE and one.place.pages and self.well_since.get(one.plan, one.at) > one.at:
            one.drop("superseded", at=self.now)
        if one.kind == RESOLVED:
            thread = [other for other in self.messages if other.place == one.place and other.plan == one.plan]
            failures = sorted((other for other in thread if other.kind == FAILURE), key=lambda other: other.order)
            last = [other.at for other in thread if other.kind == RESOLVED and other.known and other.at <= one.at]
            resolved = [other for other in failures if max(last, default=other.at) <= other.at <= one.at]
            told = [other.teller for other in resolved if other.teller is not None]
            told_by_another = bool(told) and not told[-1].event and told[-1].state in {"sent", "waiting"}
            if not any(other.state == "sent" for other in resolved) and not told_by_another:
                one.drop("nothing_sent")
            elif any(other.known and other.at >= one.at for other in failures):
                one.drop("superseded", at=self.now)
        return one.state == "dropped"

    def redrive(self) -> None:
        """Make what is dead due again."""
        for one in self.messages:
            if one.state == "dead":
                one.state, one.due = "waiting", self.now

    def retry_now(self, place: Place) -> None:
        """Send what waits at a place, whatever holds it."""
        for one in self.messages:
            if one.state == "waiting" and one.place == place:
                one.go(self.now)

    def cancel(self, place: Place) -> None:
        """Drop what waits at a place."""
        for one in self.messages:
            if one.state == "waiting" and one.place == place:
                one.drop("cancelled")

    def counts(self, teller: Told) -> tuple[int, int]:
        """How many messages a digest or a summary tells of, and how many failures were resolved before it."""
        return sum(one.teller is teller for one in self.messages), len(self.resolved(teller))

    def resolved(self, teller: Told) -> list[Told]:
        """The failures that were resolved while the last of what held the members held them, too."""
        members = [one for one in self.messages if one.teller is teller]
        last = max(members, key=lambda one: (one.due, one.since))
        held = [one for one in self.messages if one.dropped_at is not None and one.place == teller.place]
        held = [one for one in held if (one.hold, one.by) == (last.hold, last.by) and one.created <= teller.created]
        if last.hold == "window":  # an earlier night has the same name
            since = min(one.since for one in members if one.since is not None)
            return [one for one in held if one.due > since]
        if last.hold == "silence":  # an earlier summary counted those that did not come late
            told = {one.teller for one in self.messages if one.teller is not None and one.by == last.by}
            earlier = [one.created for one in told if one.kind == SUMMARY and one.place == teller.place]
            earlier = [at for at in earlier if at < teller.created]
            return [one for one in held if one.dropped_at is not None and one.dropped_at > max(earlier, default=EVER)]
        return held
