"""A running replica keeps its row in the ledger, which `check --live` reads."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import aiohttp

from dispatcher.flyte.encode import Format, write
from dispatcher.ledger import Ledger
from dispatcher.model.replica import Replica
from dispatcher.version import __version__
from tests.support.builders import a_failure
from tests.support.running import running
from tests.support.service import command, free_port
from tests.support.waiting import until


async def test_a_replica_writes_how_it_is_and_leaves_no_row_behind(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    mail = {"host": "127.0.0.1", "port": free_port(), "security": "none", "from": "flyte@example.com"}
    settings: dict[str, Any] = {"ledger": {"url": url}, "channels": {"email": mail}}
    async with Ledger(url) as ledger:

        async def row(*, breaker_open: bool) -> Replica | None:
            for one in await ledger.replicas.all():
                if (one.channels["email"].breaker_open_since is not None) == breaker_open:
                    return one
            return None

        async with running(tmp_path, settings) as address:
            started = await until(lambda: row(breaker_open=False))
            assert (started.name, started.version) == (f"{socket.gethostname()}:{os.getpid()}", __version__)
            assert (started.clock_offset, started.lag) == (0, None)
            assert started.components.keys() >= {"worker email", "rules", "retention", "watchdog"}
            assert {*started.components.values()} == {None}

            message = write(a_failure("refused"), Format.NATIVE)
            headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
            async with aiohttp.ClientSession() as session:
                await session.post(f"{address}/events", data=message.value, headers=headers)
            failing = await until(lambda: row(breaker_open=True))
            probe = failing.channels["email"].next_probe_at
            assert probe is not None
            assert probe > started.seen_at
            assert failing.started_at == started.started_at

            _, said, _ = await command("check", "--live", "--config", str(tmp_path / "dispatcher.yaml"))
            assert f"ledger     ok: replica {started.name} runs, version {__version__}\n" in said
            assert f"ledger     warning: replica {started.name}: the circuit breaker of email is open since " in said
        assert await ledger.replicas.all() == []
