"""The dispatcher's own errors. Each message is a sentence that an operator can act on."""

from __future__ import annotations


class DispatcherError(Exception):
    """Base class of all errors that the dispatcher raises on purpose."""


class SettingsError(DispatcherError):
    """The settings are invalid; the message names the keys and how to fix them."""


class Unreadable(DispatcherError):
    """An incoming message can't be decoded; the error's text says why."""


class Unavailable(DispatcherError):
    """The ledger or FlyteAdmin is unavailable. Intake waits until it is available again, so no message is lost."""


class LedgerUnavailable(Unavailable):
    """The ledger can't be read or written now; a later attempt may succeed."""


class FlyteAdminUnavailable(Unavailable):
    """FlyteAdmin does not answer or refuses the request; the message names the setting that may be wrong."""


class LedgerIncompatible(DispatcherError):
    """The database was created by a newer or unreleased version, or by another program. A retry won't help."""
