"""Responses that several pages share."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

PROBLEM_JSON = "application/problem+json"


def problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as JSON, with its reason in words."""
    return JSONResponse({"status": "error", "reason": reason}, status, dict(headers or {}))


class ProblemDetails(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem_details(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error of the API, as `application/problem+json`."""
    details = ProblemDetails(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return Response(details.model_dump_json(), status, dict(headers or {}), media_type=PROBLEM_JSON)


async def http_error(_: Request, error: Exception) -> Response:
    """Convert Starlette's own errors (unknown path, wrong method, oversized body) to the form of `problem`."""
    if not isinstance(error, HTTPException):  # narrows the type that Starlette declares for handlers
        raise error
    return problem(error.status_code, error.detail, error.headers)
