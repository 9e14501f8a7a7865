"""GET /healthz returns 200 while the event loop runs.

GET /readyz returns 200 if all components are ready, else 503 with the reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dispatcher.errors import DispatcherError

TIMEOUT = 3.0
"""Maximum seconds for each check; all checks run at the same time. The limit is short, because an orchestrator's probe
also has a short timeout."""

ReadinessCheck = Callable[[], Awaitable[str | None]]
"""Returns None if the component is ready, else the reason why it is not. May also raise DispatcherError: the text of the
exception is then the reason."""


async def alive(_: Request) -> Response:
    return JSONResponse({"status": "alive"})


class ReadyPage:
    """Serves /readyz: runs the readiness check of each component and reports the results."""

    def __init__(self, checks: Mapping[str, ReadinessCheck]) -> None:
        self._checks = checks

    async def unready_reasons(self) -> dict[str, str | None]:
        """Run all checks. See the function of this name."""
        return await unready_reasons(self._checks)

    async def get(self, _: Request) -> Response:
        reasons = await self.unready_reasons()
        problems = {name: reason for name, reason in reasons.items() if reason is not None}
        if problems:
            return JSONResponse({"status": "not ready", "why": problems}, 503)
        return JSONResponse({"status": "ready", "components": sorted(reasons)})


async def unready_reasons(checks: Mapping[str, ReadinessCheck]) -> dict[str, str | None]:
    """Return a mapping from each component to the reason why it is not ready, or to None if it is ready."""
    async with asyncio.TaskGroup() as checking:
        tasks = {name: checking.create_task(_run(check)) for name, check in checks.items()}
    return {name: task.result() for name, task in tasks.items()}


async def _run(check: ReadinessCheck) -> str | None:
    try:
        async with asyncio.timeout(TIMEOUT):
            return await check()
    except TimeoutError:
        return f"no answer within {TIMEOUT:.0f} s"
    except DispatcherError as error:
        return str(error)
