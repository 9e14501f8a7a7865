"""A launch plan's mails: two failures and a success are one thread, whatever happens between them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from dispatcher.demo.fakes.inbox import MailReceiver
from dispatcher.flyte.encode import Format, write
from dispatcher.model.event import Event
from dispatcher.model.phase import Phase
from tests.support.builders import a_launch_plan, an_event
from tests.support.service import Replica, free_port, serving

RUNS = (("one", Phase.FAILED), ("two", Phase.FAILED), ("three", Phase.SUCCEEDED))
PLAN = """
launch_plan: {project: flytesnacks, domain: production, name: train.daily}
notifications:
  - phases: [FAILED, SUCCEEDED]
    email: {recipients_email: [dev-team@example.com]}
"""


def settings(folder: Path, port: int) -> dict[str, Any]:
    (folder / "plan.yaml").write_text(PLAN)
    relays = [{"host": "127.0.0.1", "port": free_port()}, {"host": "127.0.0.1", "port": port}]
    mail = {"relays": relays, "security": "none", "from": "flyte@example.com", "retry": {"initial": "50ms"}}
    return {
        "ledger": {"url": f"sqlite+aiosqlite:///{folder}/ledger.db"},
        "rules": {"launch_plans": [str(folder / "plan.yaml")]},
        "channels": {"email": mail},
    }


async def publish(replica: Replica, event: Event) -> None:
    message = write(event, Format.NATIVE)
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{replica.url}/events", data=message.value, headers=headers) as answer,
    ):
        assert answer.status < 300, await answer.text()


async def arrived(relay: MailReceiver, count: int) -> None:
    async with asyncio.timeout(30):
        while len(relay.mails) < count:
            await asyncio.sleep(0.05)


async def test_two_failures_and_a_success_are_one_thread_through_restarts_and_a_relay_outage(
    tmp_path: Path,
) -> None:
    relay = MailReceiver()
    await relay.start(0)
    port = relay.port
    config = settings(tmp_path, port)
    for number, (name, phase) in enumerate(RUNS, start=1):
        if number == 2:
            await relay.__aexit__(None, None, None)
        async with serving(tmp_path, config) as replica:
            await publish(replica, an_event(phase, name=name, launch_plan=a_launch_plan()))
            if number == 2:
                async with asyncio.timeout(30):
                    while "not sent yet" not in replica.log:
                        await asyncio.sleep(0.05)
                await relay.start(port)
            await arrived(relay, number)
    await relay.__aexit__(None, None, None)

    mails = [mail.parsed for mail in relay.mails]
    assert len({mail["message-id"] for mail in mails}) == len(mails) == 3
    (thread,) = {mail["references"] for mail in mails}
    assert thread not in {mail["message-id"] for mail in mails}
    assert {mail["list-id"] for mail in mails} == {"<train.daily.production.flytesnacks.example.com>"}
