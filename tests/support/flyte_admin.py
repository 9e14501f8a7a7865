"""FlyteAdmin for tests: what lies on it, and clients that know where it is."""

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
    """An answer of a real FlyteAdmin, in protobuf's JSON."""
    return json.loads((LAUNCH_PLANS / f"{name}.json").read_text())


def an_ended(execution: ExecutionId | None = None, **changes: Any) -> dict[str, Any]:
    """An Execution that failed, by the launch plan's rules."""
    execution = execution or an_execution()
    answer: dict[str, Any] = recorded("execution-using-launch-plan-rules")
    answer["id"] = execution.model_dump()
    for part in ("spec", "closure"):
        answer[part] |= changes.get(part, {})
    return answer


def config(server: LocalFlyteAdmin, **changes: Any) -> FlyteAdminConfig:
    given: dict[str, Any] = {"endpoint": server.endpoint, "insecure": server.tls is None, "timeout": "2s"}
    if server.login is not None:
        given |= {"client_id": server.login.client_id, "client_secret": server.login.client_secret}
    return FlyteAdminConfig.model_validate(given | changes)


@asynccontextmanager
async def asking(server: LocalFlyteAdmin, clock: Clock | None = None, **changes: Any) -> AsyncIterator[FlyteAdmin]:
    """A client of the server, while the block lasts."""
    async with open_flyte_admin(config(server, **changes), clock or SystemClock()) as admin:
        yield admin
