"""The SSRF guard: decides whether a message may be sent to a URL or an IP address. It opens no connection.

Without the guard, the author of a launch plan could make the dispatcher send requests to servers in its own network,
and such a server may trust every client that can reach it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from channels.common.network import MAX_PORT, check_host

if TYPE_CHECKING:
    from yarl import URL

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Forbidden networks: IANA's "IPv4 Special-Purpose Address Registry", and multicast (RFC 5771). They are listed here,
# because Python's `ipaddress.is_global` gives different results in different Python versions.
_CLOSED_V4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local addresses; most clouds have their metadata server in this network
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's platform services; to IANA it is an ordinary public address
    )
]
_OPEN_V6 = IPv6Network("2000::/3")
"""The global unicast addresses that IANA has allocated (RFC 4291, 2.4). Addresses in this range are allowed, except the
networks in `_CLOSED_V6`."""
_CLOSED_V6 = [
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
]
_NAT64 = IPv6Network("64:ff9b::/96")
"""The prefix of NAT64 addresses. The network forwards a packet for such an address to the IPv4 address in its last 32
bits (RFC 6052), so the guard checks that IPv4 address."""
_PORTS = {"https": 443, "http": 80}
_WILDCARDS = re.compile(r"[*?\[]")
_PATTERN = re.compile(r"[A-Za-z0-9_*?\[\]!:.-]*[A-Za-z0-9_*?\[\]-]")
_PORT_AT_END = re.compile(r":[0-9]+$")
_NUMBER = re.compile(r"(\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)


class Forbidden(Exception):
    """The guard forbids the URL or address. `str()` gives the reason, without the URL's path and query."""


@dataclass(frozen=True, slots=True)
class SsrfGuard:
    """Decides which URLs and addresses are allowed, according to the settings of one channel."""

    section: str
    """The settings section that error messages refer to, such as `channels.webhook`."""
    hosts: Sequence[str] = ()
    """Hosts that URLs in rules may use: `hooks.example.com`, `*.example.com`, `example.com:8443`. If a host is given
    without a port, only the default port of http or https is allowed."""
    networks: Sequence[Network] = ()
    """Networks that are allowed, although the addresses in them are private or reserved."""
    plain_http: bool = False

    def check_url(self, text: str) -> URL:
        """Parse the URL and return it without its fragment. Raises `Forbidden` if the URL is not allowed.

        The method checks that the scheme is allowed and that the URL contains no login. If the host is an IP address,
        it also checks the address. If the host is a name, `GuardedResolver` checks the addresses when it resolves the
        name.
        """
        from yarl import URL  # noqa: PLC0415 - imported late: at the top, yarl would slow down every command

        try:
            url = URL(text)
            host, port = url.raw_host, url.port
        except ValueError:
            raise Forbidden("this is no URL") from None
        if url.scheme not in _PORTS or not host or not port or any(sign <= " " or sign == "\x7f" for sign in text):
            raise Forbidden("this is no https URL")
        if url.scheme == "http" and not self.plain_http:
            raise Forbidden(f"the URL is not https: change it, or set {self.section}.allow_http")
        if url.raw_user is not None or url.raw_password is not None:
            raise Forbidden("the URL holds a login: give it as a header instead")
        literal = _parse_address(host)
        # Some systems accept 127.1 or 0x7f000001 as an IP address, so a host that ends in a number is refused.
        if literal is None and _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            raise Forbidden("the URL's host is neither a name nor an address as it is usually written")
        if literal is not None:
            self.allowed_addresses(host)  # check it here: no resolver will, because an IP address is not resolved
        return url.with_fragment(None)

    def allows_host(self, url: URL) -> bool:
        """True if rules may contain URLs with this URL's host and port."""
        host = (url.raw_host or "").rstrip(".").lower()
        host = f"[{host}]" if ":" in host else host
        host_and_port = host if url.port == _PORTS.get(url.scheme) else f"{host}:{url.port}"
        return any(fnmatchcase(host_and_port, pattern.lower()) for pattern in self.hosts)

    def allows_address(self, address: str) -> bool:
        """True if the dispatcher may connect to this IP address. An IPv4 address embedded in an IPv6 address is checked
        as IPv4.
        """
        parsed = _parse_address(address)
        if parsed is None:
            return False
        target = _embedded_ipv4(parsed)
        if any(
            one in network for network in self.networks for one in (parsed, target) if one.version == network.version
        ):
            return True
        if isinstance(target, IPv4Address):
            return not any(target in network for network in _CLOSED_V4)
        return target.scope_id is None and target in _OPEN_V6 and not any(target in network for network in _CLOSED_V6)

    def allowed_addresses(self, *addresses: str) -> list[str]:
        """Return those of the addresses that are allowed. Raises `Forbidden` if none is allowed."""
        allowed = [address for address in addresses if self.allows_address(address)]
        if not allowed:
            raise Forbidden(
                "the URL leads to a private, local or reserved address: if it must, add it to "
                f"{self.section}.allow_networks"
            )
        return allowed


def _host_pattern(text: str) -> str:
    """Return a host of `SsrfGuard.hosts`. Raises `ValueError` if no URL's host can match it."""
    host = without_port(text)
    if _WILDCARDS.search(text) and not is_address(host):
        if not _PATTERN.fullmatch(text):
            raise ValueError("not a host: write it as *.example.com, in ASCII, without a scheme or a path")
        return text
    if host != text:
        port = int(text.removeprefix(host)[1:])
        if port in _PORTS.values() or not 0 < port <= MAX_PORT:
            raise ValueError("leave out the ports 443 and 80: a host without a port allows them; others are 1 to 65535")
    check_host(host.removeprefix("[").removesuffix("]") if host.startswith("[") else host)
    if host.endswith("."):
        raise ValueError("leave out the dot at the end")
    if ":" in host and not host.startswith("["):
        raise ValueError("put an IPv6 address in brackets: [2001:db8::1]")
    return text


HostPattern = Annotated[str, AfterValidator(_host_pattern)]
"""A host that URLs in rules may use, as in `SsrfGuard.hosts`."""


def without_port(pattern: str) -> str:
    """Return a host, which may be a pattern, without its port."""
    return _PORT_AT_END.sub("", pattern) if pattern.count(":") == 1 or "]:" in pattern else pattern


def is_address(host: str) -> bool:
    """True if the host is an IP address and not a name, so that no DNS look-up is needed."""
    return _parse_address(host) is not None


def _parse_address(host: str) -> Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _embedded_ipv4(address: Address) -> Address:
    """Return the IPv4 address that is embedded in an IPv6 address (mapped or NAT64). If there is none, return the
    address unchanged.
    """
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address


def origin(url: URL) -> str:
    """Return the URL's scheme, host and port. The path and the query are left out, because they may be secret."""
    return str(url.origin())
