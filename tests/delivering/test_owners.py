"""Owners whose address the provider does not know: the fallback contact of owners is notified too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from channels.contract import Message, Never, Receipt, UnknownRecipient
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import Delivery, Kind, RuleRef, State
from dispatcher.planning.planner import Planner
from dispatcher.rules.owners import Owners
from tests.support.builders import NOW, a_delivery, an_event, some_contacts
from tests.support.ledger_steps import recorded
from tests.support.workers import RECEIPT, ScriptedChannel, a_worker, deliver_due

EVENT = an_event(principal="bob", labels={"team": "ml"})
TO_OWNER = RuleRef("owners", "routes.yaml:2", owner=True)
OWNERS = Owners(label="team", pattern="{principal}@example.com", principals=".*", fallback="data")
DATA = {"slack": ["#data"], "email": ["data@example.com", "Boss@example.com"]}
PLANNER = Planner(
    addresses={"email": str.lower, "slack": str},
    fallbacks={},
    contacts=some_contacts(data=DATA),
    fallback_recipients={"email": ["data"]},
    grouped=frozenset({"email"}),
    owners=OWNERS,
)

WITH_TEAM = replace(
    PLANNER,
    contacts=some_contacts(ml={"email": ["a@example.com", "b@example.com", "c@example.com"]}, data=DATA),
    owners=replace(OWNERS, contacts={"ml": 3, "data": 3}),
)
"""The label of the event names a contact."""


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as opened:
        yield opened


def to_owner(*recipients: str, **fields: Any) -> Delivery:
    named = recipients or ("bob@example.com",)
    given: dict[str, Any] = {"recipients": named, "addresses": named, "rules": (TO_OWNER,)}
    return a_delivery(EVENT, **given | fields)


async def delivered(
    ledger: Ledger, *deliveries: Delivery, answer: object = None, planner: Planner = PLANNER
) -> list[Delivery]:
    """The notifications that follow from the provider's answer to the first delivery."""
    await ledger.record([recorded(*deliveries, event=EVENT)], [], now=NOW)
    name = deliveries[0].channel
    channel = ScriptedChannel(lambda _: answer)
    await deliver_due(a_worker(ledger, channel, name=name, planner=planner))
    found = [one.delivery for one in await ledger.history.find(Filter(), limit=20)]
    first = {delivery.key for delivery in deliveries}
    return [one for one in found if one.kind is Kind.NOTIFICATION and one.key not in first]


async def test_the_fallback_contact_is_notified_of_an_owner_whom_the_provider_does_not_know(ledger: Ledger) -> None:
    found = await delivered(ledger, to_owner(severity="critical"), answer=UnknownRecipient("550 no such mailbox"))

    assert sorted((one.channel, one.addresses) for one in found) == [
        ("email", ("data@example.com", "boss@example.com")),
        ("slack", ("#data",)),
    ]
    assert {(one.rules, one.severity, one.state) for one in found} == {
        ((TO_OWNER._replace(owner=False),), "critical", State.WAITING)
    }
    (kept,) = await ledger.owners.unresolved(limit=10)
    assert (kept.principal, kept.label, kept.instead, kept.event) == ("bob", "ml", "data", EVENT.key)
    assert kept.reason == "bob@example.com could not be notified through email: 550 no such mailbox"


async def test_those_who_hear_of_the_event_already_are_left_out(ledger: Ledger) -> None:
    other = a_delivery(EVENT, channel="email", to="Boss@example.com", addresses=("boss@example.com",), due_at=NOW)
    later = other._replace(due_at=NOW.replace(year=2999))
    found = await delivered(ledger, to_owner(), later, answer=UnknownRecipient("550"))
    assert sorted(one.addresses for one in found) == [("#data",), ("data@example.com",)]


async def test_a_mail_that_reaches_a_part_of_the_owners_contact_counts_for_the_others(ledger: Ledger) -> None:
    failures = {"A@example.com": UnknownRecipient("550 a"), "c@example.com": Never("spam")}
    receipt = Receipt(answer=RECEIPT.answer, failures=failures)
    mail = to_owner("A@example.com", "b@example.com", "c@example.com")
    found = await delivered(ledger, mail, answer=receipt, planner=WITH_TEAM)
    assert {("slack", ("#data",)), ("email", ("data@example.com", "boss@example.com"))} < {
        (one.channel, one.addresses) for one in found
    }
    (kept,) = await ledger.owners.unresolved(limit=10)
    assert kept.reason == "A@example.com could not be notified through email: 550 a"


async def test_a_mail_that_reaches_the_owner_and_not_the_others_is_no_reason(ledger: Ledger) -> None:
    receipt = Receipt(answer=RECEIPT.answer, failures={"gone@example.com": UnknownRecipient("550")})
    mail = to_owner("gone@example.com", "a@example.com")
    found = await delivered(ledger, mail, answer=receipt, planner=WITH_TEAM)
    assert [(one.addresses, one.state) for one in found] == [(("gone@example.com",), State.DEAD)]
    assert await ledger.owners.unresolved(limit=10) == []


@pytest.mark.parametrize(
    ("delivery", "answer"),
    [
        (to_owner(rules=(TO_OWNER._replace(owner=False),)), UnknownRecipient("550")),
        (to_owner(), Never("is_archived")),
    ],
)
async def test_nothing_follows_for_others_and_for_other_failures(
    ledger: Ledger, delivery: Delivery, answer: Exception
) -> None:
    assert await delivered(ledger, delivery, answer=answer) == []
    assert await ledger.owners.unresolved(limit=10) == []


async def test_an_owner_on_a_channel_with_a_fallback_channel_is_asked_there_first(ledger: Ledger) -> None:
    planner = Planner(
        addresses=PLANNER.addresses, fallbacks={"slack": "email"}, contacts=PLANNER.contacts, owners=OWNERS
    )
    slack = to_owner(channel="slack")
    (mail,) = await delivered(ledger, slack, answer=UnknownRecipient("no such person"), planner=planner)
    assert (mail.channel, mail.addresses, mail.rules) == ("email", ("bob@example.com",), (TO_OWNER,))
    assert await ledger.owners.unresolved(limit=10) == []

    def refused(_: Message) -> Exception:
        return UnknownRecipient("550")

    await deliver_due(a_worker(ledger, ScriptedChannel(refused), name="email", planner=planner))
    found = {one.delivery.addresses for one in await ledger.history.find(Filter(channel="email"), limit=20)}
    assert {("data@example.com",), ("boss@example.com",)} < found


async def test_without_a_fallback_contact_nobody_else_is_notified_and_the_owner_is_kept(ledger: Ledger) -> None:
    planner = Planner(addresses=PLANNER.addresses, fallbacks={}, owners=replace(OWNERS, fallback=""))
    assert await delivered(ledger, to_owner(), answer=UnknownRecipient("550"), planner=planner) == []
    (kept,) = await ledger.owners.unresolved(limit=10)
    assert kept.instead == ""
