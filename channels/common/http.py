"""What the HTTP clients of the channels share: sessions, the meaning of failed requests, and the client for URLs that
users chose, which sends POST requests as far as the SSRF guard allows.

For a direct connection, a host name is resolved once. The guard checks the addresses, and the client connects to an
address that is allowed. So a DNS answer that changes after the check (DNS rebinding) has no effect. The client follows
no redirects and uses no cookies or .netrc logins.
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
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from channels.common.body import MAX_POST_ANSWER, read_start
from channels.common.proxy import UnusableProxy, proxy_for
from channels.common.ssrf import Forbidden, SsrfGuard, is_address
from channels.common.tls import ReloadingContext, untrusted_certificate
from channels.contract import ChannelError, InDoubt, Later, Misconfigured, Never

CONNECT_SHARE = 0.5
"""Maximum share of a request's timeout that connecting may take. If connecting takes longer, the send fails before the
message was sent, so it is certain that the message did not arrive."""
URL_CACHE_SIZE = 256
"""Maximum number of checked URLs that are cached, so that a URL is not parsed and checked again for each message."""
KEEP_ALIVE = 15
"""Seconds for which an idle connection is kept open for the next message."""
NAME_CHECK_TIMEOUT = 2.0
"""Maximum seconds to resolve a name that the proxy will resolve too. Behind a proxy, external names often have no
address in the local DNS."""
NAME_CHECK_TTL = 60.0
"""Seconds for which a name counts as checked, if the proxy resolves it."""


@dataclass(frozen=True, slots=True)
class Response:
    """A server's answer to a POST request."""

    status: int
    headers: Mapping[str, str]
    text: str
    """The first `MAX_POST_ANSWER` bytes of the answer's body, decoded as UTF-8."""


@dataclass(frozen=True, slots=True)
class Route:
    """A checked URL, and the URL of the proxy to it, if there is one."""

    url: URL
    proxy: str | None


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


def open_session(timeout: float, **options: Any) -> aiohttp.ClientSession:
    """Return a session whose requests end within `timeout` seconds, from connecting to the end of the answer.

    aiohttp's own `trust_env` stays off: with it, aiohttp would read ~/.netrc for each message. `options` are those of
    aiohttp's ClientSession.
    """
    limits = aiohttp.ClientTimeout(total=timeout, sock_connect=timeout * CONNECT_SHARE)
    return aiohttp.ClientSession(timeout=limits, trust_env=False, **options)


def failed_request(
    error: Exception, name: str, *, provider_wide: bool = False, ca_file: str = "ca_file"
) -> ChannelError:
    """Return the error for a request that failed without an answer. `name`: the server's name in error messages.
    `ca_file`: the setting that names the certificates to trust.

    `Later` or `Misconfigured` means that nothing was sent, `InDoubt` that the message may have arrived.
    """
    match error:
        case UnusableProxy():
            return Misconfigured(f"{name} can't be reached: {error}", provider_wide=provider_wide)
        case aiohttp.ClientHttpProxyError(status=407):
            return Misconfigured(
                f"{name} can't be reached: the proxy wants a login (407): write USER:PASSWORD@ before the host in "
                "HTTPS_PROXY",
                provider_wide=provider_wide,
            )
        case aiohttp.ClientHttpProxyError():
            return Later(
                f"{name} can't be reached: the proxy refuses ({error.status}): check HTTPS_PROXY and the proxy's rules",
                provider_wide=provider_wide,
            )
        case aiohttp.ClientProxyConnectionError():
            reason = f"the proxy of HTTPS_PROXY can't be reached: {_connection_problem(error, ca_file)}"
            return Later(f"{name}: {reason}", provider_wide=provider_wide)
        case aiohttp.ClientConnectorDNSError():
            return Later(f"{name} can't be reached: its host can't be found", provider_wide=provider_wide)
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return Later(f"{name} can't be reached: {_connection_problem(error, ca_file)}", provider_wide=provider_wide)
        case _:
            return InDoubt(f"{name} did not answer: {type(error).__name__}; it may have taken the message")


