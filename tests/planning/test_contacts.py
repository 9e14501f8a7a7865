"""Contacts: their recipients, and the mistakes that the settings can make."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from channels.contract import UnknownRecipient
from dispatcher.model.hold import DigestOptions
from dispatcher.model.notification import MAX_RECIPIENTS
from dispatcher.planning.contacts import NO_OPTIONS, Contact, Contacts, Options
from dispatcher.planning.targets import Target
from tests.support.builders import quiet_hours


def mails(*recipients: str, include: tuple[str, ...] = ()) -> Contact:
    return Contact(tuple(("email", recipient) for recipient in recipients), include)


def target(channel: str, recipient: str) -> Target:
    if "@" not in recipient:
        raise UnknownRecipient("not a mail address")
    return Target(channel, recipient, recipient.lower())


def test_a_contact_has_its_own_recipients_and_those_of_all_that_it_includes_once() -> None:
    contacts = Contacts(
        {
            "all": mails("a@x", include=("ml", "ops")),
            "ml": mails("b@x", "A@x", include=("ops",)),
            "ops": Contact((("slack", "a@x"), ("email", "c@x"))),
        },
    )
    assert contacts.expand("all") == (("email", "A@x"), ("email", "b@x"), ("slack", "a@x"), ("email", "c@x"))
    assert contacts.expand("ml") == (("email", "b@x"), ("email", "A@x"), ("slack", "a@x"), ("email", "c@x"))
    assert contacts.expand("ALL") is None
    assert (contacts.sizes, contacts.problems) == ({"all": 4, "ml": 4, "ops": 2}, [])


def test_contacts_that_include_all_others_are_expanded_soon() -> None:
    everybody = {"first": mails(*(f"{number}@x" for number in range(MAX_RECIPIENTS)))}
    for number in range(250):
        everybody[f"c{number}"] = mails(include=tuple(everybody))
    started = time.process_time()
    assert set(Contacts(everybody).sizes.values()) == {MAX_RECIPIENTS}
    assert time.process_time() - started < 5


def test_each_mistake_is_one_sentence_with_its_place() -> None:
    contacts = Contacts(
        {
            "ml": mails("nobody", include=("opss", "ml-2")),
            "ops": mails("a@x", include=("ops",)),
            "large": mails(*(f"{number}@x" for number in range(MAX_RECIPIENTS + 1))),
        },
        target,
    )
    assert contacts.problems == [
        "contacts.ml.include: there is no contact 'opss': did you mean ops?",
        "contacts.ml.include: there is no contact 'ml-2': there are large, ml, ops",
        "contacts.ops.include: ops includes ops: a contact can't include itself",
        "contacts.ml.email: nobody: not a mail address",
    ]
    several = {"a": mails("b@x", include=("b",)), "b": mails(include=("c",)), "c": mails(include=("a",))}
    (circle,) = Contacts(several).problems
    assert sorted(circle.split(": ")[1].split(", ")) == ["a includes b", "b includes c", "c includes a"]
    assert circle.endswith("a contact can't include itself")
    (large,) = Contacts({"large": mails(*(f"{number}@x" for number in range(MAX_RECIPIENTS + 1)))}).problems
    assert large == "contacts.large: it has 1,001 recipients: a contact may have 1,000"


def test_ten_thousand_contacts_that_include_each_other_in_a_row_are_expanded() -> None:
    contacts = Contacts(
        {str(number): Contact(include=(str(number + 1),)) for number in range(10_000)} | {"10000": mails("a@x")}
    )
    assert contacts.problems == []
    assert contacts.expand("0") == (("email", "a@x"),)


def test_options_follow_the_addresses_that_a_contact_lists_itself() -> None:
    tokyo, critical = Options(timezone=ZoneInfo("Asia/Tokyo")), Options(severity="critical", templates=(Path("own"),))
    contacts = Contacts(
        {
            "ml": replace(mails("ml@x", "A@x", "a@X", include=("ops", "other")), options=tokyo),
            "ops": replace(mails("ops@x"), options=critical),
            "other": mails("other@x", "ml@x"),
        },
        target,
    )
    assert contacts.problems == []
    options = {
        address: contacts.options("email", address) for address in ("ml@x", "a@x", "A@X", "OPS@x", "other@x", "b@x")
    }
    assert options == {
        **dict.fromkeys(("ml@x", "a@x", "A@X"), tokyo),
        "OPS@x": critical,
        **dict.fromkeys(("other@x", "b@x"), NO_OPTIONS),
    }
    assert contacts.options("slack", "ml@x") == NO_OPTIONS


def test_quiet_hours_and_digests_that_would_hold_messages_for_too_long_are_a_problem() -> None:
    def contact(**options: Any) -> Contact:
        return replace(mails("a@x"), options=Options(**options))

    night = quiet_hours("contact night", **{"from": "22:00", "to": "07:00"})
    hourly = DigestOptions(1, timedelta(minutes=1), timedelta(hours=1))
    contacts = {
        "night": contact(quiet=night),
        "never": contact(quiet=quiet_hours("contact never")),
        "hourly": contact(digest=hourly),
        "daily": contact(digest=hourly._replace(every=timedelta(hours=25))),
    }
    found = [Contacts({name: one}, target, timedelta(days=1)).problems for name, one in contacts.items()]
    assert found == [
        [],
        [
            "contacts.never.quiet: from mon on, it leaves no opening within holds.longest: messages are held for 1 d at most"
        ],
        [],
        ["contacts.daily.digest.every: it is longer than holds.longest, the longest time that messages are held"],
    ]
    assert contacts["hourly"].options.in_words() == ["digest every 1 h after 1 message within 1 min"]
    assert contacts["night"].options.in_words() == ["quiet hours 22:00-07:00 UTC"]


def test_an_address_has_the_options_of_one_contact_only() -> None:
    options = Options(severity="info")
    contacts = Contacts(
        {
            "ml": replace(mails("ml@x"), options=options),
            "ops": replace(mails("ops@x", "ML@x"), options=options),
            "all": Contact(include=("ml", "ops"), options=options),
        },
        target,
    )
    assert contacts.problems == [
        (
            "contacts.ops.email: ML@x: contact ml lists it too, and both have options: an address can have the options "
            "of one contact only"
        ),
        "contacts.all: its options are for the recipients that it lists itself, and it lists none",
    ]


NAMES = ("a", "b", "c", "d", "e")
graphs = st.fixed_dictionaries(
    {
        name: st.builds(
            lambda to, include: mails(*to, include=tuple(include)),
            st.lists(st.sampled_from(["1@x", "2@x", "3@X", "3@x"]), max_size=3),
            st.lists(st.sampled_from(NAMES[place + 1 :]), max_size=3) if place < 4 else st.just([]),
        )
        for place, name in enumerate(NAMES)
    }
)


@given(graphs)
def test_who_belongs_to_a_contact_is_who_can_be_reached_by_its_includes(given_contacts: Mapping[str, Contact]) -> None:
    def members(name: str) -> set[str]:
        contact = given_contacts[name]
        own = {recipient.casefold() for _, recipient in contact.recipients}
        return own.union(*(members(other) for other in contact.include))

    contacts = Contacts(given_contacts, target)
    assert contacts.problems == []
    for name in NAMES:
        expanded = [recipient.casefold() for _, recipient in contacts.expand(name) or ()]
        assert sorted(expanded) == sorted(members(name))
