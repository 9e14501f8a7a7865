"""What a streak keeps, and why a route fires or does not. `tests/ledger/test_streaks.py` compares it with a model."""

from __future__ import annotations

from datetime import timedelta

import orjson

from dispatcher.model.streak import MAX_FIRED, MAX_STREAK, Streak, StreakEvent, StreakRoute
from tests.support.builders import NOW

HOUR = timedelta(hours=1)


def route(name: str, streak: int) -> StreakRoute:
    return StreakRoute(name=name, streak=streak, deliveries=())


def failed(at: float, *routes: StreakRoute) -> StreakEvent:
    return StreakEvent(event=f"p/d/f{at}/FAILED", launch_plan="lp", failed_at=NOW + at * HOUR, routes=routes)


def succeeded(started: float, *routes: StreakRoute) -> StreakEvent:
    return StreakEvent(
        event=f"p/d/s{started}/SUCCEEDED", launch_plan="lp", well_since=NOW + started * HOUR, routes=routes
    )


def record(streak: Streak, event: StreakEvent) -> list[tuple[bool, str]]:
    return [(result.fires, result.reason) for result in streak.record(event, event.well_since)]


def test_each_result_says_why() -> None:
    streak, second, over = Streak(), route("second", 2), route("over", 3)
    assert record(streak, failed(1, second)) == [(False, "streak is 1 of 2")]
    assert record(streak, failed(2)) == []
    assert record(streak, failed(3, second)) == [(True, "streak is 3, and 2 are enough")]
    assert record(streak, failed(4, second, route("fourth", 4))) == [
        (False, "has fired in this streak already, with p/d/f3/FAILED"),
        (True, "streak is 4 of 4"),
    ]
    assert record(streak, succeeded(3.5, over)) == [
        (False, "the streak goes on: 1 failure ended after the success had started")
    ]
    assert record(streak, succeeded(5, over, route("long", 5))) == [
        (True, "the success ended a streak of 4"),
        (False, "the success ended a streak of 4, and 5 are needed"),
    ]
    assert record(streak, succeeded(6, over)) == [(False, "the success ended no streak")]
    assert record(streak, failed(7, second, route("first", 1))) == [
        (False, "streak is 1 of 2"),
        (True, "streak is 1 of 1"),
    ]


def test_the_newest_ends_are_kept_and_count_to_their_number() -> None:
    streak = Streak()
    for at in [*range(150, 300), *range(150)]:
        streak.record(failed(at), None)
    assert streak.ends == [NOW + at * HOUR for at in range(200, 300)]
    assert (len(streak.ends), streak.longest) == (MAX_STREAK, MAX_STREAK)
    assert record(streak, failed(0, route("last", MAX_STREAK))) == [(True, "streak is 100 of 100")]


def test_the_oldest_of_too_many_fired_routes_is_forgotten() -> None:
    streak = Streak()
    streak.record(failed(1, *(route(f"r{number}", 1) for number in range(MAX_FIRED + 1))), None)
    assert len(streak.fired) == MAX_FIRED
    assert [fires for fires, _ in record(streak, failed(2, route("r0", 1), route("r2", 1)))] == [True, False]


def test_what_is_stored_is_read_again_without_what_has_become_outdated() -> None:
    streak = Streak()
    assert streak.as_data() is None
    for at in (1, 2, 3):
        streak.record(failed(at, route(f"r{at}", at)), None)
    stored = orjson.loads(orjson.dumps(streak.as_data()))
    assert Streak.from_data(stored, None) == streak
    assert Streak.from_data(stored, NOW + 2 * HOUR) == Streak([NOW + 3 * HOUR], 3, streak.fired)
    assert Streak.from_data(stored, NOW + 3 * HOUR) == Streak.from_data(None, NOW) == Streak()
