"""What operators do with silences, from commands, the console and its API. The ledger records each action (`Action`)."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from dispatcher.clock import Clock
from dispatcher.errors import DispatcherError
from dispatcher.holding.silences import Silence
from dispatcher.ledger import Action, Deed, Ledger
from dispatcher.model.hold import Then
from dispatcher.operations import MAX_REASON, Operator
from dispatcher.parsing.duration import Duration, duration_text
from dispatcher.rules.matcher_words import as_data, as_pairs, in_words
from dispatcher.rules.silences import SilenceBook, matcher_of, parse_matcher, test_of
from dispatcher.version import __version__

log = structlog.get_logger(__name__)

TRIED = timedelta(days=7)
"""A dry run looks at what was recorded within this time."""
LISTED = 500
"""At most this many silences are listed."""
RECIPIENTS = 100
"""At most this many recipients are named, those with most messages."""
AGO = timedelta(minutes=1)
"""A start that is at most this long ago means now: forms have no seconds."""
AHEAD = timedelta(days=365)
"""A silence begins at most this long from now."""


class SilenceRefused(DispatcherError):
    """A silence can't be added or changed like this; the message says why. `status`: the HTTP status for it."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class SilenceEnd(BaseModel):
    """When a silence ends: one of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    ends_at: Annotated[AwareDatetime | None, Field(description="The time at which it ends.")] = None
    lasts: Annotated[
        Duration | None,
        Field(
            alias="for",
            description="How long it lasts, such as `2h`; when it is extended, how much longer.",
            json_schema_extra={"type": "string"},
        ),
    ] = None
    reason: Annotated[str, Field(max_length=MAX_REASON, description="Why; kept with the silence.")] = ""

    def after(self, start: datetime) -> datetime:
        """Return the end. `start`: from when `lasts` counts. Raises SilenceRefused if the end is not given once."""
        if (self.ends_at is None) == (self.lasts is None):
            raise SilenceRefused("say either for how long, or until when: a silence needs an end")
        return self.ends_at if self.ends_at is not None else start + (self.lasts or timedelta())


class NewSilence(SilenceEnd):
    """A silence to add. It needs a matcher, an end and a reason."""

    reason: Annotated[str, Field(min_length=1, max_length=MAX_REASON, description="Why; for those who miss a message.")]
    match: Annotated[dict[str, Any], Field(description="A matcher, as routes have it.")]
    starts_at: Annotated[AwareDatetime | None, Field(description="When it begins; now if it is left out.")] = None
    then: Annotated[Then, Field(description="What becomes of what it holds, at its end.")] = Then.SUMMARY


@dataclass(frozen=True, slots=True)
class SilenceTrial:
    """What a silence would have held in the past."""

    since: datetime
    events: int
    messages: int
    recipients: Sequence[tuple[tuple[str, str], int]]
    """The channel and address of each, and how many messages; most messages first."""

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON data."""
        named = self.recipients[:RECIPIENTS]
        return {
            "since": self.since,
            "events": self.events,
            "messages": self.messages,
            "recipients": [{"channel": to[0], "address": to[1], "messages": number} for to, number in named],
            "recipients_left_out": len(self.recipients) - len(named),
        }


