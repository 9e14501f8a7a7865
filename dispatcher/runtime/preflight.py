"""Checks the settings as a whole. `dispatcher check` prints the problems; `dispatcher serve` refuses to start with them.

The checks build the service's parts as the service does, and open no connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution, distributions

from channels.registry import CHANNEL_TYPES
from dispatcher.config.settings import Settings
from dispatcher.errors import DispatcherError, SettingsError
from dispatcher.flyte.admin import require_grpc
from dispatcher.ledger import Backlog, Ledger
from dispatcher.planning.planner import Planner
from dispatcher.rules import Route, RuleBook
from dispatcher.rules.facts import IN_ENRICHED_EVENTS, IN_EVENTS_OF_FAILURES, IN_NO_FLYTE_EVENT
from dispatcher.rules.key_tests import joined
from dispatcher.rules.matcher import Matcher
from dispatcher.rules.owners import TO_CONTACTS, Owners
from dispatcher.runtime.wiring import make_owners, make_planner, open_channels
from dispatcher.tracing import open_tracing

NO_FLYTE_ADMIN = (
    "nothing asks FlyteAdmin (rules.flyte_admin): Flyte's events contain neither an execution's own notifications nor "
    "disable_notifications, so rule files also notify people of executions whose notifications were disabled"
)
"""The warning about an installation that knows the rules of launch plans only from files."""
NO_START_TIMES = (
    "without FlyteAdmin (rules.flyte_admin) the start of an execution is not known, so where executions overlap, the "
    "success of one that began earlier may resolve an incident"
)
"""The warning about an installation that pages and does not ask FlyteAdmin."""

_LACKING = (
    (IN_NO_FLYTE_EVENT, "Flyte's events", "rules.flyte_admin"),
    (
        IN_ENRICHED_EVENTS,
        "most of Flyte's events",
        "rules.flyte_admin, or enrichAllWorkflowEventTypes in flyteadmin's cloudEvents (v2)",
    ),
    (IN_EVENTS_OF_FAILURES, "Flyte's events of aborted executions", "rules.flyte_admin"),
)
"""Which facts Flyte's own events lack: the keys, the events, and the settings that bring these facts."""


def problems_of(settings: Settings) -> list[str]:
    """Return the problems with which the service can't start or could do nothing, each with its place."""
    problems = [*_other_channels()]
    for check in (_source, _channel, _ledger, _flyte_admin, _tracing, _planner):
        try:
            check(settings)
        except DispatcherError as error:
            problems += [settings.located(problem) for problem in str(error).splitlines()]
    return problems


def unreachable_recipients(planner: Planner, book: RuleBook) -> Iterator[str]:
    """Yield a problem for each recipient in rule files that no channel can reach. The problem begins with the file and
    line of the rule.
    """
    for rule in book.rules():
        for recipient in rule.notification.recipients:
            channel = rule.notification.channel
            if channel == TO_CONTACTS or planner.contacts.expand(recipient) is not None:
                continue  # `Planner.unreachable` checks the contacts' recipients
            if (reason := planner.unreachable_reason(channel, recipient)) is not None:
                yield f"{rule.defined_at}: {recipient!r} can't be reached by {channel}: {reason}"


def missing_facts(settings: Settings, matchers: Iterable[tuple[str, Matcher | Route | Owners]]) -> Iterator[str]:
    """Yield warnings about keys whose facts no configured source brings, or brings for some events only.

    `matchers`: each with the place that begins its warning, such as `templates.match.0`. Flyte's own events have few
    facts; with FlyteAdmin all of them are known.
    """
    if settings.rules.flyte_admin is not None:
        return
    for place, matcher in matchers:
        needed = matcher.keys_needing_admin()
        for keys, events, remedy in _LACKING:
            if lacking := sorted(needed & keys):
                yield (
                    f"{place}: {events} lack {joined(lacking, 'and')}, and what isn't known matches nothing: set {remedy}"
                )


def matchers_of(settings: Settings) -> Iterator[tuple[str, Matcher | Owners]]:
    """Yield what needs facts in the settings, each with its place there."""
    for number, template_set in enumerate(settings.templates.match):
        yield f"templates.match.{number}", template_set
    for channel, section in settings.channel_sections.items():
        for number, rule in enumerate(getattr(section, "severities", ())):
            yield f"channels.{channel}.severities.{number}", rule
    if (owners := make_owners(settings)) is not None:
        yield "owners", owners


def removed_channels(settings: Settings, backlog: Mapping[str, Backlog]) -> Iterator[str]:
    """Yield a warning for each channel with deliveries that wait in the ledger, and without a section in the settings.

    `backlog`: the result of `Ledger.backlog`.
    """
    for name, found in sorted(backlog.items()):
        if (waiting := found.waiting + found.held) and name not in settings.channel_sections:
            number = "1 delivery waits" if waiting == 1 else f"{waiting} deliveries wait"
            yield f"{number} for the channel {name}, which is not in the settings: add channels.{name} to send them"


def _other_channels() -> Iterator[str]:
    """Yield a problem if another installed package has the import name `channels` too, such as Django Channels."""
    others = {one.name for one in distributions() if _installs_channels(one)} - {"flyte-notification-dispatcher"}
    if others:
        yield (
            f"the installed package {', '.join(sorted(others))} has the import name `channels` too, so each overwrites "
            "files of the other: install the dispatcher in an environment of its own"
        )


def _installs_channels(package: Distribution) -> bool:
    """True if the package has the import name `channels`.

    Searches the lists of its files. `importlib.metadata.packages_distributions` parses them, which takes ten times longer.
    """
    names, files = (package.read_text(name) or "" for name in ("top_level.txt", "RECORD"))
    return "channels" in names.split() or files.startswith("channels/") or "\nchannels/" in files


def _source(settings: Settings) -> None:
    if settings.kafka is not None or (settings.http is not None and settings.http.takes_events):
        return
    taken = "kafka or http" if settings.http is None else "kafka, or a token with the scope publish to http.tokens"
    raise SettingsError(f"no events can arrive: add {taken}")


def _channel(settings: Settings) -> None:
    if not settings.channel_sections:
        raise SettingsError(f"nobody can be notified: add one of {', '.join(CHANNEL_TYPES)} to channels")


def _ledger(settings: Settings) -> None:
    Ledger(settings.ledger.url, settings.ledger.timeout, settings.ledger.password_file)


def _flyte_admin(settings: Settings) -> None:
    if settings.rules.flyte_admin is not None:
        require_grpc()


def _tracing(settings: Settings) -> None:
    open_tracing(settings.tracing).close()


def _planner(settings: Settings) -> None:
    planner = make_planner(settings, open_channels(settings))
    problems = [
        f"channels.{channel}.{option}: {alias}: {reason}"
        for channel, section in settings.channel_sections.items()
        if (option := CHANNEL_TYPES[channel].aliases)
        for alias in getattr(section, option)
        if (reason := planner.unreachable_reason(channel, alias)) is not None
    ]
    if problems:
        raise SettingsError("\n".join(problems))
