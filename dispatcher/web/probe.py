"""Requests a page of the service, as the health check of a container engine or of Helm does.

`python -m dispatcher.web.probe [HOST:PORT [PATH]]`, by default 127.0.0.1:8080 and /healthz. It prints the page, and
exits with status 0 if the page's status is 200, else with status 1. The service speaks TLS if `http.tls` is set: a
server that answers a plaintext request with something other than HTTP is asked again with TLS. The certificate is not
verified, because it names the service's public address and not this one. Imports only the standard library, because
container engines start it every few seconds.
"""

from __future__ import annotations

import http.client
import ssl
import sys
from contextlib import closing

TIMEOUT = 4.0
"""Maximum seconds for each request, less than the time that the image's HEALTHCHECK gives the whole command."""


def main(server: str = "127.0.0.1:8080", path: str = "/healthz") -> int:
    """Request the page, print it, and return the exit status."""
    try:
        status, page = _get(http.client.HTTPConnection(server, timeout=TIMEOUT), path)
    except (http.client.HTTPException, ConnectionResetError):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        status, page = _get(http.client.HTTPSConnection(server, timeout=TIMEOUT, context=context), path)
    sys.stdout.write(f"{page}\n")
    return 0 if status == http.client.OK else 1


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, str]:
    with closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(65536).decode(errors="replace")


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"no answer: {error}")
