"""Old and new versions on one ledger: which version may start, and what a migration may change and block."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from alembic import command as alembic
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

import dispatcher.ledger
from dispatcher.errors import LedgerIncompatible
from dispatcher.ledger import HEAD, Ledger
from dispatcher.ledger.engine import Database
from dispatcher.ledger.versions import COMPATIBLE, alembic_config
from tests.support.builders import NOW, a_delivery
from tests.support.ledger_steps import claim, recorded
from tests.support.next_version import NEXT, NextVersion
from tests.support.service import COMMAND, command

NEEDED = f"this dispatcher needs version {HEAD}: run `dispatcher ledger migrate`"
MIGRATIONS = Path(dispatcher.ledger.__file__).parent / "migrations"


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    given: str = request.getfixturevalue("postgres_url")
    return given


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    opened = Database(url)
    yield opened
    await opened.aclose()


def settings(folder: Path, url: str) -> str:
    file = folder / "dispatcher.yaml"
    file.write_text(yaml.safe_dump({"http": {}, "channels": {"webhook": {}}, "ledger": {"url": url}}))
    return str(file)


async def run_ledger_command(config: str, *arguments: str) -> tuple[int, str, str]:
    return await command("ledger", *arguments, "--config", config)


async def run_next_version(version: NextVersion, config: str, *arguments: str) -> tuple[int, str, str]:
    """Run `dispatcher ledger` of the next version."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "ledger",
        *arguments,
        "--config",
        config,
        cwd=version.folder,
        env=version.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_migrate_creates_the_tables_and_status_reports_them(url: str, tmp_path: Path) -> None:
    config = settings(tmp_path, url)
    status, said, advice = await run_ledger_command(config, "status")
    assert (status, said) == (1, f"ledger     has no tables yet; this dispatcher needs version {HEAD}\n")
    assert "dispatcher ledger migrate" in advice
    refused = [("deliveries", "list"), ("explain", "p/d/x"), ("serve", "--no-migrate")]
    for answer in await asyncio.gather(*(command(*one, "--config", config) for one in refused)):
        assert (answer[0], answer[2].splitlines()[-1]) == (1, f"dispatcher: the ledger has no tables yet, and {NEEDED}")
    assert not (tmp_path / "ledger.db").exists(), "only serve and `ledger migrate` create it"
    _, checked, _ = await command("check", "--live", "--config", config)
    assert "ledger     warning: it is reached, and has no tables yet: `dispatcher serve` or" in checked

    assert await run_ledger_command(config, "migrate") == (0, f"ledger     created, at version {HEAD}\n", "")
    for again in ("migrate", "status"):
        assert await run_ledger_command(config, again) == (
            0,
            f"ledger     at version {HEAD}, up to date\n",
            "",
        )


async def test_an_older_version_works_with_a_newer_ledger_that_is_compatible(url: str, tmp_path: Path) -> None:
    """Like a replica that restarts during an upgrade, or all replicas after a rollback."""
    config = settings(tmp_path, url)
    assert (await run_ledger_command(config, "migrate"))[0] == 0
    newer = NextVersion(tmp_path / "next")
    _, _, refused = await run_next_version(newer, config, "actions")
    assert f"at version {HEAD}, and this dispatcher needs version {NEXT}: run `dispatcher ledger migrate`" in refused
    said = await run_next_version(newer, config, "migrate")
    assert said == (0, f"ledger     migrated from version {HEAD} to {NEXT}\n", "")

    status, out, _ = await run_ledger_command(config, "status")
    assert status == 0
    assert f"at version {NEXT}, usable by versions from {COMPATIBLE} on" in out
    async with Ledger(url) as ledger:
        await ledger.record([recorded(a_delivery())], [], now=NOW)
        assert [claimed.attempt for claimed in await claim(ledger)] == [1]
        assert (await ledger.schema()).version == NEXT, "the newer version's tables are left as they are"


async def test_an_older_version_refuses_a_newer_ledger_that_is_not_compatible(url: str, tmp_path: Path) -> None:
    config = settings(tmp_path, url)
    assert (await run_next_version(NextVersion(tmp_path / "next", oldest=NEXT), config, "migrate"))[0] == 0

    ledger = Ledger(url)
    with pytest.raises(LedgerIncompatible, match=f"at version {NEXT}, .* up to {HEAD}: .* upgrade this one"):
        await ledger.open()
    await ledger.aclose()
    status, out, advice = await run_ledger_command(config, "status")
    assert (status, advice) == (1, "upgrade this dispatcher\n")
    assert f"usable by versions from {NEXT} on" in out


@pytest.mark.parametrize("version", ["0001_deadbeef", "0001", "0009"])
async def test_every_command_refuses_a_ledger_of_an_unreleased_version_in_one_sentence(
    version: str, url: str, database: Database, tmp_path: Path
) -> None:
    await database.migrate()
    async with database.writing() as connection:
        await connection.execute(text(f"UPDATE alembic_version SET version_num = '{version}'"))
    sentence = (
        f"the ledger is at version {version}, made by an unreleased version: begin a new ledger; this dispatcher's"
    )

    config = settings(tmp_path, url)
    commands = (["ledger", "status"], ["ledger", "migrate"], ["deliveries", "list"], ["serve"], ["check", "--live"])
    for arguments in commands if version == "0009" else commands[:1]:
        status, out, err = await command(*arguments, "--config", config)
        assert status == 1
        if arguments[0] == "check":
            assert f"ledger     problem: {sentence}" in out
        else:
            assert (out, err.count("\n")) == ("", 1), (arguments, out, err)
            assert err.startswith(f"dispatcher: {sentence}"), (arguments, err)
    async with database.reading() as connection:
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == version


