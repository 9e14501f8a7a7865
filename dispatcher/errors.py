"""The errors of our own making; each message is a sentence an operator can act on."""

from __future__ import annotations


class DispatcherError(Exception):
    """The root: everything the dispatcher raises on purpose."""


class SettingsError(DispatcherError):
    """The configuration can't be used; the message names the keys and how to mend them."""


class Unreadable(DispatcherError):
    """A message from a source that can't be understood; the message says why."""


class Unavailable(DispatcherError):
    """Something that intake can't do without is away; intake waits, nothing is lost."""


class LedgerUnavailable(Unavailable):
    """The ledger can't be read or written now."""


class FlyteAdminUnavailable(Unavailable):
    """FlyteAdmin can't be asked now; the message names the setting that may be wrong."""


class LedgerIncompatible(DispatcherError):
    """A newer or unreleased version made the ledger, or it is another program's database: waiting won't help."""
