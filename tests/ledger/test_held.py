"""The numbers of what is held, on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from dispatcher.ledger import HoldFigures, Ledger
from dispatcher.ledger.held import HeldBy, HeldNumbers
from dispatcher.model.delivery import Delivery
from dispatcher.model.hold import DigestOptions, HoldReason, Quiet
from tests.support.builders import NOW, a_delivery, a_silence, an_event
from tests.support.ledger_steps import MINUTE, an_action, recorded

NIGHT = Quiet(NOW + 90 * MINUTE, "contact ml")


def a_message(name: str, channel: str = "email", quiet: Quiet | None = None, digest: bool = False) -> Delivery:
    options = DigestOptions(1, 10 * MINUTE, 15 * MINUTE) if digest else None
    event = an_event(name=name)
    return a_delivery(event, key=name, channel=channel, to=f"{channel}@x.com", quiet=quiet, digest=options)


async def test_what_is_held_is_counted_by_channel_and_reason(ledger: Ledger) -> None:
    assert await ledger.held.figures(now=NOW) == HoldFigures()
    silence = a_silence("s", ends_at=NOW + 60 * MINUTE)
    await ledger.silences.add(silence, an_action())
    await ledger.silences.add(a_silence("planned", starts_at=NOW + MINUTE, ends_at=NOW + 2 * MINUTE), an_action())
    silenced, free = a_message("silenced"), a_message("free")
    quiet = [a_message(name, "slack", NIGHT) for name in ("q1", "q2")]
    burst = [a_message(name, "teams", digest=True) for name in ("first", "member")]
    entries = [recorded(one, event=an_event(name=one.key)) for one in (silenced, free, *quiet, *burst)]
    entries[0] = replace(entries[0], silences=[silence])
    for number, entry in enumerate(entries):
        await ledger.record([entry], [], now=NOW + number * MINUTE)

    figures = await ledger.held.figures(now=NOW)
    assert figures.held == {
        HeldBy("email", HoldReason.SILENCE): HeldNumbers(1, NOW, NOW + 60 * MINUTE),
        HeldBy("slack", HoldReason.WINDOW): HeldNumbers(2, NOW + 2 * MINUTE, NIGHT.until),
        HeldBy("teams", HoldReason.DIGEST): HeldNumbers(1, NOW + 5 * MINUTE, NOW + 20 * MINUTE),
    }
    assert (figures.open_digests, figures.silences_in_force) == ({"teams": 1}, 1)
    assert (await ledger.held.figures(now=NOW + timedelta(days=1))).silences_in_force == 0
