"""`dispatcher serve` in its own process: what it says at its start, and signals other than those that stop it."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import aiohttp

from dispatcher.flyte.encode import Format, write
from tests.support.builders import a_launch_plan, an_event
from tests.support.console import serve_console
from tests.support.running import running
from tests.support.service import command, serving
from tests.support.waiting import until


async def test_a_hangup_is_ignored_and_deliveries_of_a_removed_channel_are_named(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with serve_console(url) as console:
        await console.finish("one", channels=["slack", "email"])
        await console.deliver("email")
    email = {"host": "127.0.0.1", "port": 9, "security": "none", "from": "flyte@example.com"}
    settings = {"ledger": {"url": url}, "channels": {"email": email}, "log": "json"}
    named = "1 delivery waits for the channel slack, which is not in the settings: add channels.slack to send them"
    async with serving(tmp_path, settings) as replica, aiohttp.ClientSession() as session:
        await until(lambda: named in replica.log)
        replica.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(20):
            while "SIGHUP is ignored" not in replica.log:
                await asyncio.sleep(0.05)
        async with session.get(f"{replica.url}/healthz") as answer:
            assert answer.status == 200
    _, out, _ = await command("check", "--live", "--config", str(tmp_path / "dispatcher.yaml"))
    assert f"ledger     warning: {named}" in out


async def test_streaks_are_forgotten_once_no_route_has_one(tmp_path: Path) -> None:
    routes = tmp_path / "routes.yaml"
    settings = {
        "ledger": {"url": f"sqlite+aiosqlite:///{tmp_path}/ledger.db"},
        "rules": {"routes": [str(routes)]},
        "channels": {"email": {"host": "127.0.0.1", "port": 9, "security": "none", "from": "flyte@example.com"}},
    }
    mail = "notify: [{email: [a@example.com]}]"
    message = write(an_event(launch_plan=a_launch_plan()), Format.NATIVE)
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}

    def counted(wanted: bool) -> bool:
        with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
            found = connection.execute("SELECT 1 FROM subjects WHERE failed_at IS NOT NULL").fetchall()
        return bool(found) is wanted

    routes.write_text(f"routes: [{{name: a, match: {{phase: FAILED}}, {mail}, streak: 2}}]")
    async with running(tmp_path, settings) as url, aiohttp.ClientSession() as session:
        await session.post(f"{url}/events", data=message.value, headers=headers)
    for text, kept in (("routes: [", True), (f"routes: [{{name: a, match: {{phase: FAILED}}, {mail}}}]", False)):
        routes.write_text(text)
        async with running(tmp_path, settings):
            await until(partial(counted, kept))
        assert counted(kept)
