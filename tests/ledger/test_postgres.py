"""What is special about PostgreSQL: the encoding, TLS, connection poolers, the clock, the home folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog.testing
import trustme
from sqlalchemy import text
from sqlalchemy.engine import make_url

from dispatcher.errors import DispatcherError, LedgerIncompatible, LedgerUnavailable, SettingsError
from dispatcher.ledger import Ledger
from dispatcher.ledger.engine import Database
from dispatcher.observability.clock_monitor import ClockMonitor
from dispatcher.observability.metrics import Metrics
from tests.support import pgbouncer as pgbouncer_support
from tests.support.builders import NOW, SECOND
from tests.support.clock import ManualClock
from tests.support.ledger_steps import (
    SENT,
    an_event_to_record,
    claim,
    run_command,
    settings_file,
    settlement,
    unprivileged,
)
from tests.support.metrics import scraped
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres import Cluster
from tests.support.service import serving

# -- encoding


@pytest.fixture
async def latin1_url(postgres_server: str) -> AsyncIterator[str]:
    """A fresh database in LATIN1."""
    name = f"latin1_{os.getpid()}"
    admin = await asyncpg.connect(plain(postgres_server))
    await admin.execute(f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


def plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


async def test_a_database_that_cannot_store_every_text_is_refused(latin1_url: str, tmp_path: Path) -> None:
    with pytest.raises(
        LedgerIncompatible, match=r"^ledger\.url: the database's encoding must be UTF8, and it is LATIN1"
    ):
        async with Ledger(latin1_url):
            pass
    config = settings_file(tmp_path, latin1_url)
    commands = [run_command(*command, "--config", config) for command in (["check", "--live"], ["serve"])]
    for status, said in await asyncio.gather(*commands):
        assert status == 1
        assert "ledger.url: the database's encoding must be UTF8, and it is LATIN1: create it again" in said
        assert "Traceback" not in said
    database = await asyncpg.connect(plain(latin1_url))
    assert await database.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    await database.close()


# -- connection poolers

needs_pgbouncer = pytest.mark.skipif(bool(pgbouncer_support.missing()), reason=pgbouncer_support.missing())


@needs_pgbouncer
async def test_replicas_work_through_pgbouncer_in_transaction_mode(postgres_url: str) -> None:
    with pgbouncer(postgres_url, connections=3) as url:
        async with Ledger(url) as one, Ledger(url) as two:
            sent: list[str] = []

            async def record_and_send(ledger: Ledger, number: int) -> None:
                await ledger.record([an_event_to_record(f"e{number}")], [], now=NOW)
                for delivery in await claim(ledger):
                    assert await ledger.settle(settlement(delivery, SENT))
                    sent.append(delivery.key)
                await ledger.checkpoints.ping(now=NOW)

            await asyncio.gather(*(record_and_send((one, two)[number % 2], number) for number in range(40)))
            while remaining := await claim(one):
                for delivery in remaining:
                    assert await one.settle(settlement(delivery, SENT))
                    sent.append(delivery.key)
    assert len(sent) == len(set(sent)) == 40


@needs_pgbouncer
async def test_the_service_runs_through_pgbouncer(postgres_url: str, tmp_path: Path) -> None:
    with pgbouncer(postgres_url, connections=2) as url:
        async with serving(tmp_path, {"ledger": {"url": url}}):
            pass


@needs_pgbouncer
async def test_only_a_pooler_costs_the_prepared_statements(postgres_url: str) -> None:
    async def prepared(url: str) -> int:
        database = Database(url)
        try:
            for _ in range(3):
                async with database.reading() as connection:
                    await connection.execute(text("SELECT 17"))
                    count = await connection.scalar(
                        text("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 17'")
                    )
            return int(count or 0)
        finally:
            await database.aclose()

    assert await prepared(postgres_url) == 1
    with pgbouncer(postgres_url) as url:
        assert await prepared(url) == 0


# -- TLS


class TlsServer:
    """A PostgreSQL server with TLS, and files for its clients."""

    def __init__(self, folder: Path) -> None:
        authority, other = trustme.CA(), trustme.CA()
        certificate = authority.issue_cert("localhost")
        self.roots, self.other_roots = folder / "roots.pem", folder / "other.pem"
        authority.cert_pem.write_to_path(str(self.roots))
        other.cert_pem.write_to_path(str(self.other_roots))
        self.cluster = Cluster()
        self.cluster.offer_tls(certificate.cert_chain_pems[0].bytes(), certificate.private_key_pem.bytes())
        self.cluster.start()

    def url(self, options: str, host: str = "localhost") -> str:
        values = {"roots": self.roots, "other": self.other_roots}
        url = make_url(self.cluster.url).set(host=host).render_as_string(hide_password=False)
        return f"{url}{options.format(**values)}".replace("postgresql+asyncpg", "postgresql")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    server = TlsServer(tmp_path_factory.mktemp("tls"))
    yield server
    server.cluster.remove()


async def is_encrypted(url: str) -> bool:
    database = Database(url)
    try:
        async with database.reading() as connection:
            return bool(await connection.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")))
    finally:
        await database.aclose()


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As libpq, asyncpg reads ~/.postgresql."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "encrypted"),
    [
        ("", True),
        ("?sslmode=disable", False),
        ("?sslmode=allow", False),
        ("?sslmode=prefer", True),
        ("?sslmode=require", True),
        ("?sslmode=require&sslrootcert={roots}", True),
        ("?sslmode=verify-ca&sslrootcert={roots}", True),
        ("?sslmode=verify-full&sslrootcert={roots}", True),
        ("?ssl=require", True),  # asyncpg's own word
    ],
)
async def test_sslmode_means_what_libpq_means(tls_server: TlsServer, options: str, encrypted: bool) -> None:
    assert await is_encrypted(tls_server.url(options)) is encrypted


async def test_only_verify_full_compares_the_host_name(tls_server: TlsServer) -> None:
    roots = f"sslrootcert={tls_server.roots}"
    assert await is_encrypted(tls_server.url(f"?sslmode=verify-ca&{roots}", host="127.0.0.1"))
    with pytest.raises(LedgerUnavailable, match=r"IP address mismatch"):
        await is_encrypted(tls_server.url(f"?sslmode=verify-full&{roots}", host="127.0.0.1"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            "?sslmode=require&sslrootcert={other}",
            "its certificate is not trusted: .*; see sslrootcert",
        ),  # libpq: require with a root is verify-ca
        ("?sslmode=verify-ca&sslrootcert={other}", "its certificate is not trusted: .*; see sslrootcert"),
        ("?sslmode=verify-full", "root certificate file .* does not exist"),
        ("?sslrootcert=system", "its certificate is not trusted: .*; see sslrootcert"),
        ("?sslmode=required", "sslmode=required does not exist; there are disable, allow, prefer, require, verify-ca"),
        ("?sslmode=require&sslmode=disable", "sslmode is there twice"),
        ("?sslmode=require&ssl=require", "ssl and sslmode mean the same; write sslmode"),
        ("?sslmode=require&sslrootcert=system", "too weak for sslrootcert=system; write sslmode=verify-full"),
        ("?sslmode=verify-ca&sslrootcert=/no/such.pem", "sslrootcert=/no/such.pem can't be read: No such file"),
        ("?sslmode=require&sslcert=/no/such.pem", "sslcert=/no/such.pem can't be read: No such file"),
    ],
)
async def test_tls_that_cannot_work_is_one_sentence(tls_server: TlsServer, options: str, problem: str) -> None:
    with pytest.raises(DispatcherError, match=rf"^ledger\.url: .*{problem}") as caught:
        await is_encrypted(tls_server.url(options))
    assert "\n" not in str(caught.value)


async def test_sslmode_require_is_refused_by_a_server_without_tls(postgres_url: str) -> None:
    assert not await is_encrypted(f"{postgres_url}?sslmode=prefer")
    with pytest.raises(LedgerUnavailable, match="rejected SSL upgrade"):
        await is_encrypted(f"{postgres_url}?sslmode=require")


# -- the home folder


async def test_an_unreadable_home_folder_is_no_problem(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tempfile.mkdtemp(prefix="dispatcher-home-")
    monkeypatch.setenv("HOME", home)
    Path(home).chmod(0)  # noqa: ASYNC240 - a test
    try:
        with unprivileged():
            for options in ("", "?sslmode=prefer"):
                async with Ledger(f"{postgres_url}{options}") as ledger:
                    await ledger.checkpoints.ping(now=NOW)
    finally:
        shutil.rmtree(home)


async def test_a_user_without_a_name_is_told_to_name_one(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "PGUSER"):
        monkeypatch.delenv(name, raising=False)
    url = postgres_url.replace("dispatcher@", "")
    before = os.getuid()
    os.setresuid(54321, 0, 0)  # as containers with a random user id; root's rights stay
    try:
        with pytest.raises(SettingsError, match=r"ledger\.url: .*uid"):
            async with Ledger(url):
                pass
    finally:
        os.setresuid(before, 0, 0)


# -- the clock


@pytest.fixture
async def seven_seconds_ahead(postgres_url: str) -> str:
    """A database whose clock is 7 s ahead of this machine's."""
    admin = await asyncpg.connect(plain(postgres_url))
    await admin.execute(
        "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql"
        " AS $$ SELECT pg_catalog.clock_timestamp() + interval '7 seconds' $$"
    )
    name = make_url(postgres_url).database
    await admin.execute(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
    await admin.close()
    return postgres_url


async def test_clocks_that_differ_are_a_warning_in_log_and_metric(postgres_url: str) -> None:
    clock, metrics = ManualClock(datetime.now(UTC)), Metrics()
    async with Ledger(postgres_url) as ledger:
        monitor = ClockMonitor(ledger=ledger, clock=clock, metrics=metrics, stopping=asyncio.Event())
        with structlog.testing.capture_logs() as logs:
            for offset in (-4, 6, 8, -9):
                clock.advance(datetime.now(UTC) - clock.now() + offset * SECOND)
                await monitor.check()
                assert scraped(metrics)["clock_offset_seconds"] == pytest.approx(offset, abs=2)
            clock.advance(datetime.now(UTC) - clock.now())
            await monitor.check()
    assert [entry["event"] for entry in logs] == [
        "this machine's clock is 6 s ahead of the database's: synchronise both clocks (NTP)",
        "this machine's clock agrees with the database's again",
    ]


async def test_clocks_that_differ_are_a_warning_of_check(seven_seconds_ahead: str, tmp_path: Path) -> None:
    async with Ledger(seven_seconds_ahead):
        config = settings_file(tmp_path, seven_seconds_ahead)
    status, said = await run_command("check", "--live", "--config", config)
    assert status == 0, said
    assert "ledger     warning: this machine's clock is 7 s behind the database's: synchronise both clocks" in said


async def test_a_slow_database_is_no_wrong_clock(postgres_url: str) -> None:
    times: Any = iter([datetime.now(UTC) - timedelta(seconds=20), datetime.now(UTC) + timedelta(seconds=20)])
    async with Ledger(postgres_url) as ledger:
        assert await ledger.clock_offset(lambda: next(times)) == timedelta()


async def test_a_file_has_no_clock(tmp_path: Path) -> None:
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as ledger:
        assert await ledger.clock_offset(ManualClock().now) == timedelta()
