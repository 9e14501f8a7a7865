"""Serves an ASGI application inside our own loop: uvicorn, without its hands on our signals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from typing import Any

from channels.common.lean_imports import without
from dispatcher.errors import SettingsError
from dispatcher.web.config import Tls
from dispatcher.web.limits import LONGEST_HEAD
from dispatcher.web.tls import Certificate

with without("watchfiles"):  # which starts servers anew when their code changes: 1 MiB
    import uvicorn

    from dispatcher.web.connection import Connection, Patience


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the service's business."""
        yield


@asynccontextmanager
async def serving(
    app: Any,
    host: str,
    port: int,
    *,
    tls: Tls | None = None,
    trusted_proxies: Sequence[str] = (),
    patience: Patience = Patience(),  # noqa: B008 - a value
) -> AsyncIterator[str]:
    """Serve until the block ends; gives the base URL. Raises SettingsError where the address or TLS can't be had.

    `trusted_proxies`: whose word on a client's address and scheme holds.
    """
    certificate = Certificate(tls) if tls is not None else None
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        http=type("PatientConnection", (Connection,), {"patience": patience}),
        ws="none",
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        h11_max_incomplete_event_size=LONGEST_HEAD,
    )
    config.load()
    config.ssl = certificate.context if certificate is not None else None
    server = _Server(config)
    failure: Exception | None = None
    with closing(listener):
        async with asyncio.TaskGroup() as group:
            group.create_task(server.serve(sockets=[listener]), name="http")
            try:
                taken = listener.getsockname()[1]
                shown = f"[{host}]" if ":" in host else host
                yield f"{'https' if tls else 'http'}://{shown}:{taken}"
            except Exception as error:  # noqa: BLE001 - the server ends in order, whatever has happened
                failure = error
            finally:
                server.should_exit = True
    if failure is not None:
        raise failure


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Without its protocol, asyncio leaves Nagle on: an answer of two writes then waits 40 ms for the client's word.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise SettingsError(f"http.listen: can't listen on {host}:{port}: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener
