"""The HTTP client of the channels webhook and teams: sends POST requests to URLs that users chose and the SSRF guard
allows.

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
"""Maximum number of bytes that are read from the body of a server's answer. The remaining bytes are not needed."""
CONNECT_SHARE = 0.5
"""Maximum share of a request's timeout that connecting may take. If connecting takes longer, the send fails before the
message was sent, so it is certain that the message did not arrive."""
URL_CACHE_SIZE = 256
"""Maximum number of checked URLs that are cached, so that a URL is not parsed and checked again for each message."""
KEEP_ALIVE = 15
"""Seconds for which an idle connection is kept open for the next message."""


@dataclass(frozen=True, slots=True)
class Response:
    """A server's answer to a POST request."""

    status: int
    headers: Mapping[str, str]
    text: str
    """The first `MAX_ANSWER_BYTES` bytes of the answer's body, decoded as UTF-8."""


class GuardedResolver(AbstractResolver):
    """Resolves host names with another resolver, and removes the addresses that the guard forbids."""

    def __init__(self, guard: SsrfGuard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the host's allowed addresses. Raises `Forbidden` if the guard allows none of them, `OSError` if the
        host has no address.
        """
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
        """`timeout`: maximum number of seconds for a whole request. `resolver`: is used instead of the system's
        resolver.

        `ca_file`: a file with certificates to trust in addition to the system's certificates.
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
        """Send the body once, without a retry. `name`: the server's name in error messages.

        Raises `Never` if the guard forbids the URL, `Later` if nothing was sent, `InDoubt` if the body may have
        arrived.
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
        """Connect and disconnect without sending a request. Raises `Never` if the guard forbids the URL, `Later` if
        connecting fails.
        """
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
        """Return the value of aiohttp's parameter `ssl`: a TLS context that also trusts `ca_file`, or True to trust
        only the system's certificates.
        """
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
    """Return the reason why a connection failed, without the server's address, because the address may be secret."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {cause.verify_message}; see ca_file"
    return getattr(cause, "strerror", None) or type(error).__name__
