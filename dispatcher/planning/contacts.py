"""Contacts: the settings say once who somebody is, on all channels, and rules name the contact.

A contact's options follow the addresses that the contact lists itself, also where a rule names the address directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta, tzinfo
from graphlib import CycleError, TopologicalSorter
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from channels.contract import UnknownRecipient
from dispatcher.holding.silences import LONGEST
from dispatcher.holding.windows import QuietHours
from dispatcher.model.hold import DigestOptions
from dispatcher.model.notification import MAX_RECIPIENTS
from dispatcher.parsing.nearest import no_such
from dispatcher.planning.targets import FindTarget, as_written

Recipient = tuple[str, str]
"""A channel, and one of its recipients as a rule writes it."""


class Options(NamedTuple):
    """How the messages to a contact's addresses are made."""

    timezone: tzinfo | None = None
    """The time zone of times in messages; None for that of the settings."""
    templates: tuple[Path, ...] = ()
    """Template folders that go before those of the settings."""
    severity: str = ""
    """The severity that events have for the contact (`model/severity.py`); empty if it gives none."""
    quiet: QuietHours | None = None
    """When messages to the contact are held; None if never."""
    digest: DigestOptions | None = None
    """When the contact gets digests; None if never."""

    def in_words(self) -> list[str]:
        """Return the options in words for people."""
        quiet = f"quiet hours {self.quiet}" if self.quiet is not None else ""
        digest = str(self.digest) if self.digest is not None else ""
        given = (self.severity, str(self.timezone or ""), *map(str, self.templates), quiet, digest)
        return [words for words in given if words]


NO_OPTIONS = Options()


@dataclass(frozen=True, slots=True)
class Contact:
    """What the settings say of a contact."""

    recipients: tuple[Recipient, ...] = ()
    include: tuple[str, ...] = ()
    """Other contacts whose recipients belong to this one too."""
    options: Options = NO_OPTIONS
    defined_at: str = ""
    """Where the settings have it, such as `dispatcher.yaml:12`."""


