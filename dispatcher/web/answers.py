"""Answers that more than one page gives."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import JSONResponse, Response


def problem(status: int, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    """Why the request wasn't done, for programs and people alike."""
    return JSONResponse({"status": "error", "reason": reason}, status, dict(headers or {}))
