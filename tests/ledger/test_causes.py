"""The causes of recorded failures: filters and counts, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dispatcher.ledger import Filter, Ledger
from dispatcher.ledger.causes import CountedCause
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from dispatcher.rendering.cause import cause_of
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, an_event
from tests.support.ledger_steps import MINUTE, recorded

MESSAGES = ("KeyError: 'a'", "took 3 s", "KeyError: 'a'", "took 4 minutes", "KeyError: 'a'", "")


@pytest.fixture
async def failures(ledger: Ledger) -> Sequence[Event]:
    """Failures of three executions of a launch plan for one cause, two for another, one for none; and a success."""
    events = [
        an_event(
            name=f"e{at}",
            error={"message": message},
            launch_plan=a_launch_plan() if message.startswith("Key") else None,
        ).model_copy(update={"occurred_at": NOW - at * MINUTE})
        for at, message in enumerate(MESSAGES)
    ]
    for at, event in enumerate([*events, an_event(Phase.SUCCEEDED, name="ok")]):
        await ledger.record([recorded(a_delivery(event), event=event)], [], now=NOW + at * SECOND)
    return events


async def test_executions_and_deliveries_of_a_cause_are_found(ledger: Ledger, failures: Sequence[Event]) -> None:
    cause = cause_of(failures[0]).fingerprint
    for wanted, names in (
        (Filter(cause=cause), ["e4", "e2", "e0"]),
        (Filter(cause=cause, launch_plan="train.daily"), ["e4", "e2", "e0"]),
        (Filter(cause=cause, project="none"), []),
    ):
        page = await ledger.queries.events(wanted, limit=10)
        assert [one.name for one in page.entries] == names
        assert all((one.cause, one.cause_name) == (cause, "KeyError: 'a'") for one in page.entries)
        found = (await ledger.queries.deliveries(wanted, limit=10)).entries
        assert [one.delivery.event.split("/")[2] for one in found] == names
        assert len(await ledger.history.find(wanted, limit=10)) == len(names)
    (stored,) = await ledger.history.events(failures[1].execution)
    assert (stored.cause, stored.cause_name) == cause_of(failures[1])
    assert dict(await ledger.names.unknown(Filter(cause="v1:none"))) == {
        "cause": frozenset(cause_of(one).fingerprint for one in failures[:2])
    }
    assert await ledger.names.unknown(Filter(cause=cause)) == {}
    assert await ledger.queries.identify(cause) == {"cause": cause}


async def test_failures_are_counted_by_cause(ledger: Ledger, failures: Sequence[Event]) -> None:
    first, second = [
        CountedCause(
            cause=cause_of(failures[at]).fingerprint,
            cause_name=name,
            number=number,
            first_at=NOW - oldest * MINUTE,
            last_at=NOW - at * MINUTE,
            newest=f"flytesnacks/production/e{oldest}",
        )
        for at, name, number, oldest in ((0, "KeyError: 'a'", 3, 4), (1, "took ...", 2, 3))
    ]
    page = await ledger.causes.most_frequent(Filter(), limit=10)
    assert (page.entries, page.after, page.cut) == ([first, second], None, False)
    assert (await ledger.causes.most_frequent(Filter(), limit=1)).entries == [first]
    assert (await ledger.causes.most_frequent(Filter(launch_plan="train.daily"), limit=9)).entries == [first]
    assert (await ledger.causes.most_frequent(Filter(project="none"), limit=9)).entries == []
    recent = await ledger.causes.most_frequent(Filter(since=NOW + 3 * SECOND, until=NOW + 4 * SECOND), limit=9)
    assert [(one.cause_name, one.number) for one in recent.entries] == [("took ...", 1)]

    page = await ledger.causes.most_frequent(Filter(), limit=10, among=3)
    assert [(one.cause_name, one.number) for one in page.entries] == [("KeyError: 'a'", 1)]
    assert page.cut
    assert page.after is not None
    assert page.after.at == NOW + 4 * SECOND
