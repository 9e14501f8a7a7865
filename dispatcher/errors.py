"""The dispatcher's own errors. Each message is a sentence that an operator can act on."""

from __future__ import annotations


class DispatcherError(Exception):
    """Base class of all errors that the dispatcher raises on purpose."""


class SettingsError(DispatcherError):
    """The settings are invalid; the message names the keys and how to fix them."""


class InvalidSettings(SettingsError):
    """The settings can't be used. Each line of the message is a problem that begins with its place: the file and the
    line, or the environment variable.
    """


class Unreadable(DispatcherError):
    """An incoming message can't be decoded; the error's text says why."""


class Unavailable(DispatcherError):
    """The ledger or FlyteAdmin is unavailable. Intake waits until it is available again, so no message is lost."""


class LedgerUnavailable(Unavailable):
    """The ledger can't be read or written now; a later attempt may succeed."""


class LedgerRefuses(LedgerUnavailable):
    """The ledger can't even write a canned event, so its tables or this version of the dispatcher are at fault."""


class SlowedDown(LedgerUnavailable):
    """The ledger could not write many messages in a row, so this one waits before it is given up too."""


class LedgerFailed(DispatcherError):
    """The ledger failed for an unforeseen reason: the data may not fit, or the tables or this version may be wrong."""

    def __init__(self, kind: str, reason: str) -> None:
        """`kind`: the type of the error. `reason`: the database's or Python's message, without the data."""
        super().__init__(f"{kind}: {reason}" if reason else kind)
        self.kind = kind


class FlyteAdminUnavailable(Unavailable):
    """FlyteAdmin does not answer or refuses the request; the message names the setting that may be wrong."""


class LedgerIncompatible(DispatcherError):
    """The database was created by a newer or unreleased version, or by another program. A retry won't help."""


class SilencesChanged(DispatcherError):
    """Somebody changed silences after the events were matched, so nothing was recorded: match them anew."""
