"""Makes channels, planner, renderer and FlyteAdmin's client out of the settings, for the service and for commands.

Does not import the ledger, because commands such as `preview` need none, and SQLAlchemy is slow to import.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from channels.contract import Channel
from channels.registry import CHANNEL_TYPES
from dispatcher.clock import Clock
from dispatcher.config.sections import ContactOptions
from dispatcher.config.settings import Settings
from dispatcher.errors import SettingsError
from dispatcher.flyte.admin import open_flyte_admin
from dispatcher.holding.windows import QuietHours
from dispatcher.model.event import Event
from dispatcher.planning.contacts import Contact, Contacts, Options
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.planning.targets import as_written, find_target
from dispatcher.rendering.renderer import Renderer
from dispatcher.rules.files import RuleFiles
from dispatcher.rules.owners import Owners
from dispatcher.rules.route_files import Names
from dispatcher.send_test import SendTest

if TYPE_CHECKING:  # imported for types only, because the client needs optional dependencies
    from dispatcher.flyte.admin.client import FlyteAdmin


def open_channels(settings: Settings) -> dict[str, Channel]:
    """Return the configured channels, by name. No connection is opened yet."""
    return {name: CHANNEL_TYPES[name].open(section) for name, section in settings.channel_sections.items()}


def make_renderer(
    settings: Settings, first: Sequence[Path] = (), on_failure: Callable[[str], None] = lambda _: None
) -> Renderer:
    """Return a renderer for the configured templates. Raises SettingsError if a template folder does not exist.

    Args:
        settings: the settings, with `templates` and the channels' severities.
        first: template folders that have priority over the folders in the settings.
        on_failure: called with the channel if a custom template fails, so that the built-in template is used instead.

    """
    templates = settings.templates
    return Renderer(
        CHANNEL_TYPES,
        [*first, *templates.path],
        template_sets=templates.match,
        contact_folders={
            f"contacts.{name}.templates": one.templates for name, one in settings.contact_sections.items()
        },
        console_url=settings.console_url,
        logs_url=settings.logs_url,
        severity=_severity(settings),
        hide_labels=templates.hide_labels,
        timezone=templates.timezone,
        dispatcher_url=settings.http.public_url if settings.http is not None and settings.http.console else "",
        on_failure=on_failure,
    )


def _severity(settings: Settings) -> Callable[[Event], str | None]:
    """Return a function that returns the severity of the first rule that holds, in any section with `severities`."""
    rules = [rule for section in settings.channel_sections.values() for rule in getattr(section, "severities", ())]
    return lambda event: next((rule.severity for rule in rules if rule.holds(event)), None)


def make_contents(
    settings: Settings, contacts: Contacts, template_failed: Callable[[str], None] = lambda _: None
) -> Contents:
    """Return the renderer of deliveries' content, for the configured templates.

    `contacts`: the planner's. `template_failed` is called with the channel if a custom template fails, so that the
    built-in template is used. Raises SettingsError if a template folder does not exist.
    """
    renderer = make_renderer(settings, on_failure=template_failed)
    return Contents(
        renderer.render,
        renderer.template_set,
        contacts,
        renderer.change,
        renderer.render_summary,
        waits=renderer.has_operator_templates,
    )


def make_contacts(settings: Settings, channels: Mapping[str, Channel] | None = None) -> Contacts:
    """Return the settings' contacts. `channels`: find the addresses of their recipients; without them, the contacts can
    be expanded, but their recipients are not checked.
    """
    find = as_written
    if channels is not None:
        find = partial(find_target, {name: channel.address for name, channel in channels.items()}, _fallbacks(settings))
    contacts = {
        name: Contact(
            section.recipients,
            section.include,
            _options(name, section),
            settings.place("contacts", name),
        )
        for name, section in settings.contact_sections.items()
    }
    return Contacts(contacts, find, settings.holds.longest)


def _options(name: str, section: ContactOptions) -> Options:
    """Return the options of a contact."""
    return Options(
        timezone=section.timezone,
        templates=section.templates,
        severity=section.severity or "",
        quiet=QuietHours(f"contact {name}", section.quiet) if section.quiet else None,
        digest=section.digest.options if section.digest is not None else None,
    )


def make_owners(settings: Settings) -> Owners | None:
    """Return who the owners of executions are, or None if the settings don't say it."""
    section = settings.owners
    if section is None:
        return None
    return Owners(
        contacts=make_contacts(settings).sizes,
        map=section.map,
        label=section.label,
        pattern=section.pattern,
        principals=section.principals,
        fallback=section.fallback or "",
        mail_channel=next(
            (name for name in settings.channel_sections if CHANNEL_TYPES[name].form.mail is not None), ""
        ),
    )


