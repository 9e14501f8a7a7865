"""The console's charts: every value lies within the chart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.ledger.records import TimeBucket
from dispatcher.web.console.charts import BOTTOM, HEIGHT, TOP, lags

BEGIN = datetime(2026, 11, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)
LAG = st.timedeltas(min_value=-timedelta(days=1), max_value=timedelta(days=36_500))


@given(st.lists(st.lists(LAG, max_size=5), min_size=1, max_size=5))
@example([[timedelta(days=10)]])
@example([[timedelta(0)]])
def test_every_lag_is_drawn_within_the_chart(lags_by_hour: list[list[timedelta]]) -> None:
    buckets = [
        TimeBucket(begin=BEGIN + at * HOUR, end=BEGIN + (at + 1) * HOUR, by_state={}, lags=sorted(some))
        for at, some in enumerate(lags_by_hour)
    ]
    chart = lags(buckets)
    heights = [height for line in chart.lines for _, height, _ in line.points]
    assert len(heights) == 2 * sum(map(bool, lags_by_hour))
    assert all(TOP <= height <= HEIGHT - BOTTOM for height in [*heights, *(tick.at for tick in chart.rows)])
