"""The health page: components, channels and replicas, from what every replica writes about itself into the ledger.

If the ledger can't be read, the page shows this replica's own state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response

from dispatcher.errors import LedgerUnavailable
from dispatcher.ledger import Backlog
from dispatcher.model.replica import Replica
from dispatcher.observability.clock_monitor import clock_problem
from dispatcher.web.console.base import Console

THIS_REPLICA = "this replica"


@dataclass(frozen=True, slots=True)
class Component:
    """A component, as all running replicas see it."""

    name: str
    problems: Sequence[tuple[str, str]]
    """The replicas in which it does not work, each with the reason. Empty if it works everywhere."""


@dataclass(frozen=True, slots=True)
class ChannelHealth:
    """A channel, as all running replicas see it."""

    name: str
    backlog: Backlog
    replicas: int
    """Number of running replicas that have the channel."""
    in_flight: int
    breakers: Sequence[tuple[str, datetime, datetime | None]]
    """The replicas whose circuit breaker is open, each with the time since when it is, and the time of the next probe."""
    refused_since: datetime | None
    """Since when the provider refuses the dispatcher itself; None if it does not."""


async def get(console: Console, request: Request) -> Response:
    now, ledger = console.clock.now(), console.ledger
    own = await console.unready_reasons()
    replicas: Sequence[Replica] = ()
    channels: Sequence[ChannelHealth] = ()
    problem = ""
    try:
        replicas = await ledger.replicas.all()
        running = [one for one in replicas if one.seen(now)]
        names = sorted({*console.channels, *(name for one in running for name in one.channels)})
        refused = {name: await ledger.refusals.since(name) for name in names}
        backlogs = await ledger.queries.backlog(now=now)
        channels = [_channel(name, running, backlogs.get(name, Backlog()), refused[name]) for name in names]
    except LedgerUnavailable as error:
        running, problem = [], str(error)
    lags = [one.lag for one in running if one.lag is not None]
    return console.render(
        request,
        "health.html.j2",
        now=now,
        problem=problem,
        rule_problems=[str(one) for one in console.rule_problems()],
        components=[*_components(own, running)],
        channels=channels,
        replicas=replicas,
        running={one.name for one in running},
        versions={one.version for one in running},
        clock_problems={one.name: clock_problem(timedelta(seconds=one.clock_offset), "its") or "" for one in running},
        lag=sum(lags) if lags else None,
    )


def _components(own: Mapping[str, str | None], running: Sequence[Replica]) -> Iterator[Component]:
    """Yield the components, those with problems first. `own`: this replica's readiness, of which the replicas' rows
    contain a part.
    """
    seen = [(one.name, name, reason) for one in running for name, reason in one.components.items()]
    reported = {name for _, name, _ in seen}
    seen += [(THIS_REPLICA, name, reason) for name, reason in own.items() if name not in reported]
    found = [
        Component(component, [(replica, reason) for replica, name, reason in seen if name == component and reason])
        for component in sorted({name for _, name, _ in seen})
    ]
    yield from sorted(found, key=lambda one: not one.problems)


def _channel(name: str, running: Sequence[Replica], backlog: Backlog, refused_since: datetime | None) -> ChannelHealth:
    serving = [(one.name, one.channels[name]) for one in running if name in one.channels]
    return ChannelHealth(
        name=name,
        backlog=backlog,
        replicas=len(serving),
        in_flight=sum(status.in_flight for _, status in serving),
        breakers=[
            (replica, status.breaker_open_since, status.next_probe_at)
            for replica, status in serving
            if status.breaker_open_since is not None
        ],
        refused_since=refused_since,
    )
