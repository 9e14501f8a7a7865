"""Durations, as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dispatcher.parsing.duration import duration_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.5, "0.5 s"),
        (59.9999, "60 s"),
        (60, "1 min"),
        (121.08, "2 min 1 s"),
        (7200, "2 h"),
        (7199.9, "1 h 59 min 59 s"),
        (98_400, "1 d 3 h 20 min"),
        (36_500 * 86_400, "36500 d"),
    ],
)
def test_a_duration_is_written_with_its_units(seconds: float, text: str) -> None:
    assert duration_text(timedelta(seconds=seconds)) == text
