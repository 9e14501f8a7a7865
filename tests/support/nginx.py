"""Runs Debian's nginx as a reverse proxy that serves Flyte and the dispatcher on one host, as an Ingress does."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trustme

from tests.support.service import free_port
from tests.support.tls import a_certificate
from tests.support.waiting import until

_NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_nginx = pytest.mark.skipif(_NGINX is None, reason="no nginx here: apt-get install nginx-light")
_SETTINGS = """
daemon off;
master_process off;
pid {folder}/pid;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_set_header Host $http_host;
  proxy_set_header X-Forwarded-For $remote_addr;
  proxy_set_header X-Forwarded-Proto $scheme;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/cert.pem;
    ssl_certificate_key {folder}/key.pem;
    location {base_path}/ {{ proxy_pass {target}; }}
    location / {{ return 200 "Flyte\\n"; }}
  }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, dispatcher: str, base_path: str, *, removes: bool = False) -> AsyncIterator[str]:
    """Run nginx with TLS. It passes requests below the base path to the dispatcher at this URL, and answers others as
    Flyte. Yields its URL.

    `removes`: it removes the base path before it passes a request on.
    """
    a_certificate(folder, trustme.CA())
    port = free_port()
    target = f"{dispatcher}/" if removes else dispatcher
    settings = folder / "nginx.conf"
    settings.write_text(_SETTINGS.format(folder=folder, port=port, base_path=base_path, target=target))
    command = (_NGINX or "nginx", "-p", str(folder), "-c", str(settings), "-e", str(folder / "nginx.log"))
    process = await asyncio.create_subprocess_exec(*command)

    def listening() -> bool:
        assert process.returncode is None, (folder / "nginx.log").read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        await until(listening, 10)
        yield f"https://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
