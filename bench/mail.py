"""Mails a second through the dispatcher, from event to settled delivery, beside who else sends mail.

The rivals: bare aiosmtplib with ready-made bytes over as many kept connections; Debian's Alertmanager, with an alert for
each event, its mail templates and a connection a mail, as it comes; apprise. All run on one core, the relay on another.
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
from bench.figures import Figure, Goal, Missing, interleaved
from bench.providers import Manner, Provider, Relay, providing
from bench.sides import apart, by_hands, checked, compared
from bench.storm import Ran, carry
from channels.contract import Message
from channels.email import compose
from dispatcher.model.phase import Phase
from dispatcher.rendering import Renderer
from dispatcher.rendering.renderer import sample_event
from dispatcher.runtime import event_loop

MAILS = 4_000
SLOW_MAILS = 10_000
"""Where the relay takes its time: the first and the last of a run find no neighbours, and count for less among so many."""
CONNECTIONS = 50
TAKES = 0.05
CEILING = CONNECTIONS / TAKES
"""Mails a second that so many connections to a relay that takes so long can carry."""
SENDER, ENVELOPE, RECIPIENT = "Flyte <flyte@example.com>", "flyte@example.com", "team{}@example.com"


def figures(rounds: int, *, smoke: bool) -> Iterable[Figure | Missing]:
    count = 200 if smoke else MAILS
    yield from _at_once(rounds, count)
    yield from _pipelined(rounds, count // 4)  # Alertmanager takes long over these
    yield from _slow(rounds, 200 if smoke else SLOW_MAILS)
    yield from _limited(rounds, count // 4)


def _at_once(rounds: int, count: int) -> Iterator[Figure | Missing]:
    yield from alertmanager.missing("mail", "0 ms")
    few = max(count // 100, 5)
    with providing(Relay, Manner()) as relay:
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
        yield from compared("mail", "0 ms", baseline, found["ours"], found[baseline], Goal("at least", goals[baseline]))


def _pipelined(rounds: int, count: int) -> Iterator[Figure | Missing]:
    yield from alertmanager.missing("mail", "0 ms, PIPELINING")
    with providing(Relay, Manner(pipelining=True)) as relay:
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
        yield from compared("mail", "0 ms, PIPELINING", baseline, found["ours"], found[baseline], goals[baseline])


def _slow(rounds: int, count: int) -> Iterator[Figure | Missing]:
    with providing(Relay, Manner(takes=TAKES)) as relay:
        found = interleaved(rounds, {"ours": partial(_ours, count, relay), "aiosmtplib": partial(_bare, count, relay)})
    work = f"50 ms, {CONNECTIONS} connections"
    ceiling = [Ran(count, count / CEILING, 0.0)] * rounds
    yield next(
        compared("mail", work, f"the ceiling of {CEILING:,.0f}/s", found["ours"], ceiling, Goal("at least", 0.9))
    )
    yield from compared("mail", work, "aiosmtplib", found["ours"], found["aiosmtplib"])


def _limited(rounds: int, count: int) -> Iterator[Figure | Missing]:
    """A relay that refuses the 51st connection: ours is told of no limit but its own."""
    work = f"50 ms, no more than {CONNECTIONS} connections taken"
    yield from alertmanager.missing("mail", work)
    if not alertmanager.installed():
        return
    with providing(Relay, Manner(takes=TAKES, most_connections=CONNECTIONS)) as relay:
        found = interleaved(rounds, {"ours": partial(_ours, count, relay), **_alertmanager(count, relay)})
    yield from compared("mail", work, "Alertmanager", found["ours"], found["Alertmanager"], Goal("at least", 2))


def _ours(count: int, relay: Provider) -> Ran:
    section = {
        "host": "127.0.0.1",
        "port": relay.port,
        "security": "none",
        "connections": CONNECTIONS,
        "concurrency": CONNECTIONS,
        "from": SENDER,
    }
    return checked(relay, count, lambda: apart(carry, count, "email", section, RECIPIENT))


def _bare(count: int, relay: Provider) -> Ran:
    return checked(relay, count, lambda: apart(_through_aiosmtplib, count, relay.port))


def _apprise(count: int, relay: Provider) -> Ran:
    return checked(relay, count, lambda: apart(_through_apprise, count, relay.port))


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


def _through_aiosmtplib(count: int, port: int) -> Ran:
    content = Renderer().render("email", sample_event(Phase.FAILED))
    now = datetime.now(UTC)
    recipients = [RECIPIENT.format(number % 40) for number in range(count)]
    mails = [
        (name, compose(Message(key=f"{number:032}", recipients=(name,), content=content, created_at=now), SENDER))
        for number, name in enumerate(recipients)
    ]
    return event_loop.run(_over_kept_connections(mails, port))


async def _over_kept_connections(mails: list[tuple[str, bytes]], port: int) -> Ran:
    lines = [aiosmtplib.SMTP(hostname="127.0.0.1", port=port, start_tls=False) for _ in range(CONNECTIONS)]
    for line in lines:
        await line.connect()
    free = list(lines)

    async def send(mail: tuple[str, bytes]) -> None:
        line = free.pop()
        await line.sendmail(ENVELOPE, [mail[0]], mail[1])
        free.append(line)

    ran = await by_hands(CONNECTIONS, mails, send)
    for line in lines:
        await line.quit()
    return ran


def _through_apprise(count: int, port: int) -> Ran:
    import apprise  # noqa: PLC0415 - it takes a second

    socket.getfqdn = lambda _name="": "bench"  # it asks the machine's resolver for each mail, which may be away
    content = Renderer().render("email", sample_event(Phase.FAILED))
    teller = apprise.Apprise()
    teller.add(f"mailto://127.0.0.1:{port}/?from={ENVELOPE}&to={RECIPIENT.format(0)}&mode=insecure&format=html")
    for service in teller:
        service.request_rate_per_sec = 0  # it would rest for seconds between two mails

    async def send(number: int) -> None:
        await teller.async_notify(title=f"train-n{number}", body=content["html"])

    return asyncio.run(by_hands(CONNECTIONS, range(count), send))
