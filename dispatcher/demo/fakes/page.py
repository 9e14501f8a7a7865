"""The inbox's web page, which shows each message as its recipient would see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from channels.registry import CHANNEL_TYPES
from dispatcher.demo.fakes.mail import Mail
from dispatcher.demo.fakes.pagerduty import Incident
from dispatcher.demo.fakes.slack import SlackMessage
from dispatcher.demo.fakes.webhooks import Call, Card
from dispatcher.preview.html import headline, style_sheet, to_html

_PAGES = Path(__file__).parent / "pages"
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src data:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


class InboxPage:
    """The page at `/` shows all messages, newest first. Its script updates the page from `/list` every second."""

    def __init__(self, arrivals: Sequence[Any], console_url: Callable[[], str]) -> None:
        """`console_url` returns the address of the dispatcher's console; empty if it has none yet."""
        self._arrivals = arrivals
        self._console_url = console_url
        self._templates = Environment(
            loader=FileSystemLoader(_PAGES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def routes(self) -> list[Route]:
        return [Route("/", self._page), Route("/list", self._list), Route("/inbox.js", self._script)]

    async def _page(self, _: Request) -> Response:
        return self._render(
            "inbox.html.j2", style=style_sheet(*CHANNEL_TYPES.values()), console_url=self._console_url()
        )

    async def _list(self, _: Request) -> Response:
        return self._render("list.html.j2")

    async def _script(self, _: Request) -> Response:
        return Response((_PAGES / "inbox.js").read_bytes(), media_type="text/javascript", headers=_HEADERS)

    def _render(self, template: str, **more: str) -> Response:
        items = [_item(index, arrival) for index, arrival in enumerate(self._arrivals)]
        newest_first = [item for item in reversed(items) if item]
        html = self._templates.get_template(template).render(items=newest_first, **more)
        return HTMLResponse(html, headers=_HEADERS)


def _item(index: int, arrival: Mail | SlackMessage | Incident | Card | Call) -> Mapping[str, Any]:
    more: dict[str, Any] = {}
    match arrival:
        case Mail():
            return {
                "id": index,
                "kind": "mail",
                "title": arrival.subject,
                "to": ", ".join(arrival.recipients),
                "html": arrival.part("html"),
                "text": arrival.part("plain"),
                "source": arrival.raw.decode(errors="replace"),
            }
        case SlackMessage():
            channel, content = "slack", arrival.body
            to = arrival.name if arrival.name.startswith("@") else f"#{arrival.name}"
        case Incident():
            channel, content, to = "pagerduty", arrival.events[0], arrival.service
            more = {"status": arrival.status, "merged": len(arrival.events)}
        case Card():
            channel, content, to = "teams", arrival.body, arrival.team
        case Call():
            channel, content, to = "webhook", arrival.body, arrival.name
    kind = CHANNEL_TYPES[channel]
    drawn = to_html(channel, kind, content)
    return {"id": index, "kind": channel, "title": headline(kind, content), "to": to, "drawn": drawn, **more}