async def test_a_migration_that_waits_for_a_locked_table_gives_up_and_tries_again(
    postgres_url: str, tmp_path: Path
) -> None:
    """While it waits for the lock, all later transactions wait behind it: claims, settlements and the others."""
    config = settings(tmp_path, postgres_url)
    assert (await run_ledger_command(config, "migrate"))[0] == 0
    database = Database(postgres_url)
    waits = []
    async with Ledger(postgres_url) as ledger, database.writing() as backup, asyncio.timeout(60):
        await backup.execute(text("SELECT count(*) FROM deliveries"))
        migrating = asyncio.ensure_future(run_next_version(NextVersion(tmp_path / "next"), config, "migrate"))
        for wanted in (1, 0):  # it waits for the table; then it has given up
            while await _altering(database) != wanted:
                began = time.monotonic()
                await ledger.record([recorded()], [], now=NOW)
                waits.append(time.monotonic() - began)
                await asyncio.sleep(0.05)
        assert not migrating.done()
    status, said, why = await migrating
    await database.aclose()

    assert (status, said) == (0, f"ledger     migrated from version {HEAD} to {NEXT}\n")
    assert "canceling statement due to lock timeout" in why, "it gave up, and logged it"
    assert max(waits) < 8, "no call waited much longer than the lock timeout"


async def _altering(database: Database) -> int:
    """The number of migrations that wait for a table."""
    question = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'ALTER TABLE%'"
    async with database.reading() as connection:
        return await connection.scalar(text(question)) or 0


# -- what a migration may do


def describe_tables(connection: Connection) -> dict[str, Any]:
    """What older code depends on: each table's columns with their types, and the constraints on new rows."""
    inspector = inspect(connection)
    tables = {}
    for table in inspector.get_table_names():
        columns = {
            column["name"]: (str(column["type"]), column["nullable"] or column["default"] is not None)
            for column in inspector.get_columns(table)
        }
        unique = {index["name"] for index in inspector.get_indexes(table) if index["unique"]}
        unique |= {constraint["name"] for constraint in inspector.get_unique_constraints(table)}
        checks = {constraint["name"] for constraint in inspector.get_check_constraints(table)}
        foreign = {constraint["name"] for constraint in inspector.get_foreign_keys(table)}
        tables[table] = {"columns": columns, "constraints": unique | checks | foreign}
    return tables


def breaking_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The changes that break older code."""
    problems = []
    for table, was in before.items():
        if table not in after:
            problems.append(f"{table} was removed")
            continue
        columns, now = was["columns"], after[table]["columns"]
        problems += [f"{table}.{name} was removed" for name in columns if name not in now]
        problems += [f"{table}.{name} changed" for name in columns if name in now and now[name] != columns[name]]
        problems += [f"{table}.{name} is required" for name in now if name not in columns and not now[name][1]]
        problems += [
            f"{table} has the new constraint {name}" for name in after[table]["constraints"] - was["constraints"]
        ]
    return problems


def test_the_newest_migration_is_named_by_a_hash_of_the_tables() -> None:
    """Otherwise a ledger from before a change of the tables would look up to date."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    head = scripts.get_current_head()
    statements = hashlib.sha256()
    for dialect in ("sqlite", "postgresql"):
        sql = io.StringIO()
        context = MigrationContext.configure(dialect_name=dialect, opts={"as_sql": True, "output_buffer": sql})
        with Operations.context(context):
            for script in [*scripts.walk_revisions()][::-1]:
                script.module.upgrade()
        statements.update(" ".join(sql.getvalue().split()).encode())
    named = f"{HEAD[:4]}_{statements.hexdigest()[:8]}"
    assert named == HEAD == head, f"set HEAD, and `revision` in the newest migration, to {named}"


async def test_every_migration_since_the_oldest_compatible_one_only_adds(database: Database) -> None:
    """Otherwise COMPATIBLE must be raised, and upgrades need a stop of all replicas."""

    def upgrade_step_by_step(connection: Connection) -> list[str]:
        config = alembic_config(connection)
        revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]
        assert COMPATIBLE in revisions
        problems, before = [], None
        for revision in revisions:
            alembic.upgrade(config, revision)
            after = describe_tables(connection)
            if before is not None and revision > COMPATIBLE:
                problems += [f"{revision}: {problem}" for problem in breaking_changes(before, after)]
            before = after
        return problems

    async with database.writing() as connection:
        assert await connection.run_sync(upgrade_step_by_step) == []


async def test_a_migration_that_removes_or_narrows_something_is_reported(database: Database) -> None:
    await database.migrate()

    def narrow_tables(connection: Connection) -> list[str]:
        before = describe_tables(connection)
        operations = Operations(MigrationContext.configure(connection))
        operations.drop_table("launch_plan_versions")
        operations.drop_column("rejected", "size")
        operations.add_column("attempts", sa.Column("fine", sa.Text))
        operations.create_index("ux_events_name", "events", ["name"], unique=True)
        with operations.batch_alter_table("checkpoints") as checkpoints:
            checkpoints.alter_column("name", new_column_name="title")
            checkpoints.add_column(sa.Column("by", sa.Text, nullable=False))
        return sorted(breaking_changes(before, describe_tables(connection)))

    async with database.writing() as connection:
        assert await connection.run_sync(narrow_tables) == [
            "checkpoints.by is required",
            "checkpoints.name was removed",
            "checkpoints.title is required",
            "events has the new constraint ux_events_name",
            "launch_plan_versions was removed",
            "rejected.size was removed",
        ]
