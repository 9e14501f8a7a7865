"""The HTTP client of webhooks and Teams: sends POST requests to URLs that users chose and the SSRF guard allows.

A host name is resolved once for each connection. The guard checks the addresses, and the client connects to an address
that is allowed. So a DNS answer that changes after the check (DNS rebinding) has no effect. The client follows no
redirects and uses no proxies, cookies or .netrc logins.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from channels.common.ssrf import Forbidden, SsrfGuard, is_address
from channels.common.tls import ReloadingContext
from channels.contract import InDoubt, Later, Never

MAX_ANSWER_BYTES = 4096
"""Maximum number of bytes that are read of an answer's body. The rest is not needed."""
CONNECT_SHARE = 0.5
"""Maximum share of the timeout that connecting may take. After that, the send fails while nothing was sent, so that the
message is not in doubt."""
URL_CACHE_SIZE = 256
"""Maximum number of allowed URLs that are cached, so that they are not parsed again for the next message."""
KEEP_ALIVE = 15
"""Seconds for which an idle connection is kept open for the next message."""


@dataclass(frozen=True, slots=True)
class Response:
    """A server's answer."""

    status: int
    headers: Mapping[str, str]
    text: str
    """The first `MAX_ANSWER_BYTES` of the body."""


class GuardedResolver(AbstractResolver):
    """Wraps a resolver and removes the addresses that the guard forbids."""

    def __init__(self, guard: SsrfGuard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises Forbidden if the guard allows no address, OSError if the name has no address."""
        results = await self._resolver.resolve(host, port, family)
        allowed = self._guard.allowed_addresses(*(one["host"] for one in results))
        return [one for one in results if one["host"] in allowed]

    async def close(self) -> None:
        await self._resolver.close()


class HttpClient:
    """Sends POST requests, with a pool of connections to each server."""

    def __init__(
        self,
        guard: SsrfGuard,
        timeout: float,
        resolver: AbstractResolver | None = None,
        *,
        ca_file: Path | None = None,
    ) -> None:
        """`timeout`: seconds for a whole request. `resolver`: replaces the system's resolver.

        `ca_file`: certificates to trust in addition to the system's.
        """
        self._check_url = lru_cache(URL_CACHE_SIZE)(guard.check_url)
        self._tls_context = (
            ReloadingContext([ca_file], partial(_create_context, ca_file)) if ca_file is not None else None
        )
        self._resolver = GuardedResolver(guard, resolver or aiohttp.ThreadedResolver())
        connector = aiohttp.TCPConnector(
            resolver=self._resolver, use_dns_cache=False, limit=0, keepalive_timeout=KEEP_ALIVE
        )
        self._timeout = timeout
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=timeout * CONNECT_SHARE),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": "flyte-notification-dispatcher", "Accept-Encoding": "identity"},
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], name: str) -> Response:
        """Send the body, once. `name`: the server's name in error messages.

        Raises Never if the guard forbids the URL, Later if nothing was sent, InDoubt if the body may have arrived.
        """
        tls = self._tls(name)
        try:
            checked = self._check_url(url)
            async with self._session.post(
                checked, data=body, headers=headers, allow_redirects=False, ssl=tls
            ) as response:
                text = await _read_start(response.content)
                return Response(response.status, response.headers, text)
        except Forbidden as error:
            raise Never(f"{name}: {error}") from None
        except aiohttp.ClientConnectorDNSError:
            raise Later(f"{name} can't be reached: its host can't be found") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Later(f"{name} can't be reached: {_connection_problem(error)}") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise InDoubt(f"{name} did not answer: {type(error).__name__}; it may have taken the message") from None

    async def test_connection(self, url: str, name: str) -> None:
        """Connect and disconnect without sending a request. Raises Never or Later, as `post` does."""
        tls = self._tls(name)
        try:
            checked = self._check_url(url)
            host, port, secure = checked.raw_host or "", checked.port or 0, checked.scheme == "https"
            async with asyncio.timeout(self._timeout):
                address = host if is_address(host) else (await self._resolver.resolve(host, port))[0]["host"]
                _, writer = await asyncio.open_connection(
                    address, port, ssl=tls if secure else None, server_hostname=host if secure else None
                )
        except Forbidden as error:
            raise Never(f"{name}: {error}") from None
        except (TimeoutError, OSError) as error:
            raise Later(f"{name} can't be reached: {_connection_problem(error)}") from None
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def close(self) -> None:
        await self._session.close()

    def _tls(self, name: str) -> ssl.SSLContext | bool:
        """Return aiohttp's `ssl` parameter: a context with the certificates to trust, or True to trust the system's."""
        try:
            return self._tls_context.context() if self._tls_context is not None else True
        except (OSError, ValueError) as error:
            raise Later(f"{name}: ca_file can't be used: {getattr(error, 'strerror', None) or error}") from None


def _create_context(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


async def _read_start(content: aiohttp.StreamReader) -> str:
    read = bytearray()
    while len(read) < MAX_ANSWER_BYTES and (part := await content.read(MAX_ANSWER_BYTES - len(read))):
        read += part
    return read.decode("utf-8", "replace")


def _connection_problem(error: Exception) -> str:
    """Describe a failed connection without the address, which may be secret."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {cause.verify_message}; see ca_file"
    return getattr(cause, "strerror", None) or type(error).__name__
