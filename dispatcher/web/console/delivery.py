"""A delivery's page: the message as the provider gets it, and each attempt with the provider's answer."""

from __future__ import annotations

from email.parser import BytesHeaderParser
from email.policy import default

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from channels.contract import ChannelError, Message
from dispatcher.explain import delivery_with_history
from dispatcher.ledger import StoredDelivery
from dispatcher.model.delivery import Delivery
from dispatcher.model.event import ExecutionId
from dispatcher.preview.html import headline, page, plain_text
from dispatcher.web.console.base import Console, PageError
from dispatcher.web.headers import FRAME_POLICY

_NO_HTML = "<!doctype html><title>No HTML</title><p>This message has no HTML.</p>"


async def get(console: Console, request: Request) -> Response:
    stored = await _stored_delivery(console, request)
    delivery, now = stored.delivery, console.clock.now()
    content = delivery.content or {}
    kind = console.channel_types.get(delivery.channel)
    wire = _wire(console, delivery)
    is_mail = kind is not None and kind.form.mail is not None
    return console.render(
        request,
        "delivery.html.j2",
        delivery=await delivery_with_history(console.ledger, stored, now=now),
        links=await _links(console, delivery),
        rendered=delivery.content is not None,
        headline=headline(kind, content),
        text=plain_text(kind, content),
        headers=_headers(wire) if wire is not None and is_mail else [],
        wire=wire.decode(errors="replace") if wire is not None else None,
        data=orjson.dumps(content, option=orjson.OPT_INDENT_2).decode(),
        members_key=delivery.tells_of or delivery.key,
        threaded=bool(delivery.thread),
        leased=delivery.lease is not None and delivery.due_at > now,
    )


async def message(console: Console, request: Request) -> Response:
    """Return the message as its recipients see it. The delivery's page shows it in a sandboxed frame."""
    delivery = (await _stored_delivery(console, request)).delivery
    html = page(delivery.channel, console.channel_types.get(delivery.channel), delivery.content or {})
    return HTMLResponse(html or _NO_HTML, headers={"Content-Security-Policy": FRAME_POLICY})


async def _links(console: Console, delivery: Delivery) -> list[tuple[str, str]]:
    if not delivery.event:
        return []
    project, domain, name, _ = delivery.event.split("/")
    execution = ExecutionId(project=project, domain=domain, name=name)
    urls = [stored.event.url for stored in await console.ledger.history.events(execution)]
    return console.links(execution, next(filter(None, urls), ""))


async def _stored_delivery(console: Console, request: Request) -> StoredDelivery:
    stored = await console.ledger.history.delivery(request.path_params["key"])
    if stored is None:
        raise PageError(404, "There is no such delivery. Its event may be older than ledger.retention.")
    return stored


def _wire(console: Console, delivery: Delivery) -> bytes | None:
    """Return the bytes that the channel would send to the provider, with secrets masked.

    Returns None if the channel is not configured, if the content is not rendered yet, or if the channel rejects it.
    """
    channel = console.channels.get(delivery.channel)
    if channel is None or not delivery.addresses or delivery.content is None:
        return None
    message = Message(
        key=delivery.key,
        recipients=delivery.addresses,
        content=delivery.content,
        created_at=delivery.created_at,
        note=delivery.note,
    )
    try:
        return channel.wire_preview(message).body
    except (ChannelError, LookupError, TypeError, ValueError):
        # Another version of the dispatcher or a custom template may have created content that this channel rejects.
        return None


def _headers(mail: bytes) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in BytesHeaderParser(policy=default).parsebytes(mail).items()]
