"""The owner of an execution: each step, and that no principal makes anything but one plain mail address."""

from __future__ import annotations

import re
from email.headerregistry import Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispatcher.model.event import Event
from dispatcher.model.owner import FoundBy
from dispatcher.rules.owners import TO_CONTACTS, Owner, Owners, mail_pattern
from tests.support.builders import an_event

OWNERS = Owners(
    contacts={"ml-team": 3, "data": 2, "on-call": 1},
    map={"alice": "ml-team", "0oa1b2c3": "data"},
    label="team",
    pattern="{principal}@example.com",
    principals="[a-z]+",
    fallback="on-call",
    mail_channel="email",
)
NO_FALLBACK = Owners(pattern="flyte+{principal}.x@example.com", principals=".*", mail_channel="email")


def started_by(principal: str, team: str | None = None, *, looked_up: bool = True) -> Event:
    labels = {} if team is None else {"team": team}
    return an_event(principal=principal, labels=labels, looked_up=looked_up)


@pytest.mark.parametrize(
    ("event", "found_by", "recipient", "reason"),
    [
        (started_by("alice", "data"), FoundBy.MAP, "ml-team", "the owner is ml-team: owners.map has principal alice"),
        (started_by("0oa1b2c3"), FoundBy.MAP, "data", "the owner is data: owners.map has principal 0oa1b2c3"),
        (started_by("bob", "data"), FoundBy.LABEL, "data", "the owner is data: label team has this value"),
        (started_by("", "data"), FoundBy.LABEL, "data", "the owner is data: label team has this value"),
        (
            started_by("bob", "unknown"),
            FoundBy.PATTERN,
            "bob@example.com",
            "the owner is bob@example.com: owners.pattern makes this address of the principal",
        ),
        (
            started_by("system:ci", "Data"),
            FoundBy.FALLBACK,
            "on-call",
            (
                "the owner is not known: principal system:ci is not in owners.map and makes no address by "
                "owners.pattern and principals; label team Data names no contact; on-call is notified"
            ),
        ),
        (
            started_by(""),
            FoundBy.FALLBACK,
            "on-call",
            "the owner is not known: principal is absent; label team is absent; on-call is notified",
        ),
        (
            started_by("", looked_up=False),
            FoundBy.FALLBACK,
            "on-call",
            "the owner is not known: principal isn't known; label team isn't known; on-call is notified",
        ),
    ],
)
def test_the_first_step_that_finds_somebody_decides(
    event: Event, found_by: FoundBy, recipient: str, reason: str
) -> None:
    owner = OWNERS.find(event)
    assert (owner.found_by, owner.recipients, owner.reason) == (found_by, (recipient,), reason)
    assert owner.channel == ("email" if found_by is FoundBy.PATTERN else TO_CONTACTS)
    assert owner.known == (found_by is not FoundBy.FALLBACK)


def test_without_a_fallback_nobody_is_notified() -> None:
    owner = Owners(map={"alice": "ml-team"}).find(started_by("bob"))
    reason = "the owner is not known: principal bob is not in owners.map; owners.fallback names nobody"
    assert owner == Owner(FoundBy.NOBODY, TO_CONTACTS, (), 0, reason, "bob")


def test_a_fact_that_is_missing_matters_only_if_it_could_change_the_owner() -> None:
    events = {
        "in the map": started_by("alice", looked_up=False),
        "not in the map": started_by("bob", looked_up=False),
        "with a label": started_by("", "data", looked_up=False),
        "looked up": started_by(""),
    }
    assert {name: OWNERS.unknown(event) for name, event in events.items()} == {
        "in the map": (),
        "not in the map": ("labels.team",),
        "with a label": ("principal",),
        "looked up": (),
    }
    by_label = Owners(label="team", contacts={"data": 2})
    assert not by_label.unknown(events["with a label"])


@given(st.text() | st.from_regex(r"[A-Za-z0-9._+-]{0,70}", fullmatch=True), st.text() | st.sampled_from(["data", "x"]))
@example("bob\n", "")
@example("bob\r\nBcc: eve@evil.example", "data\n")
@example("a,eve@evil.example", "ml-team,data")
@example("bob@evil.example", "")
@example('"bob"', "")
@example("a..b", "")
@example(".bob", "")
@example("bob.", "")
@example("{principal}", "{principal}")
@example("b\u00f6b", "")
@example("\ud800", "\ud800")
@example("a" * 60, "")
@example("a" * 65, "")
def test_whatever_the_principal_the_result_is_one_plain_address_or_nobody(principal: str, team: str) -> None:
    event = started_by("x").model_copy(update={"principal": principal, "labels": {"team": team}})
    for owners in (OWNERS, NO_FALLBACK):
        owner = owners.find(event)
        if owner.found_by is not FoundBy.PATTERN:
            assert set(owner.recipients) <= owners.contacts.keys()
            assert owner.number == sum(owners.contacts[one] for one in owner.recipients)
            continue
        (address,) = owner.recipients
        assert re.fullmatch(r"[A-Za-z0-9._+-]{1,64}@example\.com", address, re.ASCII)
        assert str(Address(addr_spec=address)) == address  # one address, which needs no quotes
        assert len(address) <= 254


@pytest.mark.parametrize(
    "pattern",
    [
        "alice@example.com",
        "{principal}",
        "{principal}{principal}@example.com",
        "ops@{principal}.example.com",
        "{principal}@example.com,{principal}@evil.example",
        "{principal}, eve@example.com",
        "{principal}@example.com\nBcc: eve@example.com",
        "{principal}\r\n@example.com",
        "<{principal}@example.com>",
        "Flyte {principal}@example.com",
        '"{principal}"@example.com',
        "{principal}@example.com ",
        "{principal}@@example.com",
        "{principal}@-example.com",
        "{principal}@example..com",
        "{principal}@" + "a" * 190,
        ".{principal}@example.com",
        "{principal.__class__}@example.com",
        "",
    ],
)
def test_a_pattern_that_could_make_a_header_or_two_addresses_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="@"):
        mail_pattern(pattern)


def test_mistakes_name_their_setting() -> None:
    owners = Owners(contacts={"on-call": 1}, map={"al.ice": "oncall"}, fallback="nobody", pattern="{principal}@x")
    assert [*owners.problems] == [
        "owners.map.al.ice: there is no contact 'oncall': did you mean on-call?",
        "owners.fallback: there is no contact 'nobody': there are on-call",
        "owners.pattern: it makes mail addresses, and no configured channel sends mail: add channels.email",
    ]
    assert [*OWNERS.problems] == []
