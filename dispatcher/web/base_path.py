"""The path below which browsers find the dispatcher (`http.base_path`), if it shares its host with other programs.

Links, redirects and cookies always have the base path. Requests may lack it: probes, Prometheus and publishers reach the
process directly, and some proxies remove the base path before they pass a request on.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class BasePath:
    """ASGI middleware that gives each request its full path, and the base path as `root_path` (ASGI, HTTP scope)."""

    def __init__(self, app: ASGIApp, base_path: str) -> None:
        self._app = app
        self._base_path = base_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = page_path({**scope, "root_path": self._base_path})
            scope = {**scope, "root_path": self._base_path, "path": self._base_path + path}
        await self._app(scope, receive, send)


def page_path(scope: Scope) -> str:
    """Return the path of the requested page without the base path, such as `/login`."""
    path: str = scope["path"]
    base_path = base_path_of(scope)
    return path.removeprefix(base_path) or "/" if f"{path}/".startswith(f"{base_path}/") else path


def base_path_of(scope: Scope) -> str:
    """Return the base path of a request; empty if the dispatcher has a host of its own."""
    base_path: str = scope.get("root_path", "")
    return base_path
