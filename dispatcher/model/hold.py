"""Values of holding back. A held delivery is a waiting one with a hold: a reason, by what, and until when.

The end of a hold is the delivery's `due_at`. It is written down when the delivery is held, so neither a restart nor a
reload of files moves it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple


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
    then: Then


class Quiet(NamedTuple):
    """Quiet hours that hold a delivery now."""

    until: datetime
    by: str
    """Whose they are, such as `contact ml-team` or `route nightly`."""


class DigestOptions(NamedTuple):
    """When an address gets digests: the option `digest` of its contact."""

    after: int
    """The first so many messages recorded within `within` go out at once; those that follow are members of digests."""
    within: timedelta
    every: timedelta
    """How long a digest gathers members."""
