"""Query parameters of the searches in the console and the API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dispatcher.ledger import DeliveryFilter, EventFilter
from dispatcher.ledger.records import Cursor
from dispatcher.model.delivery import State
from dispatcher.parsing.duration import parse_time

MAX_PAGE_SIZE = 500


_Text = Annotated[str, Field(min_length=1, max_length=800, pattern=r"^[^\x00-\x1f\x7f]+$")]
_LaunchPlan = Annotated[
    str,
    Field(
        min_length=1,
        max_length=3000,
        pattern=r"^[^\x00]+$",
        description="Name of the launch plan. A name of more than 255 characters may also be given as the list shows it.",
    ),
]
TimeArgument = Annotated[
    str,
    Field(
        min_length=1,
        max_length=40,
        description="A duration before now (`30m`, `24h`, `7d`), or a timestamp (`2026-11-20T09:00Z`).",
        examples=["24h", "2026-11-20T09:00:00Z"],
    ),
]


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeliveryCriteria(_Parameters):
    """Selects deliveries that meet all given conditions."""

    channel: Annotated[_Text | None, Field(description="`email`, `slack`, …")] = None
    recipient: Annotated[
        _Text | None,
        Field(
            description="The whole recipient, as the rule or the channel writes it; ASCII letters match in either case."
        ),
    ] = None
    launch_plan: _LaunchPlan | None = None
    execution: Annotated[_Text | None, Field(description="`project/domain/name`, or only the name.")] = None
    since: TimeArgument | None = None
    until: TimeArgument | None = None

    def filter(self, *, now: datetime, states: frozenset[State] = frozenset()) -> DeliveryFilter:
        """Return the filter for the ledger's query. Raises ValueError if `since` or `until` is not a valid time."""
        return DeliveryFilter(
            states=states,
            channel=self.channel,
            recipient=self.recipient,
            launch_plan=self.launch_plan,
            execution=self.execution,
            since=_parse_time(self.since, now),
            until=_parse_time(self.until, now),
        )


class PageParameters(_Parameters):
    """Selects one page of a list, in which the newest entries come first."""

    after: Annotated[str | None, Field(max_length=1200, description="`next` of the previous page.")] = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE, description="Maximum number of entries.")] = 50

    @property
    def cursor(self) -> Cursor | None:
        """The cursor in `after`; None if `after` is not given. Raises ValueError if `after` is not a valid cursor."""
        return Cursor.parse(self.after) if self.after is not None else None


class DeliverySearch(DeliveryCriteria, PageParameters):
    """Parameters of a search for deliveries."""

    state: Annotated[list[State], Field(description="May be repeated to match several states.")] = []

    def wanted(self, *, now: datetime) -> DeliveryFilter:
        """Return the filter for the ledger's query. Raises ValueError if `since` or `until` is not a valid time."""
        return self.filter(now=now, states=frozenset(self.state))


class ExecutionSearch(PageParameters):
    """Parameters of a search for terminal events."""

    execution: Annotated[_Text | None, Field(description="`project/domain/name`, or only the name.")] = None
    launch_plan: _LaunchPlan | None = None
    project: _Text | None = None
    domain: _Text | None = None
    phase: Literal["SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"] | None = None
    verdict: Literal["matched", "no_matching_rule", "disabled"] | None = None
    since: TimeArgument | None = None
    until: TimeArgument | None = None

    def wanted(self, *, now: datetime) -> EventFilter:
        """Return the filter for the ledger's query. Raises ValueError if `since` or `until` is not a valid time."""
        return EventFilter(
            execution=self.execution,
            launch_plan=self.launch_plan,
            project=self.project,
            domain=self.domain,
            phase=self.phase,
            verdict=self.verdict,
            since=_parse_time(self.since, now),
            until=_parse_time(self.until, now),
        )


class RejectedSearch(PageParameters):
    """Parameters of a search for rejected messages."""

    replayed: Annotated[
        bool | None,
        Field(description="true selects only replayed messages, false only messages that were not replayed."),
    ] = None


def _parse_time(text: str | None, now: datetime) -> datetime | None:
    return parse_time(text, now=now) if text is not None else None
