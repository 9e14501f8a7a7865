"""When a clock on the wall shows a time, also on days on which the clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache

_SECOND = timedelta(seconds=1)


@lru_cache(maxsize=8192)
def first_instant(wall: datetime, zone: tzinfo) -> datetime:
    """Return the first instant, in UTC, at which the clocks of `zone` show `wall` or later.

    Where clocks go back, `wall` may come twice: this is the first one. Where they go forward, `wall` may not come at all:
    this is the instant of the change, which is the first valid instant after `wall`. `wall` has no time zone.
    """
    return _instant(wall, zone, fold=0)


@lru_cache(maxsize=8192)
def last_instant(wall: datetime, zone: tzinfo) -> datetime:
    """Return the same as `first_instant`, but where `wall` comes twice, the second one."""
    return _instant(wall, zone, fold=1)


def _instant(wall: datetime, zone: tzinfo, fold: int) -> datetime:
    at = wall.replace(tzinfo=zone, fold=fold).astimezone(UTC).replace(fold=0)
    if at.astimezone(zone).replace(tzinfo=None) == wall:
        return at
    # The clocks skip `wall`. PEP 495: in such a gap, fold=0 has the offset before the change, so that its instant is
    # after the change, and fold=1 has the offset after the change, so that its instant is before it.
    before, after = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (1, 0))
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:  # changes happen at whole seconds
        middle = before + (after - before) // (2 * _SECOND) * _SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
