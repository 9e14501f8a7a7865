"""Mails per second through the dispatcher, from event to settled delivery, compared with other programs that send mail.

The baselines: aiosmtplib with prepared bytes over the same number of kept connections; Debian's Alertmanager with its
defaults (its mail templates, one connection per mail) and one alert per event; apprise. Each runs on one core, the relay
on another.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import aiosmtplib

from bench import alertmanager
from bench.burst import RunResult, carry
from bench.figures import Figure, Goal, Missing, interleaved
from bench.providers import Provider, ProviderOptions, Relay, running_provider
from bench.sides import comparison, in_new_process, run_concurrently, without_loss
from channels.contract import Message
from channels.email.mime import compose
from channels.registry import CHANNEL_TYPES
from dispatcher.model.phase import Phase
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.runtime import event_loop

MAILS = 4_000
SLOW_MAILS = 10_000
"""With a slow relay, the first and last mails of a run do not fill all connections; more mails reduce their share."""
CONNECTIONS = 50
DELAY = 0.05
CEILING = CONNECTIONS / DELAY
"""The largest possible rate in mails per second: CONNECTIONS connections, each with a mail every DELAY seconds."""
SENDER, ENVELOPE, RECIPIENT = "Flyte <flyte@example.com>", "flyte@example.com", "team{}@example.com"


def figures(rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
    count = 200 if smoke else MAILS
    yield from _without_delay(rounds, count)
    yield from _pipelined(rounds, count // 4)  # fewer, because Alertmanager is slow here
    yield from _slow(rounds, 200 if smoke else SLOW_MAILS)
    yield from _limited(rounds, count // 4)


def _without_delay(rounds: int, count: int) -> Iterator[Figure | Missing]:
    yield from alertmanager.missing("mail", "0 ms")
    few = max(count // 100, 5)
    with running_provider(Relay, ProviderOptions()) as relay:
        found = interleaved(
            rounds,
            {
                "ours": partial(_ours, count, relay),
                "aiosmtplib": partial(_bare, count, relay),
                "apprise": partial(_apprise, few, relay),
                **_alertmanager(count, relay),
            },
        )
    goals = {"aiosmtplib": 0.55, "apprise": 50, "Alertmanager": 1.5}
    for baseline in [name for name in goals if name in found]:
        yield from comparison(
            "mail", "0 ms", baseline, found["ours"], found[baseline], Goal("at least", goals[baseline])
        )


def _pipelined(rounds: int, count: int) -> Iterator[Figure | Missing]:
    yield from alertmanager.missing("mail", "0 ms, PIPELINING")
    with running_provider(Relay, ProviderOptions(pipelining=True)) as relay:
        found = interleaved(
            rounds,
            {
                "ours": partial(_ours, count, relay),
                "aiosmtplib": partial(_bare, count, relay),
                **_alertmanager(count, relay),
            },
        )
    goals = {"aiosmtplib": None, "Alertmanager": Goal("at least", 2.5)}
    for baseline in [name for name in goals if name in found]:
        yield from comparison("mail", "0 ms, PIPELINING", baseline, found["ours"], found[baseline], goals[baseline])


def _slow(rounds: int, count: int) -> Iterator[Figure | Missing]:
    with running_provider(Relay, ProviderOptions(delay=DELAY)) as relay:
        found = interleaved(rounds, {"ours": partial(_ours, count, relay), "aiosmtplib": partial(_bare, count, relay)})
    work = f"50 ms, {CONNECTIONS} connections"
    ceiling = [RunResult(count, count / CEILING, 0.0)] * rounds
    yield next(
        comparison("mail", work, f"the ceiling of {CEILING:,.0f}/s", found["ours"], ceiling, Goal("at least", 0.9))
    )
    yield from comparison("mail", work, "aiosmtplib", found["ours"], found["aiosmtplib"])


def _limited(rounds: int, count: int) -> Iterator[Figure | Missing]:
    """A relay that refuses the 51st connection; the dispatcher has no setting for that limit except its `connections`."""
    work = f"50 ms, no more than {CONNECTIONS} connections taken"
    yield from alertmanager.missing("mail", work)
    if not alertmanager.installed():
        return
    with running_provider(Relay, ProviderOptions(delay=DELAY, max_connections=CONNECTIONS)) as relay:
        found = interleaved(rounds, {"ours": partial(_ours, count, relay), **_alertmanager(count, relay)})
    yield from comparison("mail", work, "Alertmanager", found["ours"], found["Alertmanager"], Goal("at least", 2))


def _ours(count: int, relay: Provider) -> RunResult:
    section = {
        "host": "127.0.0.1",
        "port": relay.port,
        "security": "none",
        "connections": CONNECTIONS,
        "concurrency": CONNECTIONS,
        "from": SENDER,
    }
    return without_loss(relay, count, lambda: in_new_process(carry, count, "email", section, RECIPIENT))


def _bare(count: int, relay: Provider) -> RunResult:
    return without_loss(relay, count, lambda: in_new_process(_through_aiosmtplib, count, relay.port))


def _apprise(count: int, relay: Provider) -> RunResult:
    return without_loss(relay, count, lambda: in_new_process(_through_apprise, count, relay.port))


def _alertmanager(count: int, relay: Provider) -> dict[str, Any]:
    if not alertmanager.installed():
        return {}
    receiver = {
        "email_configs": [
            {
                "to": RECIPIENT.format(0),
                "from": ENVELOPE,
                "smarthost": f"127.0.0.1:{relay.port}",
                "require_tls": False,
            }
        ]
    }
    return {"Alertmanager": lambda: alertmanager.carry(count, receiver, relay)}


def _through_aiosmtplib(count: int, port: int) -> RunResult:
    content = Renderer(CHANNEL_TYPES).render("email", sample_event(Phase.FAILED))
    now = datetime.now(UTC)
    recipients = [RECIPIENT.format(number % 40) for number in range(count)]
    mails = [
        (name, compose(Message(key=f"{number:032}", recipients=(name,), content=content, created_at=now), SENDER))
        for number, name in enumerate(recipients)
    ]
    return event_loop.run(_over_kept_connections(mails, port))


async def _over_kept_connections(mails: list[tuple[str, bytes]], port: int) -> RunResult:
    connections = [aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) for _ in range(CONNECTIONS)]
    for connection in connections:
        await connection.connect()
    free = list(connections)

    async def send(mail: tuple[str, bytes]) -> None:
        connection = free.pop()
        await connection.sendmail(ENVELOPE, [mail[0]], mail[1])
        free.append(connection)

    result = await run_concurrently(CONNECTIONS, mails, send)
    for connection in connections:
        await connection.quit()
    return result


def _through_apprise(count: int, port: int) -> RunResult:
    import apprise  # noqa: PLC0415 - the import takes a second

    socket.getfqdn = lambda _name="": "bench"  # apprise calls it for each mail, and the resolver may be slow
    content = Renderer(CHANNEL_TYPES).render("email", sample_event(Phase.FAILED))
    notifier = apprise.Apprise()
    notifier.add(f"mailto://127.0.0.1:{port}/?from={ENVELOPE}&to={RECIPIENT.format(0)}&mode=insecure&format=html")
    for service in notifier:
        service.request_rate_per_sec = 0  # otherwise it waits seconds between two mails

    async def send(number: int) -> None:
        await notifier.async_notify(title=f"train-n{number}", body=content["html"])

    return asyncio.run(run_concurrently(CONNECTIONS, range(count), send))
