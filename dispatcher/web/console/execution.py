"""One execution: why somebody was told of its end, or was not; the picture of `dispatcher explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.explain import REJECTED, Explanation, explanations
from dispatcher.model.event import ExecutionId
from dispatcher.rendering.traceback import tell
from dispatcher.web.api.endpoints import DELIVERIES_AT_MOST
from dispatcher.web.console.shell import Shell, Sorry


async def get(shell: Shell, request: Request) -> Response:
    try:
        execution = ExecutionId(**{name: request.path_params[name] for name in ("project", "domain", "name")})
    except ValidationError:
        raise Sorry(404, "There can be no such execution.") from None
    refused = await shell.ledger.rejected_of([execution])
    found = await explanations(shell.ledger, execution, refused, deliveries_at_most=DELIVERIES_AT_MOST)
    if not found:
        return shell.draw(request, "unknown.html.j2", status=404, execution=execution)
    return shell.draw(
        request, "execution.html.j2", execution=execution, explanations=[_shown(account) for account in found]
    )


def _shown(account: Explanation) -> Mapping[str, Any]:
    error = account.event.get("error") or {}
    return {
        **account.as_data(),
        "rejected": account.event["verdict"] == REJECTED,
        "error": tell(error.get("message", "")) if error.get("message") else None,
        "numbers": {rule["source"]: number for number, rule in enumerate(account.rules, start=1)},
    }
