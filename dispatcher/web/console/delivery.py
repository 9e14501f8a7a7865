"""One delivery: exactly what is sent, and each attempt with the provider's answer."""

from __future__ import annotations

from email.parser import BytesHeaderParser
from email.policy import default
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from channels.contract import ChannelError, Message
from dispatcher.explain import attempt_data, delivery_data
from dispatcher.ledger import StoredDelivery
from dispatcher.model.delivery import Delivery
from dispatcher.preview.html import page as drawn_page
from dispatcher.preview.html import plain_text
from dispatcher.web.console.shell import Shell, Sorry
from dispatcher.web.headers import FRAMED

_NO_HTML = "<!doctype html><title>No HTML</title><p>This message has no HTML.</p>"


async def get(shell: Shell, request: Request) -> Response:
    filed = await _filed(shell, request)
    delivery = filed.delivery
    history = await shell.ledger.history(delivery.key)
    wire = _wire(shell, delivery)
    return shell.draw(
        request,
        "delivery.html.j2",
        delivery=delivery_data(filed),
        attempts=[attempt_data(attempt) for attempt in history],
        headline=_headline(delivery),
        text=plain_text(delivery.channel, delivery.content),
        headers=_headers(wire) if wire is not None and delivery.channel == "email" else [],
        wire=wire.decode(errors="replace") if wire is not None else None,
        data=orjson.dumps(delivery.content, option=orjson.OPT_INDENT_2).decode(),
        leased=delivery.lease is not None,
    )


async def message(shell: Shell, request: Request) -> Response:
    """The message as its readers see it, for a frame in which nothing can be done."""
    delivery = (await _filed(shell, request)).delivery
    if delivery.channel == "email":
        html = str(delivery.content.get("html") or _NO_HTML)
    else:
        html = drawn_page(delivery.channel, delivery.content)
    return HTMLResponse(html, headers={"Content-Security-Policy": FRAMED})


async def _filed(shell: Shell, request: Request) -> StoredDelivery:
    filed = await shell.ledger.delivery(request.path_params["key"])
    if filed is None:
        raise Sorry(404, "There is no such delivery. Its event may be older than ledger.retention.")
    return filed


def _headline(delivery: Delivery) -> str:
    """What a reader sees first."""
    content: Any = delivery.content
    payload = content.get("payload")
    summary = payload.get("summary") if isinstance(payload, dict) else None
    found = (content.get("subject"), summary, content.get("fallbackText"), content.get("text"))
    return next((str(words) for words in found if words), "")


def _wire(shell: Shell, delivery: Delivery) -> bytes | None:
    """What the channel hands over, secrets masked; None where the channel is switched off, or knows no such address."""
    channel = shell.channels.get(delivery.channel)
    if channel is None or not delivery.addresses:
        return None
    message = Message(
        key=delivery.key,
        recipients=delivery.addresses,
        content=delivery.content,
        created_at=delivery.created_at,
    )
    try:
        return channel.wire_preview(message).body
    except (ChannelError, LookupError, TypeError, ValueError):  # content that no template of ours made
        return None


def _headers(mail: bytes) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in BytesHeaderParser(policy=default).parsebytes(mail).items()]