@dataclass(frozen=True, slots=True)
class SilenceOperations:
    """Adds, ends and extends silences. Raises Unavailable while the ledger can't be reached."""

    ledger: Ledger
    clock: Clock
    asks_flyte_admin: bool = True
    """True if intake asks FlyteAdmin for the facts that Flyte's events lack."""

    def checked(self, wanted: NewSilence, author: str) -> Silence:
        """Return the silence that the author wants. Raises SilenceRefused if there can't be such a silence."""
        now = self.clock.now()
        try:
            matcher = parse_matcher(wanted.match)
        except ValueError as error:
            raise SilenceRefused(f"match: {error}") from None
        if not wanted.reason.strip():
            raise SilenceRefused("reason: say why, for those who miss a message")
        starts_at = wanted.starts_at or now
        if starts_at < now - AGO or starts_at > now + AHEAD:
            raise SilenceRefused("a silence begins now or later, and within a year")
        starts_at = max(starts_at, now)
        ends_at = self._end(starts_at, wanted.after(starts_at), now)
        return Silence(
            id=secrets.token_hex(4),
            matcher=as_data(matcher),
            author=author,
            reason=wanted.reason.strip(),
            starts_at=starts_at,
            ends_at=ends_at,
            then=wanted.then,
            created_at=now,
            begun=False,
        )

    async def add(self, silence: Silence) -> None:
        """Add a silence, and hold what waits, if it begins now. Returns when that is done."""
        action = self._action(Deed.SILENCE, silence, Operator(silence.author, silence.reason))
        await self.ledger.silences.add(silence, action)
        log.info("silence added", id=silence.id, by=silence.author, until=silence.ends_at.isoformat())
        await self._follow(silence)

    async def end(self, silence: Silence, by: Operator) -> Silence:
        """End a silence now; one that has not begun never will. What it holds goes out, as its `then` says."""
        now = self.clock.now()
        self._require_not_ended(silence, now)
        return await self._move(silence, Deed.END_SILENCE, by, starts_at=min(silence.starts_at, now), ends_at=now)

    async def extend(self, silence: Silence, until: SilenceEnd, by: Operator) -> Silence:
        """Let a silence end later. What it holds is held until then."""
        now = self.clock.now()
        self._require_not_ended(silence, now)
        ends_at = self._end(silence.starts_at, until.after(silence.ends_at), now)
        if ends_at <= silence.ends_at:
            raise SilenceRefused(f"it ends at {silence.ends_at.isoformat()} already: to end it sooner, end it")
        return await self._move(silence, Deed.EXTEND_SILENCE, by, starts_at=silence.starts_at, ends_at=ends_at)

    async def find(self, id_starts: str) -> Silence:
        """Return the silence whose id begins so. Raises SilenceRefused if there is none, or more than one."""
        found = await self.ledger.silences.find(id_starts, limit=2) if id_starts else []
        if len(found) != 1:
            how_many = "more than one silence" if found else "no silence"
            raise SilenceRefused(f"{how_many} has an id that begins with {id_starts!r}", 404)
        return found[0]

    async def listed(self, *, ended: bool = False) -> list[dict[str, Any]]:
        """Return silences as JSON data, newest first, at most `LISTED`. `ended`: also those that have ended."""
        now, held = self.clock.now(), await self.ledger.silences.held()
        found = await self.ledger.silences.find(ended_after=None if ended else now, limit=LISTED)
        return [silence_data(one, now, held.get(one.id, 0)) for one in found]

    async def details(self, silence: Silence) -> dict[str, Any]:
        """Return a silence as JSON data, with those for whom it holds something now."""
        held = await self.ledger.silences.held_for(silence.id, limit=RECIPIENTS)
        number = (await self.ledger.silences.held()).get(silence.id, 0)
        recipients = [
            {"channel": channel, "address": ", ".join(addresses), "messages": messages}
            for channel, addresses, messages in held
        ]
        return {**silence_data(silence, self.clock.now(), number), "holds_for": recipients}

    async def trial(self, match: Mapping[str, Any]) -> SilenceTrial:
        """Return what a silence with this matcher would have held within the last `TRIED`."""
        since = self.clock.now() - TRIED
        book = SilenceBook(silences=[_only(match, since)])
        seen: dict[str, bool] = {}
        messages: Counter[tuple[str, str]] = Counter()
        async for event, channel, addresses in self.ledger.silences.might_hold(since=since):
            if event.key not in seen:
                seen[event.key] = bool(book.matching(event))
            if seen[event.key]:
                messages.update((channel, address) for address in addresses)
        most = sorted(messages.items(), key=lambda one: (-one[1], one[0]))
        return SilenceTrial(since, sum(seen.values()), messages.total(), most)

    async def warnings(self, match: Mapping[str, Any]) -> list[str]:
        """Return what may keep a silence with this matcher from holding what its author means."""
        matcher, now = parse_matcher(match), self.clock.now()
        found = [
            f"replica {one.name} runs version {one.version}, which may know no silences: it holds nothing of what it records"
            for one in await self.ledger.replicas.all()
            if one.seen(now) and _is_older(one.version)
        ]
        if lacking := sorted(matcher.keys_needing_admin()) if not self.asks_flyte_admin else []:
            found.append(
                f"many of Flyte's events do not say {' and '.join(lacking)}, so the silence does not hold their messages: "
                "configure rules.flyte_admin"
            )
        return found

    def _end(self, starts_at: datetime, ends_at: datetime, now: datetime) -> datetime:
        """Return the end. Raises SilenceRefused if it is not possible."""
        longest = self.ledger.silences.longest_hold
        if ends_at <= max(starts_at, now):
            raise SilenceRefused("the end has to be later than now, and than the start")
        if ends_at - starts_at > longest:
            raise SilenceRefused(f"a silence lasts at most {duration_text(longest)} (holds.longest)")
        return ends_at

    def _require_not_ended(self, silence: Silence, now: datetime) -> None:
        if silence.ends_at <= now:
            raise SilenceRefused(f"silence {silence.id} has ended already: add a new one", 409)

    async def _move(
        self, silence: Silence, what: Deed, by: Operator, *, starts_at: datetime, ends_at: datetime
    ) -> Silence:
        action = self._action(what, silence, by)
        moved = await self.ledger.silences.move(silence, action, starts_at=starts_at, ends_at=ends_at)
        if moved is None:
            raise SilenceRefused(f"somebody has changed silence {silence.id} just now: look at it again", 409)
        log.info(what.done, id=silence.id, by=by.name, until=ends_at.isoformat())
        await self._follow(moved)
        return moved

    async def _follow(self, silence: Silence) -> None:
        await self.ledger.silences.follow(silence, test_of(silence), now=self.clock.now())

    def _action(self, what: Deed, silence: Silence, by: Operator) -> Action:
        scope = f"silence {silence.id}: {', '.join(as_pairs(silence.matcher))}"
        return Action(at=self.clock.now(), who=by.name, what=what, scope=scope, why=by.reason)


def silence_data(silence: Silence, now: datetime, held: int) -> dict[str, Any]:
    """Return a silence as JSON data. `held`: how many deliveries it holds now."""
    matcher = matcher_of(silence)
    return {
        "id": silence.id,
        "state": "planned" if now < silence.starts_at else "in force" if silence.in_force(now) else "ended",
        "match": silence.matcher,
        "matches": in_words(matcher) if matcher is not None else ", ".join(as_pairs(silence.matcher)),
        "author": silence.author,
        "reason": silence.reason,
        "starts_at": silence.starts_at,
        "ends_at": silence.ends_at,
        "then": silence.then,
        "created_at": silence.created_at,
        "holds": held,
    }


def _only(match: Mapping[str, Any], at: datetime) -> Silence:
    """Return a silence for a dry run, of which only the matcher counts."""
    return Silence(
        id="", matcher=match, author="", reason="", starts_at=at, ends_at=at, then=Then.SUMMARY, created_at=at
    )


def _is_older(version: str) -> bool:
    """True if a replica's version is older than this one, or can't be compared with it."""
    ours, theirs = __version__.split("."), version.split(".")
    if not all(part.isdecimal() for part in (*ours, *theirs)):
        return version != __version__
    return [int(part) for part in theirs] < [int(part) for part in ours]
