"""What may be asked for, in the console's addresses and in the API's alike."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dispatcher.ledger import DeliveryFilter, EventFilter
from dispatcher.ledger.search import Cursor
from dispatcher.model.delivery import State
from dispatcher.parsing.duration import parse_moment

LONGEST_PAGE = 500


_Said = Annotated[str, Field(min_length=1, max_length=800, pattern=r"^[^\x00-\x1f\x7f]+$")]
Moment = Annotated[
    str,
    Field(
        min_length=1,
        max_length=40,
        description="A span of time ago (`30m`, `24h`, `7d`), or a time (`2026-11-20T09:00Z`).",
        examples=["24h", "2026-11-20T09:00:00Z"],
    ),
]


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class About(_Asked):
    """Which deliveries are meant; everything given must hold."""

    channel: Annotated[_Said | None, Field(description="`email`, `slack`, …")] = None
    recipient: Annotated[
        _Said | None, Field(description="Whole, as a rule names it; the case of ASCII letters doesn't count.")
    ] = None
    launch_plan: Annotated[_Said | None, Field(description="Its name.")] = None
    execution: Annotated[_Said | None, Field(description="`project/domain/name`, or a name alone.")] = None
    since: Moment | None = None
    until: Moment | None = None

    def filter(self, *, now: datetime, states: frozenset[State] = frozenset()) -> DeliveryFilter:
        """Raises ValueError for a moment that can't be read."""
        return DeliveryFilter(
            states=states,
            channel=self.channel,
            recipient=self.recipient,
            launch_plan=self.launch_plan,
            execution=self.execution,
            since=_moment(self.since, now),
            until=_moment(self.until, now),
        )


class Paged(_Asked):
    """A page of a list, newest first."""

    after: Annotated[str | None, Field(max_length=1200, description="`next` of the page before.")] = None
    limit: Annotated[int, Field(ge=1, le=LONGEST_PAGE, description="Entries at most.")] = 50

    @property
    def cursor(self) -> Cursor | None:
        """Raises ValueError for what is no cursor."""
        return Cursor.parse(self.after) if self.after is not None else None


class DeliverySearch(About, Paged):
    """A search for deliveries."""

    state: Annotated[list[State], Field(description="May be given again.")] = []

    def wanted(self, *, now: datetime) -> DeliveryFilter:
        return self.filter(now=now, states=frozenset(self.state))


class ExecutionSearch(Paged):
    """A search for executions' ends."""

    execution: Annotated[_Said | None, Field(description="`project/domain/name`, or a name alone.")] = None
    launch_plan: _Said | None = None
    project: _Said | None = None
    domain: _Said | None = None
    phase: Literal["SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"] | None = None
    verdict: Literal["matched", "no_matching_rule", "disabled"] | None = None
    since: Moment | None = None
    until: Moment | None = None

    def wanted(self, *, now: datetime) -> EventFilter:
        """Raises ValueError for a moment that can't be read."""
        return EventFilter(
            execution=self.execution,
            launch_plan=self.launch_plan,
            project=self.project,
            domain=self.domain,
            phase=self.phase,
            verdict=self.verdict,
            since=_moment(self.since, now),
            until=_moment(self.until, now),
        )


class RejectedSearch(Paged):
    """A search for rejected messages."""

    replayed: Annotated[bool | None, Field(description="Only those that were replayed, or were not.")] = None


def _moment(text: str | None, now: datetime) -> datetime | None:
    return parse_moment(text, now=now) if text is not None else None
