"""Finds the silences of an event. What a silence covers, and when, is `holding/silences.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import ValidationError

from dispatcher.clock import Clock
from dispatcher.holding.silences import Silence
from dispatcher.ledger.silences import Silences
from dispatcher.model.event import Event
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.rules.matcher import Index, Matcher, all_hold

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SilenceBook:
    """Silences with their matchers, as they were in the ledger at one version."""

    version: int = 0
    """How often silences had been changed. The ledger records nothing that was matched by another version."""
    silences: Sequence[Silence] = ()
    _index: Index[tuple[Silence, Matcher]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        readable = []
        for silence in self.silences:
            if (matcher := matcher_of(silence)) is not None:
                readable.append((matcher, (silence, matcher)))
            else:
                log.error("a newer version wrote this silence, so this version holds nothing by it", silence=silence.id)
        object.__setattr__(self, "_index", Index(readable))

    def matching(self, event: Event) -> tuple[Silence, ...]:
        """Return the silences whose matcher holds for the event. None holds for a canary event."""
        if not self.silences or event.is_canary:
            return ()
        return tuple(silence for (silence, _), tests in self._index.candidates(event) if all_hold(tests, event))

    def lacks_facts(self, event: Event) -> bool:
        """True if it isn't known whether a silence is for the event, because the event lacks facts that FlyteAdmin has."""
        if not self.silences or event.is_canary or event.looked_up:
            return False
        unknown = (all_hold(tests, event) is None for _, tests in self._index.candidates(event))
        return any(unknown) or any(matcher.holds(event) is None for _, matcher in self._index.undecidable(event))


@dataclass(slots=True)
class CurrentSilences:
    """The silences as this process loaded them last. They are loaded anew when the ledger says that they have changed
    (`SilencesChanged`), and not before.
    """

    stored: Silences
    clock: Clock
    book: SilenceBook = field(default_factory=SilenceBook)
    _loaded: bool = False

    async def loaded(self) -> SilenceBook:
        """Return the silences. Loads them if this process has not done so yet. Raises LedgerUnavailable."""
        return self.book if self._loaded else await self.load()

    async def load(self) -> SilenceBook:
        """Load the silences anew. Raises LedgerUnavailable."""
        version, silences = await self.stored.load(now=self.clock.now())
        self.book, self._loaded = SilenceBook(version, silences), True
        return self.book


def parse_matcher(data: Mapping[str, Any]) -> Matcher:
    """Return a silence's matcher. Raises ValueError, whose message says what is wrong, also if it has no key."""
    try:
        return Matcher.model_validate(data)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None


def matcher_of(silence: Silence) -> Matcher | None:
    """Return the matcher of a stored silence; None if a newer version wrote one that this version can't read."""
    try:
        return parse_matcher(silence.matcher)
    except ValueError:
        return None


def test_of(silence: Silence) -> Callable[[Event], bool] | None:
    """Return the test whether a silence's matcher holds for an event; None if a newer version wrote the matcher."""
    if matcher_of(silence) is None:
        return None
    book = SilenceBook(silences=[silence])
    return lambda event: bool(book.matching(event))
