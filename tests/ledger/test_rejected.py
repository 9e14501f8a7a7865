"""Rejected messages, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dispatcher.ledger import Deed, Ledger
from tests.support.builders import NOW, SECOND, an_event
from tests.support.ledger_steps import MINUTE, an_action, rejected


async def test_rejected_messages_are_stored_once_with_their_first_bytes(ledger: Ledger) -> None:
    big = rejected("big", body=b"x" * 100_000, size=100_000, received_at=NOW + SECOND, reason="nul \0 inside")

    await ledger.record([], [rejected(), big], now=NOW)
    await ledger.record([], [rejected(), big], now=NOW)

    newest, oldest = await ledger.rejected.find(limit=10)
    assert (newest.id, len(newest.body), newest.size, newest.whole) == ("big", 65536, 100_000, False)
    assert oldest == rejected()
    assert await ledger.rejected.find(limit=10, id_starts="b") == [newest]


async def test_a_replayed_message_has_its_time_of_replay(ledger: Ledger) -> None:
    await ledger.record([], [rejected()], now=NOW)
    await ledger.rejected.mark_replayed("a", event=None, action=an_action(Deed.REPLAY, at=NOW + MINUTE))
    (entry,) = await ledger.rejected.find(limit=5)
    assert entry.replayed_at == NOW + MINUTE


async def test_rejected_messages_are_found_by_the_execution_in_their_key_or_bytes(ledger: Ledger) -> None:
    execution = an_event().execution
    named = b'{"project":"flytesnacks","domain":"production","name":"akx7b9q2vjt5fm4c8h2d"}\xff'
    await ledger.record(
        [],
        [
            rejected("understood", event=f"{execution}/FAILED"),
            rejected("named", body=named, size=len(named)),
            rejected("longer", body=named.replace(b"8h2d", b"8h2d2"), size=len(named) + 1),
            rejected("elsewhere", body=named.replace(b"production", b"staging"), size=len(named) - 3),
            rejected("neighbour", event=f"{execution}2/FAILED", body=named, size=len(named)),
        ],
        now=NOW,
    )

    found = await ledger.rejected.find(limit=10, execution=execution)

    assert {entry.id for entry in found} == {"understood", "named"}
