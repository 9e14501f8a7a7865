"""Where we may post to: the guard against addresses that lead into a network of our own (SSRF). Opens nothing.

Whoever writes a launch plan may name a URL, and our network may hold servers that trust whoever reaches them.
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

# IANA, "IPv4 Special-Purpose Address Registry", and multicast (RFC 5771). `ipaddress.is_global` differs between Pythons.
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
        "168.63.129.16/32",  # Azure's servers of its virtual machines, at a public address
    )
]
_OPEN_V6 = IPv6Network("2000::/3")
"""All that IANA has given out as global unicast addresses (RFC 4291, 2.4); the registry's exceptions within it follow."""
_CLOSED_V6 = [
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
]
_NAT64 = IPv6Network("64:ff9b::/96")
"""An IPv4 address in its last 32 bits, and so on the way to it (RFC 6052)."""
_PORTS = {"https": 443, "http": 80}
_NUMBER = re.compile(r"(\d+|0x[0-9a-f]*)\.?", re.IGNORECASE)


class Forbidden(Exception):
    """We don't go there. `str()` is a sentence that says why, free of the URL's path and query."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What is allowed, as the settings say."""

    section: str
    """Where the settings say it: `channels.webhook`."""
    hosts: Sequence[str] = ()
    """Hosts that URLs in rules may name: `hooks.example.com`, `*.example.com`, `example.com:8443`; a host without a port
    stands for the usual one."""
    networks: Sequence[Network] = ()
    """Addresses that are allowed though they are no public ones."""
    plain_http: bool = False

    def url(self, text: str) -> URL:
        """The URL, read as it will be used. Raises Forbidden where it could be no address for us."""
        from yarl import URL  # noqa: PLC0415 - kept out of the command line's start

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
        literal = _literal(host)
        if literal is None and _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):  # 127.1, 0x7f000001
            raise Forbidden("the URL's host is neither a name nor an address as it is usually written")
        if literal is not None:
            self.pass_on(host)  # a literal is never looked up, so nobody else would look at it
        return url.with_fragment(None)

    def lists(self, url: URL) -> bool:
        """Whether a rule may name this host and port."""
        host = (url.raw_host or "").rstrip(".").lower()
        host = f"[{host}]" if ":" in host else host
        named = host if url.port == _PORTS.get(url.scheme) else f"{host}:{url.port}"
        return any(fnmatchcase(named, pattern.lower()) for pattern in self.hosts)

    def admits(self, address: str) -> bool:
        """Whether a connection to this IP address may be made, also where an IPv6 address stands for an IPv4 one."""
        found = _literal(address)
        if found is None:
            return False
        meant = _meant(found)
        if any(one in network for network in self.networks for one in (found, meant) if one.version == network.version):
            return True
        if isinstance(meant, IPv4Address):
            return not any(meant in network for network in _CLOSED_V4)
        return meant.scope_id is None and meant in _OPEN_V6 and not any(meant in network for network in _CLOSED_V6)

    def pass_on(self, *addresses: str) -> list[str]:
        """Those of a host's addresses that may be used. Raises Forbidden where none may."""
        admitted = [address for address in addresses if self.admits(address)]
        if not admitted:
            raise Forbidden(
                f"the URL leads to a private, local or reserved address: if it must, add it to {self.section}.allow_networks"
            )
        return admitted


def is_address(host: str) -> bool:
    """Whether a host is an IP address, so that nobody looks it up."""
    return _literal(host) is not None


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, else itself."""
    if isinstance(address, IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address


def origin(url: URL) -> str:
    """Scheme, host and port, without what may be secret."""
    return str(url.origin())
