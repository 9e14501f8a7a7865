"""FlyteAdmin for tests: executions for the local server, and clients of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dispatcher.clock import Clock, SystemClock
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.flyte.admin import FlyteAdminConfig, open_flyte_admin
from dispatcher.flyte.admin.client import FlyteAdmin
from dispatcher.model.event import ExecutionId
from tests.support.builders import an_execution
from tests.support.samples import LAUNCH_PLANS


def recorded(name: str) -> Any:
    """A recorded answer of a real FlyteAdmin, in protobuf's JSON."""
    return json.loads((LAUNCH_PLANS / f"{name}.json").read_text())


def a_finished_execution(execution: ExecutionId | None = None, **changes: Any) -> dict[str, Any]:
    """A failed Execution whose effective rules are the launch plan's."""
    execution = execution or an_execution()
    answer: dict[str, Any] = recorded("execution-using-launch-plan-rules")
    answer["id"] = execution.model_dump()
    for part in ("spec", "closure"):
        answer[part] |= changes.get(part, {})
    return answer


def config(server: LocalFlyteAdmin, **changes: Any) -> FlyteAdminConfig:
    given: dict[str, Any] = {"endpoint": server.endpoint, "insecure": server.tls is None, "timeout": "2s"}
    if server.oauth is not None:
        given |= {"client_id": server.oauth.client_id, "client_secret": server.oauth.client_secret}
    return FlyteAdminConfig.model_validate(given | changes)


@asynccontextmanager
async def admin_client(
    server: LocalFlyteAdmin, clock: Clock | None = None, **changes: Any
) -> AsyncIterator[FlyteAdmin]:
    """A client of the server, closed at the end of the block."""
    async with open_flyte_admin(config(server, **changes), clock or SystemClock()) as admin:
        yield admin
