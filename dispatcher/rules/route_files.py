"""Reads routes from files.

A file contains `routes: [{name, match, notify, …}]` in YAML or JSON. An invalid route is reported with its file and
line; the other routes of the file still apply, and so does the last valid route of the same name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError

from dispatcher.holding.silences import LONGEST
from dispatcher.holding.windows import QuietHours, Windows
from dispatcher.model.notification import CHANNEL_FIELDS, MAX_RECIPIENTS, Notification
from dispatcher.model.phase import Phase
from dispatcher.model.severity import PASSES_QUIET_HOURS, Severity
from dispatcher.model.streak import MAX_STREAK
from dispatcher.parsing.nearest import nearest, there_is_no
from dispatcher.parsing.scalars import why_not_text
from dispatcher.parsing.validation_errors import first_problem, option_hint, sentence
from dispatcher.parsing.yaml import MAX_BYTES, Document, Malformed, Problem, decoded, parse, readable
from dispatcher.rules.file_set import Content, FileFormat, LoadedFile, RuleFile
from dispatcher.rules.matcher import Matcher
from dispatcher.rules.owners import OWNER, TO_CONTACTS, Owners
from dispatcher.rules.routes import Route, RouteBook
from dispatcher.rules.rule import Rule

MAX_ROUTES = 100_000
"""Maximum number of routes in all files."""
MAX_PARTS = 1_000_000
"""Maximum number of patterns and recipients of the routes in all files: they take about 300 MB."""
MAX_STEPS = 100_000
"""Maximum number of instructions of the regular expressions in all files. Most expressions have less than 50."""
MAX_HINTS = 20
"""In so many messages about a file, an unknown name comes with the nearest ones, because finding these takes long."""
ROUTES, PARTS, STEPS = "routes", "patterns and recipients in routes", "steps in the regular expressions of routes"
"""The things that are limited, in words."""
MAX_NAME = 100
"""Maximum number of characters of a route's name."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

LoadedRoute = tuple[Route, int]
"""A route, and the number of its line."""


@dataclass(frozen=True, slots=True)
class Names:
    """The names in the settings that routes can refer to."""

    contacts: Mapping[str, int] = field(default_factory=dict)
    """Mapping from a contact to the number of its recipients."""
    channels: frozenset[str] = frozenset()
    owners: Owners | None = None
    """Who the owners of executions are; None if the settings don't say it."""
    longest: timedelta = LONGEST
    """The longest hold (`holds.longest`)."""


NO_NAMES = Names()


def _entry(entry: Any) -> Any:
    """Return an entry of `notify` as a mapping from a channel to recipients."""
    if isinstance(entry, str):
        return {TO_CONTACTS: [entry]}
    if isinstance(entry, dict):
        by_channel = {CHANNEL_FIELDS.get(channel, channel): recipients for channel, recipients in entry.items()}
        if len(by_channel) < len(entry):
            raise ValueError("two names of the same channel: keep one of them")
        if by_channel and TO_CONTACTS not in by_channel:
            return by_channel
    raise ValueError(why_not_text(entry) or "write a contact's name, or a channel with recipients: {slack: ['#dev']}")


def _shown_name(name: str) -> str:
    if name != name.strip() or _CONTROL.search(name):
        raise ValueError("no control characters may be in it, and no spaces around it")
    return name


def _listed(recipients: Any) -> Any:
    return [recipients] if isinstance(recipients, str) else recipients


_Recipients = Annotated[tuple[str, ...], FailFast(), BeforeValidator(_listed)]


class _RouteText(BaseModel):
    """A route as it is written in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_shown_name)]
    match: Matcher
    notify: Annotated[
        tuple[Annotated[Mapping[str, _Recipients], BeforeValidator(_entry)], ...],
        FailFast(),
        Field(min_length=1, max_length=MAX_RECIPIENTS),
    ]
    severity: Severity | None = None
    stop: bool = False
    rules: Literal["add", "replace"] = "add"
    streak: Annotated[int, Field(strict=True, ge=1, le=MAX_STREAK)] | None = None
    on: Literal["resolved"] | None = None
    quiet: Windows = ()


class _Refused(Exception):
    """A route is invalid. `at`: where in the route. `hint`: returns what comes after the message."""

    def __init__(self, message: str, at: tuple[str | int, ...] = (), hint: Callable[[], str] | None = None) -> None:
        super().__init__(message)
        self.at, self.hint = at, hint


def route_format(names: Names) -> FileFormat[LoadedRoute]:
    """Return the format of files with routes. `names`: what the routes can refer to."""
    limits = {ROUTES: MAX_ROUTES, PARTS: MAX_PARTS, STEPS: MAX_STEPS}
    return FileFormat({".yaml": MAX_BYTES, ".yml": MAX_BYTES, ".json": MAX_BYTES}, partial(_read, names), limits)


def _read(names: Names, file: RuleFile, before: tuple[LoadedRoute, ...]) -> Content[LoadedRoute]:
    """Return the routes in a file. `before`: those that it had before.

    Raises Malformed if the file is no list of routes.
    """
    old = {route.name: (route, line) for route, line in before}
    routes: list[LoadedRoute] = []
    problems: list[Problem] = []
    kept: set[str] = set()
    for document in parse(decoded(file.content), json=file.path.suffix == ".json"):
        for index, item in enumerate(_items(document)):
            line = document.line_of(("routes", index))
            try:
                routes.append((_route(item, f"{readable(file.path)}:{line}", names), line))
            except _Refused as error:
                name = item.get("name") if isinstance(item, dict) else None
                shown = f"route {name[:MAX_NAME]!r}: " if isinstance(name, str) else f"route {index + 1}: "
                at = document.line_of(("routes", index, *error.at))
                hint = f": {error.hint()}" if error.hint is not None and len(problems) < MAX_HINTS else ""
                problems.append(Problem(file.path, at, f"{shown}{error}{hint}"))
                kept |= {name} if isinstance(name, str) else old.keys()
                if isinstance(name, str) and name in old:
                    routes.append(old[name])
    named = {route.name for route, _ in routes}
    missing = [entry for name, entry in old.items() if name in kept - named]
    entries = (*routes, *missing)
    return Content(entries, tuple(problems), keeps=not kept.isdisjoint(old), sizes=_sizes(entries))


def _sizes(entries: Sequence[LoadedRoute]) -> dict[str, int]:
    """Return how much the routes have of each thing that is limited."""
    routes = [route for route, _ in entries]
    recipients = sum([len(rule.notification.recipients) for route in routes for rule in route.rules])
    return {
        ROUTES: len(routes),
        PARTS: recipients + sum([route.match.patterns for route in routes]),
        STEPS: sum([route.match.steps for route in routes]),
    }


def _items(document: Document) -> list[Any]:
    """Return the routes of a document. Raises Malformed if it is something else."""
    data = document.data
    if data is None:
        return []
    if not isinstance(data, dict) or data.keys() != {"routes"}:
        raise Malformed("a file of routes has only the key routes: a list of routes", document.line_of())
    if not isinstance(data["routes"], list):
        raise Malformed("routes must be a list", document.line_of(("routes",)))
    return data["routes"]


def _route(item: Any, defined_at: str, names: Names) -> Route:
    """Return the route. Raises _Refused if it is invalid."""
    try:
        text = _RouteText.model_validate(_with_phase(item))
    except ValidationError as error:
        raise _invalid(error) from None
    if not text.match.phase:
        raise _Refused("match.phase: name at least one of SUCCEEDED, FAILED, ABORTED, TIMED_OUT", ("match", "phase"))
    if text.streak and not text.on and Phase.SUCCEEDED in text.match.phase:
        raise _Refused("match.phase: a streak has no success: write on: resolved instead of phase", ("match", "phase"))
    quiet = _quiet(text, names)
    by_channel: dict[str, list[str]] = {}
    for index, entry in enumerate(text.notify):
        for channel, recipients in entry.items():
            _check(channel, recipients, names, ("notify", index))
            by_channel.setdefault(channel, []).extend(recipients)
    number = sum(names.contacts.get(one, 1) for recipients in by_channel.values() for one in recipients)
    if number > MAX_RECIPIENTS:
        raise _Refused(f"it has {number:,} recipients: at most {MAX_RECIPIENTS:,} are allowed", ("notify",))
    try:
        rules = tuple(
            Rule(
                Notification(phases=text.match.phase, channel=channel, recipients=tuple(dict.fromkeys(recipients))),
                defined_at,
                name=text.name,
                severity=text.severity or "",
                quiet=quiet,
            )
            for channel, listed in by_channel.items()
            for recipients in _owner_apart(channel, listed)
        )
    except ValidationError as error:
        raise _Refused(f"notify: {first_problem(error)}", ("notify",)) from None
    return Route(
        text.name,
        defined_at,
        text.match,
        rules,
        number,
        text.stop,
        text.rules == "replace",
        streak=text.streak or (1 if text.on else 0),
        at_the_end=text.on is not None,
    )


def _quiet(text: _RouteText, names: Names) -> QuietHours | None:
    """Return the route's quiet hours. Raises _Refused if they hold nothing, or hold messages for too long."""
    if not text.quiet:
        return None
    if text.severity == PASSES_QUIET_HOURS:
        raise _Refused(f"quiet: it has no effect, because severity {text.severity} passes quiet hours", ("quiet",))
    quiet = QuietHours(f"route {text.name}", text.quiet)
    if reason := quiet.why_too_long(names.longest):
        raise _Refused(f"quiet: {reason}", ("quiet",))
    return quiet


