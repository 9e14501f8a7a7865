"""Validates host names, ports and URLs in settings.

Each function raises `ValueError` with a clause that says what is wrong and what to write. The clause does not contain
the value, because a URL may be secret.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

MAX_PORT = 65535
HEADER_NAME = r"^[!#-'*+.0-9A-Z^_`a-z|~-]+$"
"""Pattern of an HTTP header's name (RFC 9110, 5.6.2: token)."""
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!\d+\.?$){_LABEL}\.?")
_HOST_PORT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:]*):(?P<port>[0-9]{1,5})")


def check_host(text: str) -> str:
    """Return a host: a name in ASCII (RFC 1123, 2.1; underscores are allowed), or an IP address without brackets."""
    if not text.isascii():
        raise ValueError("a host name is written in ASCII: xn--… for a name with other letters")
    if len(text) <= 253 and _NAME.fullmatch(text):
        return text
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("not a host: write a name or an IP address, without a scheme, a port or a path") from None
    return text


def host_and_port(text: str, *, lowest: int = 1) -> tuple[str, int]:
    """Return the host and the port of `HOST:PORT`. An IPv6 address needs brackets: `[::1]:8080`.

    `lowest`: the lowest port that is accepted; with 0, the caller lets the system choose a port.
    """
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError("write HOST:PORT, and [HOST]:PORT for an IPv6 address")
    host = match["host"]
    bracketed = host.startswith("[")
    check_host(host.strip("[]"))
    if bracketed != (":" in host):
        raise ValueError("write HOST:PORT, and [HOST]:PORT for an IPv6 address")
    port = int(match["port"])
    if not lowest <= port <= MAX_PORT:
        raise ValueError(f"no such port: ports are {lowest} to {MAX_PORT}")
    return host.strip("[]"), port


def check_http_url(text: str) -> str:
    """Return an http or https URL with a host, without a login."""
    if any(sign <= " " or sign == "\x7f" for sign in text):
        raise ValueError("a URL has no spaces and no line breaks")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"write https://HOST/PATH; a port is 1 to {MAX_PORT}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ValueError("write https://HOST/PATH")
    if port == 0:
        raise ValueError(f"no such port: ports are 1 to {MAX_PORT}")
    check_host(host)
    if "@" in parts.netloc:
        raise ValueError("take the login out of the URL: it would be shown")
    return text


HttpUrl = Annotated[str, AfterValidator(check_http_url)]
"""An http or https URL in settings."""
