"""Finds routes that can't do what somebody wanted: they match no event, or an earlier route stops before them.

Only what can be proved is a problem. Does no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import NamedTuple

from dispatcher.model.event import CANARY_DOMAIN, CANARY_PROJECT
from dispatcher.model.phase import Phase
from dispatcher.rules.covering import conditions_cover, contradict, covers, patterns_of
from dispatcher.rules.key_tests import is_glob
from dispatcher.rules.matcher import Conditions, Matcher
from dispatcher.rules.routes import Route

MAX_COMPARISONS = 100_000
"""Maximum number of pairs of routes that are compared: they take about 1 s. Only hundreds of routes that stop and have
nothing but patterns with `*`, `?` or `[` need so many."""
_WITHOUT_SLASH = ("project", "domain")
"""The keys whose facts have no slash (`model.event.Name`)."""


class RouteProblem(NamedTuple):
    """What is wrong with a route."""

    route: Route
    message: str

    def __str__(self) -> str:
        return f"{self.route.defined_at}: route {self.route.name!r}: {self.message}"


def problems_of(routes: Sequence[Route]) -> Iterator[RouteProblem]:
    """Yield the problems of each route, in the order of the routes."""
    stopping = _Stopping(routes)
    for route in routes:
        never = why_never(route.match)
        if never:
            yield RouteProblem(route, f"matches no event: {never}")
        elif (before := stopping.before(route)) is not None:
            message = f"is never reached: {before.name} ({before.defined_at}) stops for all events that it matches"
            yield RouteProblem(route, message)
        elif route.stop and (
            not route.streak or route.match.launch_plan
        ):  # no streak without a launch plan, so no stop
            stopping.add(route)
        yield from (RouteProblem(route, message) for message in _useless(route.match) if not never)


def why_never(match: Matcher) -> str:
    """Return why the matcher can't hold for any event; empty if that can't be proved."""
    if match.not_ is not None and conditions_cover(match.not_, match):
        return "its not covers all that the rest of it matches"
    if match.error is not None and match.phase and set(match.phase) == {Phase.SUCCEEDED}:
        return "it wants an error, and an execution that succeeded has none"
    for key in _WITHOUT_SLASH:
        patterns = getattr(match, key)
        if patterns and all(map(_needs_slash, patterns)):
            return f"no {key} has a slash in its name"
    if (match.project, match.domain) == ((CANARY_PROJECT,), (CANARY_DOMAIN,)):
        return "no route applies to canaries"
    return ""


def _useless(match: Matcher) -> Iterator[str]:
    """Yield what has no effect in a matcher that may hold."""
    if match.error is not None and Phase.SUCCEEDED in match.phase:
        yield "it wants an error, so it never matches SUCCEEDED, which its phase names"
    if match.not_ is not None and contradict(match.not_, match):
        yield "its not has no effect: it excludes only what the rest of it does not match"
    for key in _WITHOUT_SLASH:
        impossible = [pattern for pattern in getattr(match, key) if _needs_slash(pattern)]
        if impossible:
            yield f"{key} {impossible[0]!r} matches nothing: no {key} has a slash in its name"


def _needs_slash(pattern: str) -> bool:
    return "/" in pattern and "[" not in pattern


class _Stopping:
    """The routes so far that stop, each found by one key whose patterns are plain text: the one that fewest routes share."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """`routes`: all routes."""
        self._by_text: dict[tuple[str, str], list[Route]] = {}
        self._shared = Counter(
            (key, text) for route in routes for key, texts in _plain(route.match).items() for text in texts
        )
        self._left = MAX_COMPARISONS

    def add(self, route: Route) -> None:
        """Add a route that stops."""
        by_key = _plain(route.match)
        key = min(by_key, key=lambda key: sum([self._shared[key, text] for text in by_key[key]]), default="")
        for text in by_key.get(key, ("",)):
            self._by_text.setdefault((key, text), []).append(route)

    def before(self, route: Route) -> Route | None:
        """Return a route that stops for all events that this one matches; None if that can't be proved, or not
        within `MAX_COMPARISONS` for all routes.
        """
        places = [("", ""), *((key, min(texts)) for key, texts in _plain(route.match).items())]
        candidates = chain.from_iterable(self._by_text.get(place, ()) for place in places)
        for one in islice(candidates, self._left):
            self._left -= 1
            if covers(one.match, route.match):
                return one
        return None


def _plain(match: Conditions) -> Mapping[str, Sequence[str]]:
    """Return the keys whose patterns are all plain text, with the texts."""
    return {key: texts for key, texts in patterns_of(match).items() if not any(map(is_glob, texts))}
