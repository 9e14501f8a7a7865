"""Serves an ASGI application with uvicorn, in the service's event loop. The service itself handles signals."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

import uvicorn

from dispatcher.errors import SettingsError
from dispatcher.web.config import Tls
from dispatcher.web.limits import MAX_HEADER_BYTES
from dispatcher.web.tls import Certificate
from dispatcher.web.uvicorn_internals import Connection, ConnectionLimits, Server, check

Work = Callable[[], Coroutine[Any, Any, None]]
Contain = Callable[[Work], Coroutine[Any, Any, None]]
"""Awaits `work()`, and again after each unforeseen exception (`Components.run`)."""


@asynccontextmanager
async def serving(
    app: Any,
    host: str,
    port: int,
    *,
    setting: str = "http.listen",
    tls: Tls | None = None,
    trusted_proxies: Sequence[str] = (),
    limits: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - immutable, so all calls can share it
    contain: Contain = lambda work: work(),
) -> AsyncIterator[str]:
    """Serve the application until the `async with` block ends. Yields the base URL.

    `setting`: what to change if the address is in use: a setting or an option. `trusted_proxies`: addresses whose
    `X-Forwarded-For` and `X-Forwarded-Proto` headers are trusted. `contain`: runs the server, and runs it again after an
    unforeseen exception. Raises SettingsError if the server can't listen on the
    address or can't load the TLS files, and DispatcherError if uvicorn's version can't be used.
    """
    certificate = Certificate(tls) if tls is not None else None
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        http=type("LimitedConnection", (Connection,), {"limits": limits}),
        ws="none",
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=list(trusted_proxies),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ssl_context_factory=(lambda *_: certificate.context) if certificate is not None else None,
    )
    check(config)
    listener = _listen(host, port, setting)
    server = Server(config)
    bound_port = listener.getsockname()[1]
    leaving = False

    async def serve() -> None:
        nonlocal listener, server
        if leaving:
            return
        if listener.fileno() < 0:  # the last call failed and closed it
            listener, server = _listen(host, bound_port, setting), Server(config)
        with closing(listener):
            try:
                await server.serve(sockets=[listener])
            finally:
                server.close_listeners()

    failure: Exception | None = None
    async with asyncio.TaskGroup() as group:
        group.create_task(contain(serve), name="http")
        try:
            url_host = f"[{host}]" if ":" in host else host
            yield f"{'https' if tls else 'http'}://{url_host}:{bound_port}"
        except Exception as error:  # noqa: BLE001 - raised again below, after the server has shut down
            failure = error
        finally:
            leaving = server.should_exit = True
    if failure is not None:
        raise failure


def _listen(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP is given because asyncio sets TCP_NODELAY only on sockets with this protocol. Without TCP_NODELAY
    # (with Nagle's algorithm), the second write of a response waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise SettingsError(f"{setting}: can't listen on {host}:{port}: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener
