"""Answers that more than one page gives."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

PROBLEM = "application/problem+json"


def problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """Why the request wasn't done, for programs and people alike."""
    return JSONResponse({"status": "error", "reason": reason}, status, dict(headers or {}))


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem_details(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    details = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return Response(details.model_dump_json(), status, dict(headers or {}), media_type=PROBLEM)


async def refused(_: Request, error: Exception) -> Response:
    """What the library refuses, as we say it: no such page, another method, a body that is too large."""
    if not isinstance(error, HTTPException):  # Starlette's type of a handler is wider than what it hands in
        raise error
    return problem(error.status_code, error.detail, error.headers)
