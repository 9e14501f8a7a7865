"""The owner of an execution: whom a route notifies that names `owner`. Does no I/O.

The first step that finds somebody decides: `map` has a contact for the principal; the label's value names a contact;
`pattern` makes a mail address of the principal; the fallback contact. A principal may also be a service or the subject id of
an identity provider, so `pattern` is only for principals that match `principals`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from dispatcher.model.event import Event
from dispatcher.model.owner import FoundBy, UnresolvedOwner
from dispatcher.parsing.nearest import no_such
from dispatcher.rules.facts import FACTS, UNKNOWN, label
from dispatcher.rules.key_tests import compiled, joined, shown

OWNER = "owner"
"""What routes write in `notify` for the owner. No contact has this name."""
TO_CONTACTS = ""
"""The channel of a rule that names contacts: each contact says by itself which channels it has."""
PLACEHOLDER = "{principal}"
_WORD = r"[A-Za-z0-9_+-]+"
_LOCAL_PART = re.compile(rf"{_WORD}(\.{_WORD})*")
"""A local part without quotes (RFC 5321, 4.1.2, Dot-string), of fewer characters than the RFC allows."""
MAX_LOCAL_PART = 64
"""Maximum number of characters before the @ (RFC 5321, 4.5.3.1.1)."""
_DOMAIN = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
MAX_DOMAIN = 189
"""Maximum number of characters after the @, so that an address has at most 254 (RFC 5321, 4.5.3.1.3)."""


def mail_pattern(text: str) -> str:
    """Return the pattern. Raises ValueError if it could make anything else than one plain mail address."""
    before, at, domain = text.rpartition("@")
    if not at or before.count(PLACEHOLDER) != 1:
        raise ValueError(f"write one {PLACEHOLDER} before the @, as in {PLACEHOLDER}@example.com")
    if not _LOCAL_PART.fullmatch(before.replace(PLACEHOLDER, "x")):
        raise ValueError(f"besides {PLACEHOLDER}, only A-Z a-z 0-9 . _ + - may stand before the @")
    if len(domain) > MAX_DOMAIN or not _DOMAIN.fullmatch(domain):
        raise ValueError("a domain such as example.com must stand after the @")
    return text


class Owner(NamedTuple):
    """Whom to notify as the owner of an execution, and why."""

    found_by: FoundBy
    channel: str
    """The channel of the recipient; `TO_CONTACTS` if it is a contact."""
    recipients: tuple[str, ...]
    """The contact or the mail address; empty if nobody is notified."""
    number: int
    """The number of recipients, with a contact's own recipients counted."""
    reason: str
    principal: str = ""
    """Who started the execution; empty if that is absent or not known."""
    label: str = ""
    """The value of the label that names owners; empty as `principal`."""

    @property
    def known(self) -> bool:
        return self.found_by.known

    def as_data(self) -> dict[str, str]:
        """Return how the owner was found as JSON data."""
        return {"found_by": self.found_by, "reason": self.reason}

    def unresolved(self, event: Event, now: datetime) -> UnresolvedOwner | None:
        """Return what is kept of an event whose owner is not known; None if the owner is known."""
        if self.known:
            return None
        return UnresolvedOwner(self.principal, self.label, self.reason, "".join(self.recipients), event.key, now, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """The steps that find an execution's owner, as the settings give them. A step without a value is left out."""

    contacts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """Mapping from each contact's name to the number of its recipients."""
    map: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Mapping from a principal to a contact."""
    label: str = ""
    """The label whose value may name a contact."""
    pattern: str = ""
    """A mail address with `PLACEHOLDER` in the place of the principal (`mail_pattern`)."""
    principals: str = ""
    """Regular expression in RE2's syntax for the principals that `pattern` is for. It must match the whole principal."""
    fallback: str = ""
    """The contact that is notified if the owner is not known, or if no provider knows the owner's address."""
    mail_channel: str = ""
    """The channel that sends mail; empty if none is configured."""

    @property
    def problems(self) -> Iterator[str]:
        """Yield the mistakes: sentences that begin with the setting."""
        named = {f"map.{principal}": contact for principal, contact in self.map.items()}
        for option, contact in (named | ({"fallback": self.fallback} if self.fallback else {})).items():
            if contact not in self.contacts:
                yield f"owners.{option}: {no_such('contact', contact, self.contacts)}"
        if self.pattern and not self.mail_channel:
            yield "owners.pattern: it makes mail addresses, and no configured channel sends mail: add channels.email"

    def find(self, event: Event) -> Owner:
        """Return whom to notify as the owner of the event's execution."""
        principal, value = self._facts(event)
        texts = (_text(principal), _text(value))
        if (contact := self.map.get(texts[0])) is not None:
            reason = f"the owner is {contact}: owners.map has principal {shown(principal)}"
            return self._contact(FoundBy.MAP, contact, reason, texts)
        if texts[1] in self.contacts:
            reason = f"the owner is {texts[1]}: label {self.label} has this value"
            return self._contact(FoundBy.LABEL, texts[1], reason, texts)
        if address := self._address(texts[0]):
            reason = f"the owner is {address}: owners.pattern makes this address of the principal"
            return Owner(FoundBy.PATTERN, self.mail_channel, (address,), 1, reason, *texts)
        reason = f"the owner is not known: {'; '.join(self._missed(principal, value))}"
        if self.fallback:
            return self._contact(FoundBy.FALLBACK, self.fallback, f"{reason}; {self.fallback} is notified", texts)
        return Owner(FoundBy.NOBODY, TO_CONTACTS, (), 0, f"{reason}; owners.fallback names nobody", *texts)

    def unreachable(self, event: Event, reason: str, now: datetime) -> UnresolvedOwner:
        """Return what is kept of an event whose owner has an address that no provider knows. `reason`: what failed."""
        owner = self.find(event)
        return UnresolvedOwner(owner.principal, owner.label, reason, self.fallback, event.key, now, now)

    def unknown(self, event: Event) -> tuple[str, ...]:
        """Return the keys of matchers whose facts the event lacks, if they could give another owner."""
        principal, value = self._facts(event)
        needs_label = value is UNKNOWN and principal not in self.map
        return (*(["principal"] if principal is UNKNOWN else []), *([f"labels.{self.label}"] if needs_label else []))

    def keys_needing_admin(self) -> frozenset[str]:
        """Return the keys of matchers whose facts the steps need. Flyte's own events may lack them."""
        return frozenset([*(["principal"] if self.map or self.pattern else []), *(["labels"] if self.label else [])])

    def _contact(self, found_by: FoundBy, name: str, reason: str, texts: tuple[str, str]) -> Owner:
        return Owner(found_by, TO_CONTACTS, (name,), self.contacts.get(name, 1), reason, *texts)

    def _facts(self, event: Event) -> tuple[Any, Any]:
        """Return the principal and the label's value. Those that no step needs are absent."""
        principal = FACTS["principal"](event) if self.map or self.pattern else None
        return principal, label(self.label)(event) if self.label else None

    def _address(self, principal: str) -> str:
        """Return the principal's mail address; empty if it has none."""
        if not self.pattern or len(principal) > MAX_LOCAL_PART or not _LOCAL_PART.fullmatch(principal):
            return ""
        matches, _ = compiled(self.principals, whole=True)
        if not matches(principal):
            return ""
        address = self.pattern.replace(PLACEHOLDER, principal)
        return address if address.index("@") <= MAX_LOCAL_PART else ""

    def _missed(self, principal: Any, value: Any) -> Iterator[str]:
        """Yield why each step found nobody."""
        if self.map or self.pattern:
            in_map = ["is not in owners.map"] if self.map else []
            by_pattern = ["makes no address by owners.pattern and principals"] if self.pattern else []
            yield _why_not("principal", principal, joined([*in_map, *by_pattern], "and"))
        if self.label:
            yield _why_not(f"label {self.label}", value, "names no contact")


def _text(fact: Any) -> str:
    return fact if isinstance(fact, str) else ""


def _why_not(name: str, fact: Any, else_: str) -> str:
    if fact is UNKNOWN:
        return f"{name} isn't known"
    return f"{name} is absent" if fact is None else f"{name} {shown(fact)} {else_}"
