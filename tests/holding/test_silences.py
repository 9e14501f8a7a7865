"""When silences are in force, and until when they hold."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dispatcher.holding.silences import MAX_AHEAD
from tests.support.builders import NOW, a_silence

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(("after_end", "until"), [(0, 5), (1, 5), (5, 10), (9.99, 10)])
def test_late_comers_gather_in_steps_of_five_minutes_from_the_end(after_end: float, until: float) -> None:
    silence = a_silence()
    late = silence.ends_at + after_end * MINUTE
    assert silence.ends_after(late) == silence.ends_at + until * MINUTE
    assert silence.ends_after(silence.ends_at - MINUTE) == silence.ends_at


def test_an_event_in_the_far_future_counts_as_an_event_of_now() -> None:
    silence = a_silence(starts=timedelta(hours=10))
    assert not silence.occurred_within(silence.starts_at, NOW)
    assert silence.occurred_within(silence.starts_at + MAX_AHEAD, silence.starts_at)
    assert silence.occurred_within(silence.ends_at + timedelta(hours=9), silence.starts_at)
    assert not silence.occurred_within(silence.ends_at, silence.ends_at - MINUTE)
