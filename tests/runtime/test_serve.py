"""`dispatcher serve` in its own process: what it says at its start, and signals other than those that stop it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp

from tests.support.console import serve_console
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
