"""An execution's page. Like `dispatcher explain`, it shows the decision with its reason, the rules and deliveries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.explain import REJECTED, Explanation, explanations
from dispatcher.model.event import ExecutionId
from dispatcher.rendering.traceback import summarize
from dispatcher.web.api.endpoints import DELIVERIES_AT_MOST
from dispatcher.web.console.base import Console, PageError


async def get(console: Console, request: Request) -> Response:
    try:
        execution = ExecutionId(**{name: request.path_params[name] for name in ("project", "domain", "name")})
    except ValidationError:
        raise PageError(404, "This is not a valid execution name.") from None
    rejected = await console.ledger.rejected.of_executions([execution])
    found = await explanations(
        console.ledger, execution, rejected, deliveries_at_most=DELIVERIES_AT_MOST, now=console.clock.now()
    )
    if not found:
        return console.render(
            request, "no_record.html.j2", status=404, execution=execution, links=console.links(execution)
        )
    return console.render(
        request,
        "execution.html.j2",
        execution=execution,
        links=console.links(execution, found[-1].event.get("url", "")),
        explanations=[_template_data(explanation) for explanation in found],
    )


def _template_data(explanation: Explanation) -> Mapping[str, Any]:
    error = explanation.event.get("error") or {}
    return {
        **explanation.as_data(),
        "rejected": explanation.event["verdict"] == REJECTED,
        "error": summarize(error.get("message", "")) if error.get("message") else None,
    }
