"""The SSRF guard: decides whether a message may be sent to a URL or an IP address; opens no connection.

Without the guard, the author of a launch plan could name the URL of a server in the dispatcher's network, and this
server may trust every client that can reach it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yarl import URL

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# The networks of IANA's "IPv4 Special-Purpose Address Registry", and multicast (RFC 5771). They are listed here because
# the result of `ipaddress.is_global` depends on the Python version.
_CLOSED_V4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, with the metadata servers of most clouds
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
        "168.63.129.16/32",  # Azure's services for its virtual machines: IANA does not list this address
    )
]
_OPEN_V6 = IPv6Network("2000::/3")
"""The range of global unicast addresses that IANA has allocated (RFC 4291, 2.4). The networks in `_CLOSED_V6` are
excepted."""
_CLOSED_V6 = [
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
]
_NAT64 = IPv6Network("64:ff9b::/96")
"""The prefix of NAT64 addresses. Packets are forwarded to the IPv4 address in the last 32 bits (RFC 6052)."""
_PORTS = {"https": 443, "http": 80}
_NUMBER = re.compile(r"(\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)


class Forbidden(Exception):
    """The guard refuses the URL or address. `str()` is the reason, without the URL's path and query."""


@dataclass(frozen=True, slots=True)
class SsrfGuard:
    """The rules for URLs and addresses, from the settings of one channel."""

    section: str
    """The section of the settings that error messages name, such as `channels.webhook`."""
    hosts: Sequence[str] = ()
    """Hosts that URLs in rules may use: `hooks.example.com`, `*.example.com`, `example.com:8443`. For a host without a
    port, only the scheme's default port is allowed."""
    networks: Sequence[Network] = ()
    """Networks that are allowed although they are private or reserved."""
    plain_http: bool = False

    def check_url(self, text: str) -> URL:
        """Parse the URL and return it without its fragment. Raises Forbidden if it may not be used.

        Checks that the scheme is allowed and that there is no login. If the host is an IP address, checks it too; the
        addresses of a host name are checked when it is resolved.
        """
        from yarl import URL  # noqa: PLC0415 - yarl would slow down every command

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
        if literal is None and _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):  # such as 127.1 or 0x7f000001
            raise Forbidden("the URL's host is neither a name nor an address as it is usually written")
        if literal is not None:
            self.allowed_addresses(host)  # an IP address is not resolved, so the resolver can't check it
        return url.with_fragment(None)

    def allows_host(self, url: URL) -> bool:
        """True if a rule may use the URL's host and port."""
        host = (url.raw_host or "").rstrip(".").lower()
        host = f"[{host}]" if ":" in host else host
        host_and_port = host if url.port == _PORTS.get(url.scheme) else f"{host}:{url.port}"
        return any(fnmatchcase(host_and_port, pattern.lower()) for pattern in self.hosts)

    def allows_address(self, address: str) -> bool:
        """True if a connection to this IP address is allowed. An IPv4 address embedded in IPv6 is checked as IPv4."""
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
        """Return the addresses that are allowed. Raises Forbidden if none is."""
        allowed = [address for address in addresses if self.allows_address(address)]
        if not allowed:
            raise Forbidden(
                "the URL leads to a private, local or reserved address: if it must, add it to "
                f"{self.section}.allow_networks"
            )
        return allowed


def is_address(host: str) -> bool:
    """True if the host is an IP address, so that no DNS look-up is needed."""
    return _parse_address(host) is not None


def _parse_address(host: str) -> Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _embedded_ipv4(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds (mapped or NAT64), or any other address unchanged."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address


def origin(url: URL) -> str:
    """Return the URL's scheme, host and port, without the path and query, which may be secret."""
    return str(url.origin())
