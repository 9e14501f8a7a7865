"""The filters of every search, as text: one definition for commands, the console and the API.

A mistake in a filter is a ValidationError or a ValueError whose message is a sentence for the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError

from dispatcher.ledger import Filter, Ledger
from dispatcher.ledger.records import Cursor
from dispatcher.model.delivery import State
from dispatcher.model.event import EntityId
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.parsing.duration import parse_time
from dispatcher.parsing.nearest import no_such
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.planning.contacts import Contacts
from dispatcher.rules import Route, RouteBook, Verdict

MAX_PAGE_SIZE = 500
PHASES = (Phase.FAILED, Phase.TIMED_OUT, Phase.ABORTED, Phase.SUCCEEDED)
"""The phases about which a launch plan's rules are asked, in the order in which they are shown."""


def _one_of(what: str, values: Iterable[str]) -> BeforeValidator:
    """Return a validator for one of these values. It also accepts them in another case, and with spaces or hyphens."""
    known = {value.lower(): value for value in values}

    def read(given: Any) -> Any:
        if not isinstance(given, str):
            return given
        value = known.get(given.strip().lower().replace(" ", "_").replace("-", "_"))
        if value is None:
            raise ValueError(no_such(what, given, known.values()))
        return value

    return BeforeValidator(read)


def _execution(text: str) -> str:
    """Return the text of an execution. Raises ValueError if it has neither one part nor three."""
    if text.count("/") not in {0, 2} or not all(text.split("/")):
        raise ValueError(f"an execution is project/domain/name, or only its name, not {text!r}")
    return text


def _cause(text: str) -> str:
    """Return the text of a fingerprint. Raises ValueError for anything else, such as a cause's name."""
    if not re.fullmatch(r"v\d+:[0-9a-f]{16}", text):
        raise ValueError(f"a cause is given by its fingerprint, such as v1:5f0c2a9d81e4b637, not by {text!r}")
    return text


def _true_or_false(given: Any) -> Any:
    """Return the truth value that a text names, as a query has it. Raises ValueError if it names none."""
    if not isinstance(given, str):
        return given
    if (value := {"true": True, "false": False}.get(given.lower())) is None:
        raise ValueError(f"must be true or false, not {given!r}")
    return value


_State = Annotated[State, _one_of("state", State)]
_Phase = Annotated[Literal["SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"], _one_of("terminal phase", sorted(TERMINAL))]
_Verdict = Annotated[
    Literal["matched", "no_matching_rule", "resolved", "disabled", "rules_unknown"],
    _one_of("verdict", [verdict for verdict in Verdict if verdict.recordable]),
]


_Text = Annotated[str, Field(min_length=1, max_length=800, pattern=r"^[^\x00-\x1f\x7f]+$")]
_Execution = Annotated[_Text, AfterValidator(_execution)]
_Cause = Annotated[_Text, AfterValidator(_cause)]
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


class Criteria(_Parameters):
    """Selects deliveries, or executions' terminal events, that meet all given conditions (`Filter`)."""

    channel: Annotated[_Text | None, Field(description="`email`, `slack`, …")] = None
    recipient: Annotated[
        _Text | None,
        Field(
            description="The whole recipient, as the rule or the channel writes it; ASCII letters match in either case."
        ),
    ] = None
    launch_plan: _LaunchPlan | None = None
    project: _Text | None = None
    domain: _Text | None = None
    phase: _Phase | None = None
    verdict: _Verdict | None = None
    cause: Annotated[_Cause | None, Field(description="The fingerprint of the executions' cause.")] = None
    execution: Annotated[_Execution | None, Field(description="`project/domain/name`, or only the name.")] = None
    included_in: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9a-f]{1,32}$",
            description="The key of a digest or summary, or its beginning: what it tells of.",
        ),
    ] = None
    held: Annotated[
        StrictBool | None,
        BeforeValidator(_true_or_false),
        Field(description="true selects what a silence, quiet hours or a digest hold now, false the rest."),
    ] = None
    held_by: Annotated[
        _Text | None,
        Field(description="What holds it, or held it when it was dropped: a silence's id, or `contact ml-team`."),
    ] = None
    since: TimeArgument | None = None
    until: TimeArgument | None = None

    def wanted(self, *, now: datetime, states: frozenset[State] = frozenset()) -> Filter:
        """Return the filter for the ledger's queries. Raises ValueError if `since` or `until` is not a valid time."""
        given = {name: getattr(self, name) for name in Criteria.model_fields}
        times = {name: parse_time(given[name], now=now) for name in ("since", "until") if given[name] is not None}
        return Filter(states=states, **given | times)


