"""Reads HTML forms as browsers send them: `application/x-www-form-urlencoded`, which is always UTF-8 (WHATWG URL, 5)."""

from __future__ import annotations

from email.message import Message
from urllib.parse import parse_qsl

from starlette.datastructures import ImmutableMultiDict
from starlette.exceptions import HTTPException
from starlette.requests import Request

from dispatcher.web.limits import client_of, log_refusal

FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 1000

Form = ImmutableMultiDict[str, str]


async def read_form(request: Request) -> Form:
    """Return the fields of the request's form.

    Raises HTTPException with status 400, after a line in the log, if the body is not such a form.
    """
    header = Message()
    header["Content-Type"] = request.headers.get("content-type", "")
    body = await request.body()
    try:
        if header.get_content_type() != FORM or str(header.get_param("charset", "utf-8")).lower() != "utf-8":
            raise ValueError
        return Form(
            parse_qsl(
                body.decode("utf-8"),
                keep_blank_values=True,
                encoding="utf-8",
                errors="strict",
                max_num_fields=MAX_FIELDS,
            )
        )
    except ValueError:
        reason = f"a form has to be {FORM} in UTF-8, with {MAX_FIELDS} fields at most"
        log_refusal(client_of(request.scope), reason)
        raise HTTPException(400, reason) from None
