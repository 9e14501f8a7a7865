"""Values of holding back. A held delivery is a waiting one with a hold: a reason, by what, and until when.

The end of a hold is the delivery's `due_at`. It is written down when the delivery is held, so neither a restart nor a
reload of files moves it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from dispatcher.parsing.duration import duration_text


class HoldReason(StrEnum):
    """What holds a delivery back."""

    SILENCE = "silence"
    WINDOW = "window"
    """Quiet hours of the contact, or of all routes that name the address."""
    DIGEST = "digest"
    """The address gets many messages, so this one is a member of its next digest."""


class Then(StrEnum):
    """What becomes of held deliveries at the end of a hold. The least telling comes first."""

    DROP = "drop"
    """Those that occurred during the silence are dropped. Those that waited before are sent."""
    SUMMARY = "summary"
    """One message to each recipient counts them; where channels page, each launch plan that still fails pages once."""
    SEND = "send"
    """Each is sent, in order."""


def most_telling(*each: Then | None) -> Then | None:
    """Return the one that tells the recipient most; None if there is none."""
    given = [one for one in each if one is not None]
    return max(given, key=list(Then).index, default=None)


class Hold(NamedTuple):
    """What holds a delivery back, and what becomes of the delivery at the end."""

    reason: HoldReason
    by: str
    """The silence's id, whose quiet hours they are, or the digest's id."""
    until: datetime
    then: Then | None
    """None if the hold has no say: a silence that would drop, over what did not occur within it. Alone, it sends."""


class Quiet(NamedTuple):
    """Quiet hours that hold a delivery now."""

    until: datetime
    by: str
    """Whose they are, such as `contact ml-team` or `route nightly`."""


def first_to_end(one: Quiet | None, other: Quiet | None) -> Quiet | None:
    """Return the quiet hours that end first; None if one of them holds nothing."""
    return min(one, other) if one is not None and other is not None else None


def holder_text(reason: HoldReason, by: str, why: str = "") -> str:
    """Return in words what holds a delivery, such as `silence 5f0c2a9d (maintenance)`.

    `by`: `Delivery.held_by`. `why`: the silence's reason, if it is known.
    """
    match reason:
        case HoldReason.SILENCE:
            return f"silence {by} ({why})" if why else f"silence {by}"
        case HoldReason.WINDOW:
            return f"quiet hours of {by}"
        case HoldReason.DIGEST:
            return "its digest"


class DigestOptions(NamedTuple):
    """When an address gets digests: the option `digest` of its contact."""

    after: int
    """The first so many messages recorded within `within` go out at once; those that follow are members of digests."""
    within: timedelta
    every: timedelta
    """How long a digest gathers members."""

    def as_data(self) -> dict[str, Any]:
        """Return the options as JSON data, in the form in which the settings write them."""
        return {
            "after": self.after,
            "within": f"{self.within.total_seconds():g}s",
            "every": f"{self.every.total_seconds():g}s",
        }

    def __str__(self) -> str:
        """Return the options in words, such as `digest every 15m after 3 messages within 10m`."""
        messages = "1 message" if self.after == 1 else f"{self.after} messages"
        return f"digest every {duration_text(self.every)} after {messages} within {duration_text(self.within)}"