class PageParameters(_Parameters):
    """Selects one page of a list, in which the newest entries come first."""

    after: Annotated[str | None, Field(max_length=1200, description="`next` of the previous page.")] = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE, description="Maximum number of entries.")] = 50

    @property
    def cursor(self) -> Cursor | None:
        """The cursor in `after`; None if `after` is not given. Raises ValueError if `after` is not a valid cursor."""
        return Cursor.parse(self.after) if self.after is not None else None


class Search(Criteria, PageParameters):
    """Parameters of a search for deliveries or executions."""

    state: Annotated[list[_State], Field(description="May be repeated to match several states.")] = []

    def wanted(self, *, now: datetime, states: frozenset[State] = frozenset()) -> Filter:
        return super().wanted(now=now, states=states or frozenset(self.state))


class CauseSearch(_Parameters):
    """Selects the failed executions that are counted by their cause."""

    launch_plan: _LaunchPlan | None = None
    project: _Text | None = None
    domain: _Text | None = None
    phase: _Phase | None = None
    since: TimeArgument | None = None
    until: TimeArgument | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE, description="Maximum number of causes.")] = 50

    def wanted(self, *, now: datetime) -> Filter:
        """Return the filter for the ledger. Raises ValueError if `since` or `until` is not a valid time."""
        given = self.model_dump(exclude={"limit"}, exclude_none=True)
        return Criteria.model_validate(given).wanted(now=now)


class LaunchPlanQuestion(_Parameters):
    """Asks who would be notified of a launch plan's executions."""

    launch_plan: Annotated[
        str,
        Field(
            min_length=5,
            max_length=4000,
            pattern=r"^[^\x00]+$",
            description="`project/domain/name`, or `project/domain/name@version`.",
        ),
    ]
    phase: _Phase | None = None

    @property
    def plan(self) -> EntityId:
        """The launch plan. Raises ValueError if the text names none."""
        try:
            return EntityId.parse(self.launch_plan)
        except ValidationError as error:
            raise ValueError(first_problem(error)) from None

    @property
    def phases(self) -> Sequence[Phase]:
        return [Phase(self.phase)] if self.phase is not None else PHASES


class RejectedSearch(PageParameters):
    """Parameters of a search for rejected messages."""

    replayed: Annotated[
        bool | None,
        Field(
            description="true selects only replayed messages, false only those that were neither replayed nor dismissed."
        ),
    ] = None


class RoutePage(NamedTuple):
    """A page of the routes in effect, in the order in which they apply."""

    entries: Sequence[Route]
    next: str | None
    """The name of the last one, if there are more."""


class RouteSearch(_Parameters):
    """Parameters of a search for routes in effect."""

    recipient: Annotated[
        _Text | None, Field(description="Only routes to this contact or recipient, also through a contact.")
    ] = None
    after: Annotated[_Text | None, Field(description="`next` of the previous page.")] = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE_SIZE, description="Maximum number of entries.")] = 50

    def page(self, book: RouteBook, contacts: Contacts) -> RoutePage:
        """Return a page of the routes. Raises ValueError if the route in `after` is no longer in effect."""
        found = of_recipient(book.after(self.after), self.recipient, contacts)
        entries = [*islice(found, self.limit)]
        return RoutePage(entries, entries[-1].name if next(found, None) is not None else None)


def of_recipient(routes: Iterable[Route], recipient: str | None, contacts: Contacts) -> Iterator[Route]:
    """Yield the routes that name a contact or a recipient, also through a contact; all of them if it is None."""
    wanted = recipient.casefold() if recipient is not None else None
    yield from (route for route in routes if wanted is None or wanted in _named_by(route, contacts))


def _named_by(route: Route, contacts: Contacts) -> Iterator[str]:
    """Yield whom a route names, in lower case: contacts, and all recipients."""
    for rule in route.rules:
        for name in rule.notification.recipients:
            yield name.casefold()
            yield from (recipient.casefold() for _, recipient in contacts.expand(name) or ())


async def unknown_names(ledger: Ledger, wanted: Filter, channels: Iterable[str]) -> list[str]:
    """Return a sentence for each name in a filter that the ledger does not know, with the nearest names that it knows.

    For a search that found nothing. `channels`: the known channels. Raises LedgerUnavailable.
    """
    unknown = dict(await ledger.names.unknown(wanted))
    if (others := unknown.get("channel")) is not None:
        unknown["channel"] = others | set(channels)
        if wanted.channel in unknown["channel"]:
            del unknown["channel"]
    return [
        no_such(f"{kind.replace('_', ' ')} in the ledger", getattr(wanted, kind), names)
        for kind, names in unknown.items()
    ]
