"""Finds what is wrong with routes and contacts, beyond what makes them invalid. `dispatcher routes lint` prints it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

from dispatcher.config.settings import Settings
from dispatcher.errors import SettingsError
from dispatcher.planning.contacts import NO_OPTIONS, Contacts
from dispatcher.planning.planner import Planner
from dispatcher.rules import RuleBook
from dispatcher.rules.files import RuleFiles
from dispatcher.rules.lint import problems_of
from dispatcher.runtime.preflight import unreachable_recipients
from dispatcher.runtime.wiring import make_planner, make_rule_files, open_channels

_UNUSED = "no rule in files, route, contact, owners or fallback_recipients names it"


class LintFinding(NamedTuple):
    """Something to change."""

    message: str
    """A sentence. It begins with the file and line."""
    warning: bool = False
    """True if it may be right nevertheless."""


def lint(settings: Settings, today: date) -> Iterator[LintFinding]:
    """Yield what is wrong: refused routes, routes that can't match or are never reached, recipients that no channel can
    reach, contacts that nobody uses, and quiet hours and digests without effect.
    """
    files = make_rule_files(settings)
    files.load()
    yield from (LintFinding(str(problem)) for problem in files.problems)
    yield from (LintFinding(str(problem)) for problem in problems_of(files.book.routes.routes))
    try:
        planner = make_planner(settings, open_channels(settings))
    except SettingsError as error:
        yield from (LintFinding(settings.located(problem)) for problem in str(error).splitlines())
        return
    yield from map(LintFinding, unreachable_recipients(planner, files.book))
    yield from _over(settings, planner, files.book, today)
    for name in _without_digests(planner):
        message = f"contacts.{name}.digest: it has no effect: all channels of the contact page, and have no digests"
        yield LintFinding(settings.located(message))
    unseen = "; ".join(_unseen(settings, files))
    for name in unused_contacts(settings, planner.contacts, files.book):
        message = "; ".join(part for part in (f"contacts.{name}: {_UNUSED}", unseen) if part)
        yield LintFinding(settings.located(message), warning=bool(unseen))


def _over(settings: Settings, planner: Planner, book: RuleBook, today: date) -> Iterator[LintFinding]:
    """Yield the windows of quiet hours whose dates are in the past. They do no harm, so these are warnings."""
    contacts = planner.contacts.all
    every = [(settings.located(f"contacts.{name}.quiet: "), one.options.quiet) for name, one in contacts.items()]
    every += [(f"{one.defined_at}: route {one.name!r}: quiet: ", one.quiet) for one in book.routes.routes]
    for place, quiet in every:
        for window in quiet.windows if quiet is not None else ():
            if window.over(today):
                yield LintFinding(f"{place}{window}: all its dates are over", warning=True)


def _without_digests(planner: Planner) -> Iterator[str]:
    """Yield the contacts that have the option `digest`, and no recipient who gets digests."""
    for name, contact in planner.contacts.all.items():
        targets = [planner.target(channel, recipient) for channel, recipient in contact.recipients]
        if contact.options.digest and not any(planner.digest(one.channel, one.address) for one in targets):
            yield name


def _unseen(settings: Settings, files: RuleFiles) -> Iterator[str]:
    """Yield what may name a contact, and is in no file or refused."""
    if files.problems:
        yield "a refused rule or route may name it"
    if settings.rules.flyte_admin is not None:
        yield "rules in FlyteAdmin may name it"
    if settings.owners is not None and settings.owners.label:
        yield f"the label {settings.owners.label} of an execution may name it"


def unused_contacts(settings: Settings, contacts: Contacts, book: RuleBook) -> Iterator[str]:
    """Yield the contacts that nothing in the settings and in files names.

    A contact with options is used if a rule names one of its addresses, because the options are for the address.
    """
    named: set[str] = set()
    addresses: set[tuple[str, str]] = set()
    for rule in book.rules():
        for recipient in rule.notification.recipients:
            named.add(recipient)
            addresses.add((rule.notification.channel, recipient.lower()))
    for section in settings.channel_sections.values():
        named.update(section.fallback_recipients)
    if settings.owners is not None:
        named.update(settings.owners.map.values(), [settings.owners.fallback or ""])
    if settings.canary is not None:
        named.add(settings.canary.recipient)
    waiting = [name for name in named if name in contacts.all]
    used: set[str] = set()
    while waiting:
        if (name := waiting.pop()) not in used:
            used.add(name)
            waiting += contacts.all[name].include
    addresses |= {(channel, one.lower()) for name in used for channel, one in contacts.expand(name) or ()}
    for name, contact in contacts.all.items():
        own = {(channel, one.lower()) for channel, one in contact.recipients}
        if name not in used and (contact.options == NO_OPTIONS or not own & addresses):
            yield name
