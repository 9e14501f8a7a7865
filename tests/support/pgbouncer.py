"""Runs Debian's PgBouncer in transaction mode, in front of a PostgreSQL server of the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.engine import make_url

from tests.support.service import free_port

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
_SETTINGS = """
[databases]
* = host={host} port={server_port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {connections}
logfile = {folder}/log
"""


def missing() -> str:
    """The reason why PgBouncer can't run here; empty if it can."""
    return "" if shutil.which("pgbouncer", path=_PATH) else "no PgBouncer here: apt-get install pgbouncer"


@contextmanager
def pgbouncer(url: str, *, connections: int = 3) -> Iterator[str]:
    """Run PgBouncer in front of the server of this URL; yields the URL of the same database through it.

    `connections`: how many connections to the server all clients share.
    """
    server = make_url(url)
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-pgbouncer-"))
    port = free_port()
    values = {"host": server.host, "server_port": server.port, "user": server.username}
    settings = folder / "pgbouncer.ini"
    settings.write_text(_SETTINGS.format(**values, port=port, connections=connections, folder=folder))
    account = "nobody" if os.geteuid() == 0 else None  # PgBouncer refuses to run as root
    if account is not None:
        shutil.chown(folder, account)
    command = [shutil.which("pgbouncer", path=_PATH) or "pgbouncer", "-q", str(settings)]
    user = pwd.getpwnam(account).pw_uid if account is not None else None
    with subprocess.Popen(command, user=user, cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, folder)
            yield server.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        finally:
            process.terminate()
    shutil.rmtree(folder)


def _wait_for(port: int, folder: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"PgBouncer does not start: {(folder / 'log').read_text()}")
