"""The errors of our own making; each message is a sentence an operator can act on."""

from __future__ import annotations


class DispatcherError(Exception):
    """The root: everything the dispatcher raises on purpose."""


class SettingsError(DispatcherError):
    """The configuration can't be used; the message names the keys and how to mend them."""


class Unreadable(DispatcherError):
    """A message from a source that can't be understood; the message says why."""


class LedgerUnavailable(DispatcherError):
    """The ledger can't be read or written now; intake waits, nothing is lost."""


class LedgerIncompatible(DispatcherError):
    """The ledger was made by a newer version, or is no ledger: waiting won't help."""
