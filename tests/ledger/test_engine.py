"""Everything that can be wrong with a ledger's database: one clear error, nothing half-written, recovery by itself."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import socket
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.event import listen, remove

from dispatcher.errors import DispatcherError, LedgerIncompatible, LedgerUnavailable
from dispatcher.ledger import Filter, Ledger
from dispatcher.ledger.engine import Database
from dispatcher.ledger.schema import metadata
from dispatcher.model.delivery import Delivery
from tests.support import samples
from tests.support.builders import NOW, SECOND, a_delivery, an_event
from tests.support.ledger_steps import (
    MINUTE,
    SENT,
    an_event_to_record,
    claim,
    recorded,
    rejected,
    run_command,
    settings_file,
    settlement,
    unprivileged,
)
from tests.support.postgres import Cluster
from tests.support.servers import TcpProxy
from tests.support.service import serving

PASSWORD = "s3cret-of-the-ledger"


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Cluster]:
    """A PostgreSQL server that a test may kill."""
    cluster = Cluster()
    cluster.demand_password("guest")
    cluster.start()
    yield cluster
    cluster.remove()


@pytest.fixture
async def own_url(own_postgres: Cluster) -> str:
    """A fresh, empty database on `own_postgres`."""
    admin = await asyncpg.connect(_plain(own_postgres.url))
    await admin.execute("DROP DATABASE IF EXISTS ledger WITH (FORCE)")
    await admin.execute("CREATE DATABASE ledger")
    await admin.close()
    return make_url(own_postgres.url).set(database="ledger").render_as_string(hide_password=False)


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


async def rows(url: str) -> dict[str, int]:
    """The number of rows in each table, as another connection sees it."""
    database = Database(url)
    try:
        async with database.reading() as connection:
            return {
                table.name: await connection.scalar(select(func.count()).select_from(table)) or 0
                for table in metadata.sorted_tables
            }
    finally:
        await database.aclose()


# -- tables of other versions and programs


async def test_every_command_refuses_a_ledger_from_a_newer_version_in_one_sentence(
    ledger_url: str, tmp_path: Path
) -> None:
    database = Database(ledger_url)
    await database.migrate()
    async with database.writing() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999_00000000'"))
        await connection.execute(text("UPDATE compatibility SET oldest = '9999_00000000'"))
    await database.aclose()

    config = settings_file(tmp_path, ledger_url)
    for command in (["serve"], ["deliveries", "list"]):
        status, said = await run_command(*command, "--config", config)
        assert (status, said.count("\n")) == (1, 1), said
        assert said.startswith("dispatcher: the ledger is at version 9999_00000000")
        assert "made by a newer one; upgrade this one" in said


async def test_a_database_with_another_programs_tables_is_refused_and_left_alone(ledger_url: str) -> None:
    database = Database(ledger_url)
    async with database.writing() as connection:
        await connection.execute(text("CREATE TABLE deliveries (parcel INTEGER)"))
        await connection.execute(text("INSERT INTO deliveries VALUES (7)"))
    ledger = Ledger(ledger_url)
    with pytest.raises(LedgerIncompatible, match=r"ledger\.url: .* has another program's tables .*deliveries.* exists"):
        await ledger.open()
    await ledger.aclose()

    async with database.writing() as connection:
        assert await connection.scalar(text("SELECT parcel FROM deliveries")) == 7
        await connection.execute(text("CREATE TABLE events (its INTEGER)"))  # our `events` was rolled back
    await database.aclose()


# -- invalid URLs


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "ledger.url: not a database URL"),
        ("", "ledger.url: not a database URL"),
        ("postgresql://u:{password}@h:port/x", "ledger.url: not a database URL"),
        ("mysql://u:{password}@h/x", "no such kind of ledger, 'mysql'; there are sqlite and postgresql"),
        ("https://u:{password}@h/x", "no such kind of ledger, 'https'"),
        ("sqlite://", "ledger.url: names no file"),
        ("sqlite://ledger.db", "ledger.url: names no file"),
        ("sqlite:///{folder}/ledger.db?mode=ro", "ledger.url: a file takes no options, and there is 'mode'"),
        ("sqlite:///{folder}/missing/ledger.db", "ledger.url: no such folder: {folder}/missing"),
        ("sqlite:///{folder}/file/ledger.db", "ledger.url: no such folder: {folder}/file"),
        ("sqlite:///{folder}", "ledger.url: {folder} is a folder; name a file in it"),
        ("sqlite:///{folder}/{long}", "File name too long"),
        ("sqlite:///{folder}/a\0b", "ledger.url: '{folder}/a.x00b' can't be the name of a file"),
        ("sqlite:///{folder}/\ud800", "can't be the name of a file"),
        ("sqlite:///{folder}/file", "ledger.url: the file {folder}/file can't be used now: file is not a database"),
        ("postgresql://u:{password}@no-such-host.invalid/x", "PostgreSQL at no-such-host.invalid .*: no such host"),
        ("postgresql://u:{password}@127.0.0.1:1/x", "PostgreSQL at 127.0.0.1:1 can't be used now: Connection refused"),
        ("postgresql://u:{password}@127.0.0.1:99999/x", "no such port: ports are 1 to 65535"),
        ("postgresql://u:{password}@127.0.0.1:1/x?colour=red", "can't be connected to: .* argument 'colour'"),
        (
            "postgresql://dispatcher:{password}@{postgres}/nowhere",
            'PostgreSQL at .*: database "nowhere" does not exist',
        ),
        ("postgresql://guest:{password}@{postgres}/postgres", 'password authentication failed for user "guest"'),
        ("postgresql://guest@{postgres}/postgres", 'password authentication failed for user "guest"'),
        ("postgresql://u:{password}@{postgres}/postgres", 'role "u" does not exist'),
        ("postgresql://dispatcher:{password}@{postgres}/postgres?ssl=require", "rejected SSL upgrade"),
        ("postgresql://u:{password}@{silent}/x", "PostgreSQL at .*: .*[Cc]onnection"),
    ],
)
async def test_a_wrong_url_is_one_sentence_that_names_the_setting_and_no_password(
    url: str, words: str, tmp_path: Path, own_postgres: Cluster
) -> None:
    (tmp_path / "file").write_text("not a database, but long enough for one " * 50)

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as silent:
        server = make_url(own_postgres.url)
        values = {
            "password": PASSWORD,
            "folder": tmp_path,
            "long": "x" * 300,
            "postgres": f"{server.host}:{server.port}",
            "silent": f"127.0.0.1:{silent.sockets[0].getsockname()[1]}",
        }
        with pytest.raises(DispatcherError, match=words.format(**values)) as caught:
            async with Ledger(url.format(**values)):
                pass

    said = str(caught.value)
    assert said.startswith("ledger.url: ")
    assert PASSWORD not in said
    assert "\n" not in said


@pytest.mark.parametrize("before", ["", "import sys; sys.modules['asyncpg'] = None"])
async def test_serve_stops_with_one_message_if_the_url_does_not_work(
    before: str, tmp_path: Path, own_postgres: Cluster
) -> None:
    short_timeout = f"{before}\nfrom dispatcher.runtime import migration\nmigration.TIMEOUT = 0.5"
    server = make_url(own_postgres.url)
    if before:
        urls = {f"postgresql://u:{PASSWORD}@h/x": "PostgreSQL needs the extra: pip install"}
    else:
        urls = {
            "nonsense": "not a database URL",
            f"sqlite:///{tmp_path}/missing/ledger.db": "no such folder",
            f"postgresql://u:{PASSWORD}@{PASSWORD}@h/x": "two @ are in it",
            f"postgresql://u:{PASSWORD}@no-such-host.invalid/x": "no such host",
            f"postgresql://guest:{PASSWORD}@{server.host}:{server.port}/postgres": "password authentication failed",
        }
    files = {settings_file(tmp_path, url, f"{number}"): words for number, (url, words) in enumerate(urls.items())}
    async with asyncio.TaskGroup() as group:
        commands = {
            group.create_task(run_command("serve", "--config", file, before=short_timeout)): words
            for file, words in files.items()
        }

    for finished, words in commands.items():
        status, said = finished.result()
        assert status == 1
        *before_that, last = said.splitlines()
        assert "ledger.url: " in last
        assert words in last
        assert all('"event":"waiting for the ledger"' in line and words in line for line in before_that), said
        assert PASSWORD not in said


# -- a file that is locked, read-only, or on a full disk


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every account may read; pytest's own folders are private."""
    path = Path(tempfile.mkdtemp(prefix="dispatcher-ledger-"))
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


