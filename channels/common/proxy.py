"""Chooses the proxy for a URL from the environment variables HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.

Each variable may also be written in lower case. Every HTTP client of the dispatcher that is not part of a library with
the same rules (requests) asks this module.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies

_PORTS = {"http": 80, "https": 443}


class UnusableProxy(ValueError):
    """The environment names a proxy that can't be used. `str()` names the variable, and not the proxy's login."""


def proxy_for(url: str) -> str | None:
    """Return the URL of the proxy for requests to `url`; None if they go to the server directly.

    NO_PROXY contains hosts, separated by commas. An entry matches the host itself and all names below it; it may have a
    port. A network such as `10.0.0.0/8` matches a host that is an IP address. `*` matches every host. Raises
    `UnusableProxy` if the proxy is not an HTTP proxy.
    """
    proxies = getproxies()
    try:
        target = urlsplit(url)
        port = target.port or _PORTS.get(target.scheme)
    except ValueError:
        return None  # no URL, which the request reports
    name = target.scheme if proxies.get(target.scheme) else "all"
    proxy = proxies.get(name, "").strip()
    host = (target.hostname or "").rstrip(".")
    if not proxy or _is_excluded(host, port, proxies.get("no", "")):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise UnusableProxy(f"{name.upper()}_PROXY must be the URL of an HTTP proxy: http://HOST:PORT")
    return proxy


def _is_excluded(host: str, port: int | None, no_proxy: str) -> bool:
    return any(_matches(host, port, entry.strip().lower()) for entry in no_proxy.split(","))


def _matches(host: str, port: int | None, entry: str) -> bool:
    if entry == "*":
        return True
    try:
        return ip_address(host) in ip_network(entry.strip("[]"), strict=False)
    except ValueError:  # the host or the entry is a name, or the entry has a port
        name, _, entry_port = entry.partition(":") if entry.count(":") == 1 else (entry, "", "")
        name = name.removeprefix("*").lstrip(".")
        if not name or (entry_port and entry_port != str(port)):
            return False
        return host == name or host.endswith(f".{name}")
