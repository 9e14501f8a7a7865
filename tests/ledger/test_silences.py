"""Silences in the ledger, and what is recorded while somebody changes them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from dispatcher.errors import SilencesChanged
from dispatcher.ledger import Deed, Ledger
from dispatcher.ledger.silence_lock import require_version
from tests.support.builders import NOW, a_silence
from tests.support.ledger_steps import an_action, an_event_to_record, rejected
from tests.support.ledgers import opened_database

WEEK = timedelta(days=7)
ADDED = an_action(Deed.SILENCE)


async def test_silences_are_added_moved_and_loaded_with_their_version(ledger: Ledger) -> None:
    first, second = a_silence("aa01"), a_silence("aa02", matcher={"error": {"message": "ж"}, "not": {"domain": "d"}})
    assert await ledger.silences.load(now=NOW) == (0, [])
    await ledger.silences.add(first, ADDED)
    await ledger.silences.add(second, ADDED)
    assert await ledger.silences.load(now=NOW) == (2, [first, second])

    ends = NOW + timedelta(minutes=1)
    moved = await ledger.silences.move(first, an_action(Deed.END_SILENCE), starts_at=NOW, ends_at=ends)
    assert moved == replace(first, ends_at=ends)
    assert await ledger.silences.move(first, an_action(Deed.END_SILENCE), starts_at=NOW, ends_at=NOW) is None
    assert await ledger.silences.load(now=ends + WEEK) == (4, [second])
    assert await ledger.silences.find("aa", limit=9) == [moved, second]
    assert await ledger.silences.find("aa", ended_after=ends, limit=9) == [second]
    assert await ledger.silences.find("a%", limit=9) == []
    done = [one.what for one in await ledger.history.latest_actions(limit=9)]
    assert done == [Deed.END_SILENCE, Deed.SILENCE, Deed.SILENCE]


async def test_nothing_is_recorded_by_silences_that_have_changed(ledger: Ledger) -> None:
    await ledger.silences.add(a_silence(), ADDED)
    entry = an_event_to_record("a")
    with pytest.raises(SilencesChanged):
        await ledger.record([entry], [rejected()], now=NOW, silences=0)
    assert await ledger.history.events(entry.event.execution) == []
    assert await ledger.rejected.find(limit=9) == []
    assert (await ledger.record([entry], [], now=NOW, silences=1)).new == {entry.event.key}


async def test_a_silence_waits_for_what_is_being_recorded_and_what_is_recorded_then_goes_by_it(
    postgres_url: str,
) -> None:
    async with Ledger(postgres_url) as ledger, opened_database(postgres_url) as database:
        async with database.writing() as recording, database.writing() as second:
            await recording.run_sync(require_version, 0)
            await asyncio.wait_for(second.run_sync(require_version, 0), 5)  # recorders don't wait for each other
            adding = asyncio.create_task(ledger.silences.add(a_silence(), ADDED))
            await asyncio.sleep(0.2)
            assert not adding.done()
            later = asyncio.create_task(ledger.record([an_event_to_record("late")], [], now=NOW, silences=0))
            await asyncio.sleep(0.1)
            assert not later.done(), "a recorder that comes later waits for the silence, or else it might wait for ever"
        await asyncio.wait_for(adding, 5)
        with pytest.raises(SilencesChanged):
            await asyncio.wait_for(later, 5)
