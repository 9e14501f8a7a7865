"""POST by aiohttp, to addresses that others have named: the only module of webhooks and Teams that opens connections.

A host is looked up once for each connection, what it leads to is looked at, and that very address is connected to: a name
that leads elsewhere the second time is never asked a second time. No redirects, no proxies, no cookies, no login of .netrc.
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

from channels.common.ssrf import Forbidden, Guard, is_address
from channels.common.tls import Certificates
from channels.contract import InDoubt, Later, Never

LONGEST_ANSWER = 4096
"""Bytes of an answer that are read: nothing that follows could change its meaning."""
CONNECTING_SHARE = 0.5
"""Of the time-out: a connection that takes longer is no connection, and nothing was handed over."""
PLACES = 256
"""URLs that are known to be allowed, so that they are not read again for each message."""
KEPT = 15
"""Seconds for which a connection waits for the next message."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered."""

    status: int
    headers: Mapping[str, str]
    text: str
    """Its beginning."""


class GuardedResolver(AbstractResolver):
    """Another resolver's answers, without the addresses that the guard forbids."""

    def __init__(self, guard: Guard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises Forbidden where no address is left, OSError where there was none."""
        found = await self._resolver.resolve(host, port, family)
        admitted = self._guard.pass_on(*(one["host"] for one in found))
        return [one for one in found if one["host"] in admitted]

    async def close(self) -> None:
        await self._resolver.close()


class Post:
    """Connections to many servers."""

    def __init__(
        self,
        guard: Guard,
        timeout: float,
        resolver: AbstractResolver | None = None,
        *,
        ca_file: Path | None = None,
    ) -> None:
        """`timeout`: seconds for everything. `resolver`: asked for names; without one the system is. `ca_file`:
        certificates to trust besides the system's.
        """
        self._place = lru_cache(PLACES)(guard.url)
        self._certificates = Certificates([ca_file], partial(_trusting, ca_file)) if ca_file is not None else None
        self._resolver = GuardedResolver(guard, resolver or aiohttp.ThreadedResolver())
        connector = aiohttp.TCPConnector(resolver=self._resolver, use_dns_cache=False, limit=0, keepalive_timeout=KEPT)
        self._timeout = timeout
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=timeout * CONNECTING_SHARE),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": "flyte-notification-dispatcher", "Accept-Encoding": "identity"},
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], name: str) -> Reply:
        """Hand the body over, once. `name`: what to call the server in errors.

        Raises Never where we don't go there, Later where nothing was handed over, Unknown where that is in doubt.
        """
        tls = self._tls(name)
        try:
            place = self._place(url)
            async with self._session.post(
                place, data=body, headers=headers, allow_redirects=False, ssl=tls
            ) as response:
                text = await _beginning(response.content)
                return Reply(response.status, response.headers, text)
        except Forbidden as error:
            raise Never(f"{name}: {error}") from None
        except aiohttp.ClientConnectorDNSError:
            raise Later(f"{name} can't be reached: its host can't be found") from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Later(f"{name} can't be reached: {_told(error)}") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise InDoubt(f"{name} did not answer: {type(error).__name__}; it may have taken the message") from None

    async def reach(self, url: str, name: str) -> None:
        """Connect and hang up, without a word. Raises Never or Later, as `post` does."""
        tls = self._tls(name)
        try:
            place = self._place(url)
            host, port, secure = place.raw_host or "", place.port or 0, place.scheme == "https"
            async with asyncio.timeout(self._timeout):
                address = host if is_address(host) else (await self._resolver.resolve(host, port))[0]["host"]
                _, writer = await asyncio.open_connection(
                    address, port, ssl=tls if secure else None, server_hostname=host if secure else None
                )
        except Forbidden as error:
            raise Never(f"{name}: {error}") from None
        except (TimeoutError, OSError) as error:
            raise Later(f"{name} can't be reached: {_told(error)}") from None
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def close(self) -> None:
        await self._session.close()

    def _tls(self, name: str) -> ssl.SSLContext | bool:
        """What a connection trusts; True: what the system does."""
        try:
            return self._certificates.context() if self._certificates is not None else True
        except (OSError, ValueError) as error:
            raise Later(f"{name}: ca_file can't be used: {getattr(error, 'strerror', None) or error}") from None


def _trusting(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


async def _beginning(content: aiohttp.StreamReader) -> str:
    read = bytearray()
    while len(read) < LONGEST_ANSWER and (part := await content.read(LONGEST_ANSWER - len(read))):
        read += part
    return read.decode("utf-8", "replace")


def _told(error: Exception) -> str:
    """Why there is no connection, without the address: it may be a secret of a rule's, or of our network."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {cause.verify_message}; see ca_file"
    return getattr(cause, "strerror", None) or type(error).__name__