def _fallbacks(settings: Settings) -> Mapping[str, str]:
    """Return the mapping from a channel to its fallback channel."""
    given = {name: getattr(section, "fallback", "none") for name, section in settings.channel_sections.items()}
    return {name: fallback for name, fallback in given.items() if fallback != "none"}


def make_planner(settings: Settings, channels: Mapping[str, Channel]) -> Planner:
    """Return a planner for the configured channels and template sets.

    Raises SettingsError if a template folder does not exist, or if no channel can reach one of the recipients in the
    settings (the contacts and the canary's recipient), or if the contacts or owners have another mistake.
    """
    renderer = make_renderer(settings)
    planner = Planner(
        addresses={name: channel.address for name, channel in channels.items()},
        fallbacks=_fallbacks(settings),
        template_set=renderer.template_set,
        change_events=frozenset(
            name for name, section in settings.channel_sections.items() if getattr(section, "change_events", False)
        ),
        grouped=frozenset(name for name in channels if CHANNEL_TYPES[name].groups_recipients),
        with_own_template=frozenset(name for name in channels if CHANNEL_TYPES[name].form.mail is not None),
        thread_by={
            name: channel.thread_by for name, channel in channels.items() if not CHANNEL_TYPES[name].groups_recipients
        },
        contacts=make_contacts(settings, channels),
        fallback_recipients={name: section.fallback_recipients for name, section in settings.channel_sections.items()},
        owners=make_owners(settings),
        paging=frozenset(name for name in channels if CHANNEL_TYPES[name].pages),
    )
    problems = [*planner.unreachable()]
    canary = settings.canary
    if (
        canary is not None
        and planner.contacts.expand(canary.recipient) is None
        and (reason := planner.unreachable_reason(canary.channel, canary.recipient)) is not None
    ):
        problems.append(f"canary: {canary.recipient} by {canary.channel}: {reason}")
    if problems:
        raise SettingsError("\n".join(problems))
    return planner


def make_rule_files(settings: Settings, routes: Sequence[Path] | None = None) -> RuleFiles:
    """Return the configured rule files. They are not loaded yet.

    `routes`: files and folders with routes, in place of those in the settings.
    """
    names = Names(
        make_contacts(settings).sizes, frozenset(CHANNEL_TYPES), make_owners(settings), settings.holds.longest
    )
    return RuleFiles(settings.rules.launch_plans, settings.rules.routes if routes is None else routes, names)


@asynccontextmanager
async def opened_send_test(settings: Settings, clock: Clock) -> AsyncIterator[SendTest]:
    """Yield the sender of test messages, with channels of its own, which are closed at the end.

    Raises SettingsError if a template folder does not exist, or if no channel can reach a recipient in the settings.
    """
    async with AsyncExitStack() as stack:
        channels = open_channels(settings)
        for channel in channels.values():
            stack.push_async_callback(channel.aclose)
        yield make_send_test(settings, channels, make_planner(settings, channels), clock)


def make_send_test(settings: Settings, channels: Mapping[str, Channel], planner: Planner, clock: Clock) -> SendTest:
    """Return the sender of test messages through these channels. Raises SettingsError if a template folder does not
    exist.
    """
    return SendTest(channels, planner, make_renderer(settings).render, clock)


@asynccontextmanager
async def configured_flyte_admin(settings: Settings, clock: Clock) -> AsyncIterator[FlyteAdmin | None]:
    """Yield a client for FlyteAdmin, or None if FlyteAdmin is not configured.

    Raises SettingsError if gRPC is not installed, or if the settings' `ca_file` contains no certificate.
    """
    config = settings.rules.flyte_admin
    if config is None:
        yield None
        return
    async with open_flyte_admin(config, clock) as admin:
        yield admin
