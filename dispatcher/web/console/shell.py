"""What every page of the console has: the ledger to look into, the desk to act through, and its frame."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import humanize
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from channels.contract import Channel
from dispatcher.clock import Clock
from dispatcher.errors import Unavailable
from dispatcher.ledger import Ledger
from dispatcher.operations import Operations
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.version import __version__
from dispatcher.web.activity_stream import Feed
from dispatcher.web.auth.access import Endpoint, caller, needs
from dispatcher.web.auth.session import COOKIE
from dispatcher.web.config import Scope

ROOT = "/console"
_TITLES = {"email": "Email", "slack": "Slack", "pagerduty": "PagerDuty", "teams": "Teams", "webhook": "Webhook"}
_JUST_NOW = timedelta(seconds=5)


class Sorry(Exception):
    """There is no such page, or it can't be had now; in words for people."""

    def __init__(self, status: int, says: str) -> None:
        super().__init__(says)
        self.status = status
        self.says = says


@dataclass(frozen=True, slots=True)
class Shell:
    """Draws pages and answers for them."""

    ledger: Ledger
    operations: Operations
    feed: Feed
    clock: Clock
    channels: Mapping[str, Channel]
    _templates: Environment = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_templates", _environment(self.clock))

    def guarded(self, scope: Scope, page: Page) -> Endpoint:
        """The page as an endpoint: for those who have the scope, and with words for what goes wrong."""

        async def endpoint(request: Request) -> Response:
            try:
                return await page(self, request)
            except Sorry as sorry:
                return self.sorry(request, sorry.status, sorry.says)
            except Unavailable as error:
                return self.sorry(request, 503, f"{error}. Nothing is lost: deliveries go on when it is back.")

        return needs(scope, endpoint, problem=self._turned_away)

    def draw(self, request: Request, template: str, *, status: int = 200, **facts: Any) -> HTMLResponse:
        """A whole page."""
        known = {
            "who": caller(request),
            "logged_in": COOKIE in request.cookies,
            "csrf_token": request.state.csrf_token,
            "path": request.url.path,
        }
        html = self._templates.get_template(template).render(**known, **facts)
        return HTMLResponse(html, status)

    def part(self, template: str, **facts: Any) -> str:
        """A part of a page, for one that is open already."""
        return self._templates.get_template(template).render(**facts)

    def sorry(self, request: Request, status: int, says: str) -> Response:
        return self.draw(request, "sorry.html.j2", status=status, title=HTTPStatus(status).phrase, says=says)

    def _turned_away(self, status: int, reason: str, headers: Mapping[str, str]) -> Response:
        facts = {
            "who": "",
            "logged_in": False,
            "csrf_token": "",
            "path": "",
            "title": HTTPStatus(status).phrase,
            "says": reason,
        }
        html = self._templates.get_template("sorry.html.j2").render(**facts)
        return HTMLResponse(html, status, dict(headers))


Page = Callable[[Shell, Request], Awaitable[Response]]


def read_query(model: type[BaseModel], request: Request, *, but: Sequence[str] = ()) -> tuple[Any, str]:
    """What the address asks for, fields that were left blank aside; the model's defaults and why, where it is wrong."""
    given = request.query_params
    lists = {name for name, entry in model.model_fields.items() if "list[" in str(entry.annotation)}
    data: dict[str, Any] = {}
    for name in given:
        values = [value.strip() for value in given.getlist(name) if value.strip()]
        if values and name not in but:
            data[name] = values if name in lists else values[-1]
    try:
        return model.model_validate(data), ""
    except ValidationError as error:
        return model(), first_problem(error)


def _environment(clock: Clock) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "version": __version__,
        "root": ROOT,
        "url": url,
        "when": lambda at: when(at, clock.now()),
        "channel_name": lambda name: _TITLES.get(name, name),
    }
    environment.filters |= {"exact": exact, "many": _many, "took": _took}
    return environment


def url(*path: str, **query: Any) -> str:
    """An address in the console; what is None is left out of the query."""
    asked = [
        (name, value if isinstance(value, list) else str(value))  # a cursor is a pair, and one value all the same
        for name, value in query.items()
        if value is not None and value != ""
    ]
    steps = "/".join(quote(step, safe="") for step in path)
    return f"{ROOT}/{steps}" + (f"?{urlencode(asked, doseq=True)}" if asked else "")


def when(at: datetime | str | None, now: datetime) -> Markup:
    """A time as so long ago; exactly, for who points at it. The page's script keeps it true."""
    if at is None:
        return Markup("")
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        moment.astimezone(UTC).isoformat(), exact(moment), _ago(now - moment)
    )


def _ago(span: timedelta) -> str:
    if abs(span) < _JUST_NOW:
        return "just now"
    said = humanize.naturaldelta(span)
    return f"{said} ago" if span > timedelta() else f"in {said}"


def exact(at: datetime | str) -> str:
    """A time to the second, in UTC."""
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _many(count: Any) -> str:
    return f"{count.number:,}{'+' if count.many else ''}"


def _took(milliseconds: float) -> str:
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