def _invalid(error: ValidationError) -> _Refused:
    """Return the first problem; an unknown option goes before others, because a wrong name makes an option missing too."""
    problems = error.errors(include_url=False, include_context=False)
    unknown = next((one for one in problems if one["type"] == "extra_forbidden"), None)
    if unknown is None:
        return _Refused(sentence(problems[0]), problems[0]["loc"])
    return _Refused(sentence(unknown), unknown["loc"], partial(option_hint, unknown["loc"], _RouteText))


def _with_phase(item: Any) -> Any:
    """Return the route with the phase that `on` stands for. Raises _Refused if it names a phase too."""
    match = item.get("match") if isinstance(item, dict) and item.get("on") == "resolved" else None
    if not match or not isinstance(match, dict):
        return item
    if "phase" in match:
        raise _Refused("match.phase: on: resolved stands in its place: leave one of them out", ("match", "phase"))
    return {**item, "match": {**match, "phase": Phase.SUCCEEDED.value}}


def _owner_apart(channel: str, recipients: list[str]) -> list[list[str]]:
    """Return the recipients in one list, and the owner, whom each event gives anew, in a list alone."""
    others = [one for one in recipients if channel != TO_CONTACTS or one != OWNER]
    if others == recipients:
        return [recipients]
    return [[OWNER], others] if others else [[OWNER]]


def _check(channel: str, recipients: tuple[str, ...], names: Names, at: tuple[str | int, ...]) -> None:
    """Raise _Refused if an entry of `notify` names a contact or a channel that does not exist."""
    if channel != TO_CONTACTS and channel not in names.channels:
        no_channel = f"notify: {there_is_no('channel', channel)}"
        raise _Refused(no_channel, (*at, channel), partial(nearest, channel, names.channels))
    for recipient in recipients if channel == TO_CONTACTS else ():
        if recipient == OWNER:
            if names.owners is None:
                raise _Refused("notify: owner: the settings have no section owners, which says who the owner is", at)
        elif recipient not in names.contacts:
            no_contact = f"notify: {there_is_no('contact', recipient)}"
            raise _Refused(no_contact, at, partial(nearest, recipient, names.contacts))


def in_order(files: Mapping[Path, LoadedFile[LoadedRoute]], owners: Owners | None) -> tuple[RouteBook, list[Problem]]:
    """Return the routes of all files, and a problem for each whose name another one has already."""
    routes: dict[str, Route] = {}
    clashes = []
    for path, loaded in files.items():
        for route, line in loaded.content.entries:
            first = routes.setdefault(route.name, route)
            if first is not route:
                message = f"route {route.name!r}: {first.defined_at} has this name already: choose another"
                clashes.append(Problem(path, line, message))
    return RouteBook(tuple(routes.values()), owners), clashes
