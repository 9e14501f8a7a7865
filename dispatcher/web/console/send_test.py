"""The page that sends a test message, and shows the provider's answer."""

from __future__ import annotations

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from dispatcher.parsing.validation_errors import first_problem
from dispatcher.send_test import SendTestResult
from dispatcher.web.auth.access import caller, still_allowed
from dispatcher.web.config import Scope
from dispatcher.web.console.base import Console
from dispatcher.web.forms import read_form
from dispatcher.web.send_test import SendTestRefused, SendTestRequest

_FIELDS = ("channel", "recipient", "phase", "execution")


async def get(console: Console, request: Request) -> Response:
    """Show the form. The query can fill in its fields."""
    return _page(console, request, {name: request.query_params.get(name, "") for name in _FIELDS})


async def post(console: Console, request: Request) -> Response:
    form = await read_form(request)
    given = {name: form.get(name, "").strip() for name in _FIELDS}
    operates = still_allowed(request, Scope.OPERATE)
    try:
        wanted = SendTestRequest.model_validate({name: value for name, value in given.items() if value})
        result = await console.send_test.send(wanted, caller=caller(request), operates=operates)
    except ValidationError as error:
        return _page(console, request, given, problem=first_problem(error), status=400)
    except SendTestRefused as error:
        return _page(console, request, given, problem=str(error), status=error.status)
    return _page(console, request, given, result=result)


def _page(
    console: Console,
    request: Request,
    given: dict[str, str],
    *,
    result: SendTestResult | None = None,
    problem: str = "",
    status: int = 200,
) -> Response:
    return console.render(
        request,
        "send_test.html.j2",
        status=status,
        given=given,
        result=result,
        problem=problem,
        channels=[(name, console.channel_name(name)) for name in console.channels],
        operates=still_allowed(request, Scope.OPERATE),
    )