def allow(path: Path, mode: int) -> None:
    """Set the mode of a folder, or of a file and the files that SQLite creates next to it."""
    for file in [path] if path.is_dir() else path.parent.glob(f"{path.name}*"):
        file.chmod(mode)


def listed(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


@pytest.mark.slow
async def test_a_locked_file_is_reported_after_one_wait_however_many_writers_there_are(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with Ledger(url) as ledger:
        await ledger.record([an_event_to_record("first")], [], now=NOW)
        (delivery,) = await claim(ledger)
        before = await rows(url)
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            began = asyncio.get_running_loop().time()
            attempts: list[Awaitable[Any]] = [
                ledger.record([an_event_to_record("second")], [rejected()], now=NOW),
                claim(ledger, now=NOW + 2 * MINUTE),
                ledger.settle(settlement(delivery, SENT)),
                ledger.release(delivery, due_at=NOW),
                ledger.checkpoints.ping(now=NOW),
            ]
            results = await asyncio.gather(*attempts, return_exceptions=True)
            assert asyncio.get_running_loop().time() - began < 15
            assert all(isinstance(result, LedgerUnavailable) for result in results)
            assert "database is locked" in str(results[0])
            assert len(await ledger.history.find(Filter(), limit=5)) == 1  # reads do not wait
            assert await rows(url) == before
            other.execute("ROLLBACK")

        assert await ledger.settle(settlement(delivery, SENT))
        assert len((await ledger.record([an_event_to_record("second")], [], now=NOW)).new) == 1


async def test_a_ping_detects_a_full_disk(tmp_path: Path) -> None:
    """Even if nothing else is written: readiness must report it before an event arrives."""
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.checkpoints.ping(now=NOW)
        size = (tmp_path / "ledger.db-wal").stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(LedgerUnavailable, match="can't be used now"):
                await ledger.checkpoints.ping(now=NOW + MINUTE)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await ledger.checkpoints.ping(now=NOW + MINUTE)


async def test_writes_cancelled_on_a_locked_file_leave_no_lock(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            for _ in range(8):  # more than the pool has connections
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await ledger.checkpoints.ping(now=NOW)
            other.execute("ROLLBACK")
        async with asyncio.timeout(5):
            await ledger.checkpoints.ping(now=NOW)


async def test_a_read_only_folder_is_reported_and_works_once_it_is_writable(folder: Path) -> None:
    ledger = Ledger(f"sqlite+aiosqlite:///{folder}/ledger.db")
    allow(folder, 0o555)
    message = rf"ledger\.url: the file {folder}/ledger\.db .*: unable to open"
    with unprivileged(), pytest.raises(LedgerUnavailable, match=message):
        await ledger.open()
    assert listed(folder) == []
    allow(folder, 0o777)
    with unprivileged():
        await ledger.open()
        assert len((await ledger.record([an_event_to_record("first")], [], now=NOW)).new) == 1
    await ledger.aclose()


async def test_a_read_only_file_is_reported_and_works_once_it_is_writable(folder: Path) -> None:
    url = f"sqlite+aiosqlite:///{folder}/ledger.db"
    async with Ledger(url) as first:
        await first.record([an_event_to_record("first")], [], now=NOW)
    allow(folder, 0o777)
    allow(folder / "ledger.db", 0o444)
    with unprivileged():
        ledger = Ledger(url)
        await ledger.open()
        for call in (
            ledger.checkpoints.ping(now=NOW),
            claim(ledger),
            ledger.record([an_event_to_record("second")], [rejected()], now=NOW),
        ):
            with pytest.raises(
                LedgerUnavailable, match=r"ledger\.url: the file .*: attempt to write a readonly database"
            ):
                await call
        assert len(await ledger.history.find(Filter(), limit=5)) == 1
    allow(folder / "ledger.db", 0o666)
    with unprivileged():
        with suppress(LedgerUnavailable):
            await ledger.checkpoints.ping(now=NOW)  # the pool may still have a connection that was opened read-only
        (delivery,) = await claim(ledger)
        assert await ledger.settle(settlement(delivery, SENT))
        await ledger.aclose()


async def test_a_full_disk_leaves_nothing_half_written_and_then_works_again(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with Ledger(url) as ledger:
        await ledger.record([an_event_to_record("first")], [], now=NOW)
        (delivery,) = await claim(ledger)
        before = await rows(url)

        event = an_event(name="large")
        large = [
            a_delivery(event, to=f"{number}@example.com", content={"text": os.urandom(900).hex()})
            for number in range(99)
        ]
        refused = r"ledger\.url: the file .*: database or disk is full"
        with full_disk(), pytest.raises(LedgerUnavailable, match=refused):
            await ledger.record([recorded(*large, event=event)], [], now=NOW)
        assert await rows(url) == before
        follow_ups = [follow_up._replace(event=delivery.event) for follow_up in large]
        with_follow_ups = settlement(delivery, SENT, *follow_ups)
        with full_disk(), pytest.raises(LedgerUnavailable, match=refused):
            await ledger.settle(with_follow_ups)
        assert await rows(url) == before

        assert await ledger.settle(with_follow_ups)
        assert (await rows(url))["deliveries"] == 100


@contextmanager
def full_disk() -> Iterator[None]:
    """Give SQLite's files no new page in the block. The limit ends with the connection, which the failed write closes."""

    def limit(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # if there are more already, SQLite allows no new ones

    listen(Engine, "begin", limit)
    try:
        yield
    finally:
        remove(Engine, "begin", limit)


async def test_a_service_on_a_full_disk_answers_503_and_continues_once_there_is_space(tmp_path: Path) -> None:
    """A limit on the size of the process's files, which is later removed."""
    async with serving(tmp_path, {"log": "json"}) as replica, aiohttp.ClientSession() as session:

        async def post() -> tuple[int, str | None]:
            headers, value = samples.sample("v2-workflow-failed-enriched")
            shown = {key.replace("ce_", "ce-"): one.decode() for key, one in headers}
            body = value.replace(b"production", b"x" * 9 + str(len(answers)).encode())
            async with session.post(f"{replica.url}/events", data=body, headers=shown) as answer:
                return answer.status, answer.headers.get("Retry-After")

        answers: list[tuple[int, str | None]] = []
        limit = 2 * 1024**2  # the log file is longer, but has less data than this
        resource.prlimit(replica.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        while not answers or answers[-1][0] == 202:
            answers.append(await post())
            assert len(answers) < 500
        assert answers[0][0] == 202
        assert answers[-1] == (503, "5")
        accepted = len(answers) - 1

        resource.prlimit(replica.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (await post())[0] == 202
    url = f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db"
    counted = await rows(url)
    assert "Traceback" not in replica.log
    assert counted["rejected"] + counted["events"] == accepted + 1


# -- lost connections


@asynccontextmanager
async def locked(url: str, table: str) -> AsyncIterator[asyncpg.Connection]:
    """Lock a table: a transaction that reaches it stays open, half done."""
    admin = await asyncpg.connect(_plain(url))
    await admin.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
    try:
        yield admin
    finally:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await admin.execute("ROLLBACK")
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await admin.close()


async def processes_waiting_for_a_lock(url: str, number: int = 1) -> Sequence[int]:
    """Wait until `number` server processes wait for a lock; return their process ids."""
    watcher = await asyncpg.connect(_plain(url))
    query = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    try:
        async with asyncio.timeout(20):
            while len(found := await watcher.fetch(query)) < number:
                await asyncio.sleep(0.02)
        return [row["pid"] for row in found]
    finally:
        await watcher.close()


Call = Callable[[Ledger, Delivery], Awaitable[Any]]
CALLS: dict[str, tuple[Call, str]] = {
    "record": (lambda ledger, _: ledger.record([an_event_to_record("second")], [rejected()], now=NOW), "contents"),
    "claim": (lambda ledger, _: claim(ledger, now=NOW + 2 * MINUTE), "contents"),
    "settle": (lambda ledger, claimed: ledger.settle(settlement(claimed, SENT)), "attempts"),
    "release": (lambda ledger, claimed: ledger.release(claimed, due_at=NOW), "deliveries"),
    "purge": (lambda ledger, _: ledger.purge(NOW + MINUTE, limit=5), "rejected"),
}
"""Methods that write, each with the last table that it writes to, so that a lock on it stops the call halfway."""


async def assert_unchanged(ledger: Ledger, claimed: Delivery) -> None:
    """The interrupted call left no trace."""
    found = {stored.delivery.key: stored.delivery for stored in await ledger.history.find(Filter(), limit=10)}
    assert found[claimed.key] == claimed
    assert await ledger.history.attempts(claimed.key) == []
    assert [delivery.lease for delivery in found.values()].count(None) == 1


async def one_claimed_one_waiting(ledger: Ledger) -> Delivery:
    """Record two deliveries and claim one; return the claimed one."""
    await ledger.record([an_event_to_record("first")], [], now=NOW)
    (claimed,) = await claim(ledger)
    waiting = an_event(name="waiting")
    await ledger.record([recorded(a_delivery(waiting, due_at=NOW + MINUTE), event=waiting)], [rejected("old")], now=NOW)
    return claimed


@pytest.mark.parametrize("method", CALLS)
async def test_a_connection_closed_in_mid_transaction_leaves_nothing_and_the_next_call_succeeds(
    method: str, postgres_url: str
) -> None:
    call, table = CALLS[method]
    async with Ledger(postgres_url) as ledger:
        claimed = await one_claimed_one_waiting(ledger)
        before = await rows(postgres_url)
        async with locked(postgres_url, table) as admin:
            calling = asyncio.ensure_future(call(ledger, claimed))
            (process,) = await processes_waiting_for_a_lock(postgres_url)
            await admin.execute("SELECT pg_terminate_backend($1)", process)
            with pytest.raises(LedgerUnavailable, match=r"ledger\.url: PostgreSQL at .* can't be used now: \w+"):
                await calling
        assert await rows(postgres_url) == before
        await assert_unchanged(ledger, claimed)

        await call(ledger, claimed)


async def test_a_killed_and_restarted_server_leaves_nothing_half_done_and_later_calls_succeed(
    own_postgres: Cluster, own_url: str
) -> None:
    async with Ledger(own_url) as ledger:
        claimed = await one_claimed_one_waiting(ledger)
        before = await rows(own_url)
        calls = [CALLS[method][0] for method in ("record", "claim", "settle")]
        async with locked(own_url, "contents, attempts"):
            running = [asyncio.ensure_future(call(ledger, claimed)) for call in calls]
            await processes_waiting_for_a_lock(own_url, len(calls))
            await asyncio.to_thread(own_postgres.kill)
            results = await asyncio.gather(*running, return_exceptions=True)
        assert [type(result) for result in results] == [LedgerUnavailable] * 3
        for call in calls:
            with pytest.raises(LedgerUnavailable, match="Connection refused"):
                await call(ledger, claimed)

        await asyncio.to_thread(own_postgres.start)
        assert await rows(own_url) == before
        await assert_unchanged(ledger, claimed)
        assert await ledger.settle(settlement(claimed, SENT))
        assert len((await ledger.record([an_event_to_record("second")], [], now=NOW)).new) == 1
        assert len(await claim(ledger, now=NOW + 2 * MINUTE)) == 2


@pytest.mark.parametrize("method", CALLS)
async def test_a_server_process_that_hangs_in_mid_transaction_ends_the_call_with_an_error(
    method: str, own_postgres: Cluster, own_url: str
) -> None:
    call, table = CALLS[method]
    async with Ledger(own_url, timeout=SECOND) as ledger:
        claimed = await one_claimed_one_waiting(ledger)
        before = await rows(own_url)
        async with locked(own_url, table):
            calling = asyncio.ensure_future(call(ledger, claimed))
            (process,) = await processes_waiting_for_a_lock(own_url)
            os.kill(process, signal.SIGSTOP)
            try:
                async with asyncio.timeout(10):
                    with pytest.raises(
                        LedgerUnavailable, match=r"PostgreSQL at .* can't be used now: no answer in time"
                    ):
                        await calling
            finally:
                os.kill(process, signal.SIGCONT)
        assert await rows(own_url) == before
        await assert_unchanged(ledger, claimed)

        await call(ledger, claimed)


async def test_dead_pooled_connections_are_replaced_together_and_no_call_fails(
    own_postgres: Cluster, own_url: str
) -> None:
    url = make_url(own_url)
    assert url.port is not None
    async with TcpProxy(url.port) as proxy:
        through = url.set(port=proxy.port).render_as_string(hide_password=False)
        async with Ledger(through, timeout=SECOND) as ledger:
            await one_claimed_one_waiting(ledger)
            await asyncio.gather(*(ledger.history.newest() for _ in range(5)))  # fill the pool
            proxy.cut()
            for _ in range(10):
                async with asyncio.timeout(5):
                    assert await ledger.history.newest() is not None


async def test_a_cancelled_call_returns_its_connection_even_if_the_server_hangs(
    own_postgres: Cluster, own_url: str
) -> None:
    url = make_url(own_url)
    assert url.port is not None
    async with TcpProxy(url.port) as proxy:
        through = url.set(port=proxy.port).render_as_string(hide_password=False)
        async with Ledger(through) as ledger:
            proxy.cut()
            began = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await ledger.checkpoints.ping(now=NOW)
            assert asyncio.get_running_loop().time() - began < 5


@pytest.mark.slow
async def test_a_server_that_does_not_answer_is_reported_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ledger = Ledger(f"postgresql://u:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/x")
        async with asyncio.timeout(15):
            with pytest.raises(LedgerUnavailable, match="no answer in time"):
                await ledger.open()
        await ledger.aclose()


async def test_a_user_who_may_not_create_tables_gets_an_error_and_nothing_is_created(
    own_postgres: Cluster, own_url: str
) -> None:
    admin = await asyncpg.connect(_plain(own_url))
    await admin.execute("DROP ROLE IF EXISTS reader")
    await admin.execute("CREATE ROLE reader LOGIN")
    await admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    ledger = Ledger(make_url(own_url).set(username="reader").render_as_string(hide_password=False))
    with pytest.raises(LedgerUnavailable, match=r"ledger\.url: PostgreSQL at .*: permission denied for schema public"):
        await ledger.open()
    await admin.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    await ledger.open()
    assert len((await ledger.record([an_event_to_record("first")], [], now=NOW)).new) == 1
    await ledger.aclose()
    await admin.close()


async def test_a_changed_password_file_is_used_for_the_next_connection(
    own_postgres: Cluster, own_url: str, tmp_path: Path
) -> None:
    admin = await asyncpg.connect(_plain(own_url))
    await admin.execute("CREATE ROLE guest LOGIN SUPERUSER PASSWORD 'first-password'")
    file = tmp_path / "password"
    file.write_text("first-password\n")
    try:
        guest_url = make_url(own_url).set(username="guest").render_as_string(hide_password=False)
        async with Ledger(guest_url, password_file=file) as ledger:
            await ledger.checkpoints.ping(now=NOW)
            await admin.execute("ALTER ROLE guest PASSWORD 'second-password'")
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'guest'")
            with pytest.raises(LedgerUnavailable) as caught:
                await ledger.checkpoints.ping(now=NOW)
            assert "-password" not in str(caught.value)
            file.write_text("second-password\n")
            await ledger.checkpoints.ping(now=NOW)
    finally:
        await admin.execute("REASSIGN OWNED BY guest TO dispatcher")
        await admin.execute("DROP ROLE guest")
        await admin.close()