class Contacts:
    """All contacts, as they were when the settings were read."""

    def __init__(
        self,
        contacts: Mapping[str, Contact] = MappingProxyType({}),
        find_target: FindTarget = as_written,
        longest: timedelta = LONGEST,
    ) -> None:
        """`find_target`: returns the target of a recipient. Raises UnknownRecipient. `longest`: the longest hold."""
        self.all = contacts
        """What the settings say of each contact."""
        self._expanded: dict[str, tuple[Recipient, ...]] = {}
        self._options: dict[tuple[str, str], Options] = {}
        """Mapping from a channel and an address in lower case to the options of its contact."""
        self.problems = [
            *self._expand_all(contacts),
            *self._resolve_all(contacts, find_target),
            *_held_too_long(contacts, longest),
        ]
        """The mistakes in the contacts: sentences that begin with the setting, such as `contacts.ml.include: `."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Mapping from each contact's name to the number of its recipients."""
        return {name: len(recipients) for name, recipients in self._expanded.items()}

    def expand(self, name: str) -> tuple[Recipient, ...] | None:
        """Return the contact's recipients, with those of the contacts that it includes, each once.

        None if there is no contact of this name.
        """
        return self._expanded.get(name)

    def hint(self, name: str, do: str) -> str:
        """Return what to do where one recipient is wanted and this is a contact's name; empty if it is none.

        `do`: the first words of the advice, such as `send the test to`.
        """
        recipients = [f"{to} on {channel}" for channel, to in self.expand(name) or ()]
        return f"; {name} is a contact: {do} {' or '.join(recipients)}" if recipients else ""

    def options(self, channel: str, address: str) -> Options:
        """Return the options of the contact that lists the address."""
        return self._options.get((channel, address.lower()), NO_OPTIONS) if self._options else NO_OPTIONS

    def as_data(self) -> list[dict[str, Any]]:
        """Return the contacts as JSON data, in the order of the settings."""
        return [
            {
                "name": name,
                "defined_at": contact.defined_at,
                "recipients": [_recipient_data(one) for one in contact.recipients],
                "include": list(contact.include),
                "everybody": [_recipient_data(one) for one in self._expanded[name]],
                "timezone": str(contact.options.timezone or ""),
                "templates": [str(folder) for folder in contact.options.templates],
                "severity": contact.options.severity,
                "quiet": contact.options.quiet.as_data() if contact.options.quiet is not None else [],
                "digest": contact.options.digest.as_data() if contact.options.digest is not None else None,
                "options": contact.options.in_words(),
            }
            for name, contact in self.all.items()
        ]

    def unknown(self, names: Iterable[str]) -> Iterator[str]:
        """Yield a sentence for each name that is no contact's."""
        for name in names:
            if name not in self._expanded:
                yield no_such("contact", name, self._expanded)

    def _expand_all(self, contacts: Mapping[str, Contact]) -> Iterator[str]:
        """Expand the contacts, those that are included first, and yield the problems."""
        self._expanded = dict.fromkeys(contacts, ())
        for name, contact in contacts.items():
            yield from (f"contacts.{name}.include: {problem}" for problem in self.unknown(contact.include))
        order = TopologicalSorter({name: contact.include for name, contact in contacts.items()})
        try:
            names = [name for name in order.static_order() if name in contacts]
        except CycleError as error:
            circle = [*reversed(error.args[1])]
            steps = ", ".join(f"{one} includes {other}" for one, other in pairwise(circle))
            yield f"contacts.{circle[0]}.include: {steps}: a contact can't include itself"
            return
        everybody: dict[str, dict[Recipient, Recipient]] = {}
        """The recipients of each contact by channel and address in lower case: each once."""
        for name in names:
            each_once = {(channel, one.lower()): (channel, one) for channel, one in contacts[name].recipients}
            for other in contacts[name].include:
                each_once |= everybody.get(other, {})
            if len(each_once) > MAX_RECIPIENTS:
                yield f"contacts.{name}: it has {len(each_once):,} recipients: a contact may have {MAX_RECIPIENTS:,}"
            everybody[name] = dict(islice(each_once.items(), MAX_RECIPIENTS))
            self._expanded[name] = tuple(everybody[name].values())

    def _resolve_all(self, contacts: Mapping[str, Contact], find_target: FindTarget) -> Iterator[str]:
        """Find out which addresses have which options, and yield the problems."""
        owners: dict[tuple[str, str], str] = {}
        for name, contact in contacts.items():
            if contact.options != NO_OPTIONS and not contact.recipients:
                yield f"contacts.{name}: its options are for the recipients that it lists itself, and it lists none"
            for channel, recipient in contact.recipients:
                try:
                    target = find_target(channel, recipient)
                except UnknownRecipient as error:
                    yield f"contacts.{name}.{channel}: {recipient}: {error.reason}"
                    continue
                if contact.options == NO_OPTIONS:
                    continue
                place = target.channel, target.address.lower()
                if (owner := owners.setdefault(place, name)) != name:
                    yield (
                        f"contacts.{name}.{channel}: {recipient}: contact {owner} lists it too, and both have options: "
                        "an address can have the options of one contact only"
                    )
                else:
                    self._options[place] = contact.options


def _held_too_long(contacts: Mapping[str, Contact], longest: timedelta) -> Iterator[str]:
    """Yield a problem for quiet hours without an end, and digests, that would hold a message for more than `longest`."""
    for name, contact in contacts.items():
        options = contact.options
        if options.quiet is not None and (reason := options.quiet.why_too_long(longest)):
            yield f"contacts.{name}.quiet: {reason}"
        if options.digest is not None and options.digest.every > longest:
            yield f"contacts.{name}.digest.every: it is longer than holds.longest, the longest time that messages are held"


def _recipient_data(recipient: Recipient) -> dict[str, str]:
    channel, name = recipient
    return {"channel": channel, "recipient": name}


NO_CONTACTS = Contacts()
