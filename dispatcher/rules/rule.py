"""One rule: a notification, where it is defined, and whether it matched an event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dispatcher.model.notification import Notification


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, and where the rule is defined, such as `options.notifications[0]` or `plans/train.yaml:12`."""

    notification: Notification
    defined_at: str
    name: str = ""
    """The name of the route that the rule belongs to; empty for Flyte's rules."""
    severity: str = ""
    """The severity that the route gives (`model/severity.py`); empty if it gives none."""


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
        }
