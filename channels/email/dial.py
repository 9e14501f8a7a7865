"""Opens a TCP connection to one of a relay's addresses (RFC 8305, "Happy Eyeballs")."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import aiohappyeyeballs

ATTEMPT_DELAY = 0.25
"""Seconds to wait for an address before the next one is tried too (RFC 8305, 5: Connection Attempt Delay)."""
FAILED_ADDRESS_LAST = 30.0
"""For this many seconds after an address took a connection but gave no service, the other addresses are tried before
it."""

Address = aiohappyeyeballs.AddrInfoType


class Dialer:
    """Finds the addresses of one relay, and connects to the first that answers."""

    def __init__(self, host: str, port: int, timeout: float) -> None:
        """`timeout`: maximum number of seconds to look the host up, and for each address to take a connection."""
        self._host = host
        self._port = port
        self._timeout = timeout
        self._failed_at: dict[str, float] = {}

    async def addresses(self) -> list[Address]:
        """Look the host up. Return its addresses, and those that failed recently last. Raises `TimeoutError` or
        `OSError`.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        recently = loop.time() - FAILED_ADDRESS_LAST
        self._failed_at = {ip: at for ip, at in self._failed_at.items() if at > recently}
        return sorted(found, key=lambda address: ip_of(address) in self._failed_at)

    async def connect(self, addresses: Sequence[Address]) -> tuple[socket.socket, str]:
        """Connect to the first of the addresses that answers. Return the connection and the IP address.

        After `ATTEMPT_DELAY` without an answer, the next address is tried at the same time. Raises `TimeoutError` or
        `OSError`, and with uvloop `RuntimeError`.
        """
        async with asyncio.timeout(self._timeout + ATTEMPT_DELAY * (len(addresses) - 1)):
            connected = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY)
        try:
            return connected, str(connected.getpeername()[0])
        except OSError:  # the relay has closed the connection already
            connected.close()
            raise

    def failed(self, ip: str) -> None:
        """Remember that the address took a connection but gave no service."""
        self._failed_at[ip] = asyncio.get_running_loop().time()


def ip_of(address: Address) -> str:
    """Return the IP address in an entry of `getaddrinfo`."""
    return str(address[4][0])
