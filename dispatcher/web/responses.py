"""Error responses that several pages use."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from dispatcher.web.base_path import page_path
from dispatcher.web.frame import error_page

PROBLEM_JSON = "application/problem+json"


class Refusal(BaseModel):
    """The body of the error responses of all pages except the API's and the console's."""

    status: Literal["error"] = "error"
    reason: str


def problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error response in JSON, with the reason as text."""
    return json_response(Refusal(reason=reason), status, headers)


def json_response(body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with the body as JSON, without the fields that are None."""
    return Response(body.model_dump_json(exclude_none=True), status, dict(headers or {}), media_type="application/json")


class ProblemDetails(BaseModel):
    """The body of the API's error responses, which says what went wrong (RFC 9457, problem details)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem_details(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error response of the API, as `application/problem+json`."""
    details = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return Response(details.model_dump_json(), status, dict(headers or {}), media_type=PROBLEM_JSON)


def error_response(scope: Scope, status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return the error response to a request, in the form that its client expects: problem details from the API, an HTML
    page in a browser, or else JSON.
    """
    if page_path(scope).startswith("/api/"):
        return problem_details(status, reason, headers)
    if "text/html" in Headers(scope=scope).get("accept", ""):
        return error_page(scope, status, reason, headers or {})
    return problem(status, reason, headers)


async def http_error(request: Request, error: Exception) -> Response:
    """Exception handler: send an error that Starlette raised, such as an unknown path or a wrong method."""
    if not isinstance(error, HTTPException):  # for mypy: Starlette calls this handler only with an HTTPException
        raise error
    return error_response(request.scope, error.status_code, error.detail, error.headers)


async def internal_error(request: Request, error: Exception) -> Response:
    """Exception handler: say that an unforeseen exception was raised. The server then writes it to the log."""
    del error
    return error_response(request.scope, 500, "an internal error: the log has the details")


async def disconnected(_: Request, error: Exception) -> Response:
    """Exception handler: the client has disconnected before its request was complete, so nobody reads this response."""
    del error
    return Response(status_code=400)