def request_problem(error: Exception) -> str:
    """Return why a request failed. aiohttp's own text is not used if it may contain the login to the proxy."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"the proxy answers {error.status}: check HTTPS_PROXY"
    return str(error) or type(error).__name__


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
        self._guard = guard
        self._route = lru_cache(URL_CACHE_SIZE)(self._find_route)
        self._tls_context = (
            ReloadingContext([ca_file], partial(_create_context, ca_file)) if ca_file is not None else None
        )
        self._resolver = GuardedResolver(guard, resolver or aiohttp.ThreadedResolver())
        self._timeout = timeout
        self._session = self._open_session(self._resolver)
        self._proxy_session: aiohttp.ClientSession | None = None
        """The session for requests through a proxy. The proxy itself usually has a private address, which the guard
        would forbid."""
        self._checked_names: dict[str, float] = {}
        """Mapping from a name that the proxy resolves to the time until which it counts as checked, on the event loop's
        clock."""

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], name: str) -> Response:
        """Send the body once, without a retry. `name`: the server's name in error messages.

        Raises `Never` if the guard forbids the URL, `Later` if nothing was sent, `InDoubt` if the body may have
        arrived.
        """
        tls = self._tls(name)
        try:
            route = self._route(url)
            session = await self._session_for(route)
            request = session.post(
                route.url, data=body, headers=headers, allow_redirects=False, ssl=tls, proxy=route.proxy
            )
            async with request as response:
                start = await read_start(response.content, MAX_POST_ANSWER)
                return Response(response.status, response.headers, start.decode("utf-8", "replace"))
        except Forbidden as error:
            raise Never(f"{name}: {error}") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise failed_request(error, name) from None

    async def test_connection(self, url: str, name: str) -> bool:
        """Connect and disconnect without sending a request. Returns False if there is a proxy: then only the connection
        to the proxy is tested. Raises `Never` if the guard forbids the URL, `Later` if connecting fails.
        """
        tls = self._tls(name)
        where = name
        try:
            route = self._route(url)
            await self._session_for(route)
            if route.proxy is not None:
                where = f"{name}: the proxy of HTTPS_PROXY"
            target = route.url if route.proxy is None else URL(route.proxy)
            host, port, secure = target.raw_host or "", target.port or 0, target.scheme == "https"
            async with asyncio.timeout(self._timeout):
                address = host
                if route.proxy is None and not is_address(host):
                    address = (await self._resolver.resolve(host, port))[0]["host"]
                _, writer = await asyncio.open_connection(
                    address, port, ssl=tls if secure else None, server_hostname=host if secure else None
                )
        except Forbidden as error:
            raise Never(f"{name}: {error}") from None
        except UnusableProxy as error:
            raise failed_request(error, name) from None
        except (TimeoutError, OSError) as error:
            raise Later(f"{where} can't be reached: {_connection_problem(error)}") from None
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return route.proxy is None

    async def close(self) -> None:
        await self._session.close()
        if self._proxy_session is not None:
            await self._proxy_session.close()

    def _find_route(self, url: str) -> Route:
        checked = self._guard.check_url(url)
        return Route(checked, proxy_for(str(checked)))

    async def _session_for(self, route: Route) -> aiohttp.ClientSession:
        """Return the session for a route. Raises `Forbidden` if there is a proxy and the host's addresses are forbidden:
        then the proxy would connect to them.
        """
        if route.proxy is None:
            return self._session
        await self._check_name(route.url.raw_host or "")
        if self._proxy_session is None:
            self._proxy_session = self._open_session(aiohttp.ThreadedResolver())
        return self._proxy_session

    async def _check_name(self, host: str) -> None:
        """Raise `Forbidden` if the name's addresses are all forbidden. A name without an address here is allowed,
        because only the proxy can resolve it.
        """
        now = asyncio.get_running_loop().time()
        if is_address(host) or self._checked_names.get(host, 0) > now:
            return
        with suppress(OSError):  # a TimeoutError is an OSError too
            async with asyncio.timeout(NAME_CHECK_TIMEOUT):
                await self._resolver.resolve(host)
        if len(self._checked_names) >= URL_CACHE_SIZE:
            self._checked_names.clear()
        self._checked_names[host] = now + NAME_CHECK_TTL

    def _open_session(self, resolver: AbstractResolver) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, limit=0, keepalive_timeout=KEEP_ALIVE)
        return open_session(
            self._timeout,
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"User-Agent": "flyte-notification-dispatcher", "Accept-Encoding": "identity"},
        )

    def _tls(self, name: str) -> ssl.SSLContext | bool:
        """Return the value of aiohttp's parameter `ssl`: a TLS context that also trusts `ca_file`, or True to trust
        only the system's certificates.
        """
        try:
            return self._tls_context.context() if self._tls_context is not None else True
        except (OSError, ValueError) as error:
            raise Misconfigured(f"{name}: ca_file can't be used: {getattr(error, 'strerror', None) or error}") from None


def _create_context(ca_file: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


def _connection_problem(error: Exception, ca_file: str = "ca_file") -> str:
    """Return the reason why a connection failed, without the server's address, because the address may be secret."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {untrusted_certificate(cause, ca_file)}"
    return getattr(cause, "strerror", None) or type(error).__name__
