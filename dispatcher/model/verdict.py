"""The decision about an event."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """The decision about an event. The ledger stores these values; pages and commands show `_` as a space."""

    MATCHED = "matched"
    """At least one rule that applies names the event's phase, or at least one route matches."""
    NO_MATCHING_RULE = "no_matching_rule"
    """No rule that applies names the event's phase, or there are no rules; and no route matches."""
    RESOLVED = "resolved"
    """No rule that applies names the phase, but the success ended threads: resolved notices are sent. Only the ledger
    finds that out, when it records the event."""
    DISABLED = "disabled"
    """Notifications are disabled for this execution."""
    UNKNOWN_LAUNCH_PLAN = "unknown_launch_plan"
    """The event does not name its launch plan, so it is not known which rules apply."""
    RULES_UNKNOWN = "rules_unknown"
    """It is not known which of Flyte's rules apply: FlyteAdmin did not say it, and files don't, or the event does not
    name its launch plan. The event is recorded only if a route matches."""
    TOO_MANY_RULES = "too_many_rules"
    """More rules apply, or they have more recipients, than one event may have."""

    @property
    def recordable(self) -> bool:
        """True if the ledger may have events with this verdict."""
        return self.decided or self is Verdict.RULES_UNKNOWN

    @property
    def decided(self) -> bool:
        """True if the event is decided, even if nothing is sent. An event that is not decided is rejected."""
        return self not in {Verdict.UNKNOWN_LAUNCH_PLAN, Verdict.RULES_UNKNOWN, Verdict.TOO_MANY_RULES}
