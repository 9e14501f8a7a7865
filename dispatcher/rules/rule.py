"""One rule: a notification, where it is defined, and whether it matched an event."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from dispatcher.holding.windows import QuietHours
from dispatcher.model.delivery import RuleRef
from dispatcher.model.notification import Notification
from dispatcher.rules.owners import OWNER, TO_CONTACTS, Owner


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, and where the rule is defined, such as `options.notifications[0]` or `plans/train.yaml:12`."""

    notification: Notification
    defined_at: str
    name: str = ""
    """The name of the route that the rule belongs to; empty for Flyte's rules."""
    severity: str = ""
    """The severity that the route gives (`model/severity.py`); empty if it gives none."""
    quiet: QuietHours | None = None
    """The quiet hours of the route; None if it has none."""
    owner: Owner | None = None
    """How the owner was found whom the route names; None if it is no rule for the owner, or if no event is decided."""

    @property
    def names_owner(self) -> bool:
        """True if the rule is for the owner, whom each event gives anew. No contact has the owner's name."""
        return self.notification.channel == TO_CONTACTS and self.notification.recipients == (OWNER,)

    @property
    def ref(self) -> RuleRef:
        """What a delivery keeps of the rule if the rule names its recipients."""
        return RuleRef(self.name, self.defined_at, owner=self.owner is not None and self.owner.known)

    def to(self, owner: Owner) -> Rule:
        """Return the rule for the owner with the owner's recipient. It stays as it is if there is none."""
        changes = {"channel": owner.channel, "recipients": owner.recipients} if owner.recipients else {}
        return replace(self, notification=self.notification.model_copy(update=changes), owner=owner)


class Considered(NamedTuple):
    """One evaluated rule: whether the rule matched the event, and why."""

    rule: Rule
    matched: bool
    reason: str
    applies: bool = True
    """False if the rule is replaced or disabled, or comes from a place that is not used for this execution."""

    def as_data(self) -> dict[str, Any]:
        """Return the rule and its result as JSON data, for the ledger and for `--json`."""
        notification = self.rule.notification
        return {
            "name": self.rule.name,
            "defined_at": self.rule.defined_at,
            "phases": list(notification.phases),
            "channel": notification.channel,
            "recipients": list(notification.recipients),
            "matched": self.matched,
            "reason": self.reason,
            "owner": self.rule.owner.as_data() if self.rule.owner is not None else None,
        }
