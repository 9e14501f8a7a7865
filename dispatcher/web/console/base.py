"""Code that all pages of the console share: access to the ledger and the operations, rendering, error pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import humanize
from jinja2 import Environment
from markupsafe import Markup
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from channels.contract import Channel, ChannelType
from dispatcher.clock import Clock
from dispatcher.dry_run import DryRun
from dispatcher.errors import Unavailable
from dispatcher.explain import about_text, decided_text, rules_among, rules_text, told_in_text
from dispatcher.filters import Search
from dispatcher.ledger import Ledger
from dispatcher.model.event import ExecutionId, shortened
from dispatcher.operations import MAX_REASON, Operations, Operator
from dispatcher.parsing.duration import parse_time
from dispatcher.parsing.validation_errors import first_problem
from dispatcher.parsing.yaml import Problem
from dispatcher.rendering.links import execution_logs_url, execution_url
from dispatcher.silences import SilenceOperations
from dispatcher.web.activity_stream import ActivityStream
from dispatcher.web.auth.access import Endpoint, caller, needs
from dispatcher.web.config import Scope
from dispatcher.web.forms import FORM, read_form
from dispatcher.web.frame import environment, frame_values
from dispatcher.web.responses import error_response
from dispatcher.web.send_test import SendTestForCallers

ROOT = "/console"
_JUST_NOW = timedelta(seconds=5)


class PageError(Exception):
    """Raised by a page: the browser gets an error page with the status and the message, a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


async def _no_components() -> Mapping[str, str | None]:
    return {}


@dataclass(frozen=True, slots=True)
class Console:
    """Renders the pages, and gives their code access to the ledger and the operations."""

    ledger: Ledger
    operations: Operations
    activity_stream: ActivityStream
    clock: Clock
    channels: Mapping[str, Channel]
    channel_types: Mapping[str, ChannelType]
    dry_run: DryRun
    send_test: SendTestForCallers
    base_path: str = ""
    """The setting `http.base_path`."""
    console_url: str = ""
    """The setting `console_url`: Flyte's console."""
    logs_url: str = ""
    """The setting `logs_url`."""
    inbox_url: str = ""
    """The demo's inbox."""
    rule_problems: Callable[[], Sequence[Problem]] = tuple
    """Returns the invalid files and rules among this replica's rule files."""
    unready_reasons: Callable[[], Awaitable[Mapping[str, str | None]]] = _no_components
    """Returns this replica's components, each with the reason why it is not ready, or None (`ReadyPage`)."""
    _templates: Environment = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_templates", self._environment())

    @property
    def silences(self) -> SilenceOperations:
        """What operators do with silences."""
        return SilenceOperations(self.ledger, self.clock, asks_flyte_admin=self.dry_run.admin is not None)

    def guarded(self, scope: Scope, page: Page) -> Endpoint:
        """Turn a page into an endpoint that requires the scope and shows errors as HTML pages."""

        async def endpoint(request: Request) -> Response:
            try:
                return await page(self, request)
            except PageError as error:
                return error_response(request.scope, error.status, error.message)
            except Unavailable as error:
                reason = f"{error}. Nothing is lost: deliveries go on when it is back."
                return error_response(request.scope, 503, reason)

        return needs(scope, endpoint)

    def render(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Render a whole page from a template."""
        html = self._templates.get_template(template).render(frame_values(request.scope), **values)
        return HTMLResponse(html, status)

    def fragment(self, template: str, **values: Any) -> str:
        """Render a part of a page. The console's script inserts the part into a page that is already open."""
        return self._templates.get_template(template).render(**values)

    def url(self, *path: str, **query: Any) -> str:
        """Return a URL in the console. Query parameters that are None or empty are left out."""
        fields = [
            # Without `str`, `urlencode` would treat a cursor, which is a tuple, as a list of values.
            (name, value if isinstance(value, list) else str(value))
            for name, value in query.items()
            if value is not None and value != ""
        ]
        steps = "/".join(quote(step, safe="") for step in path)
        return f"{self.base_path}{ROOT}/{steps}" + (f"?{urlencode(fields, doseq=True)}" if fields else "")

    def _environment(self) -> Environment:
        templates = environment(Path(__file__).parent / "templates")
        templates.globals |= {
            "url": self.url,
            "inbox_url": self.inbox_url,
            "banner": self.banner,
            "max_reason": MAX_REASON,
            "clock_time": clock_time,
            "field_time": lambda text: field_time(text, self.clock.now()),
            "about_text": about_text,
            "decided_text": decided_text,
            "told_in_text": told_in_text,
            "rules_among": rules_among,
            "rules_text": rules_text,
            "when": lambda at: when(at, self.clock.now()),
            "channel_name": self.channel_name,
        }
        templates.filters |= {"exact": exact, "count": _count, "milliseconds": _milliseconds, "shortened": shortened}
        return templates

    def banner(self) -> str:
        """Return what every page says at its top; empty if nothing is wrong with the rule files."""
        problems = [str(one) for one in self.rule_problems()]
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        return f"Problem in the rule files: {problems[0]}{more}. Valid rules stay in effect." if problems else ""

    def links(self, execution: ExecutionId, event_url: str = "") -> list[tuple[str, str]]:
        """Return links from the execution to Flyte's console and to its logs, as far as they are known: the text and the
        URL of each. `event_url`: the URL that the execution's event gives.
        """
        links = [
            ("Open in Flyte's console", execution_url(execution, event_url, self.console_url)),
            ("Open the logs", execution_logs_url(execution, self.logs_url)),
        ]
        return [(text, address) for text, address in links if address]

    def channel_name(self, name: str) -> str:
        """Return a channel's title, such as `Slack`; its name if the channel is not known or has no title."""
        return (self.channel_types[name].title if name in self.channel_types else "") or name


Page = Callable[[Console, Request], Awaitable[Response]]


def read_query(model: type[BaseModel], request: Request, *, ignore: Sequence[str] = ()) -> tuple[Any, str]:
    """Parse the request's query as `model`, without its blank fields. Returns the model and an empty text.

    If the query is not valid, returns the model's defaults and a text that names the first problem.
    """
    given = request.query_params
    lists = {name for name, entry in model.model_fields.items() if "list[" in str(entry.annotation)}
    data: dict[str, Any] = {}
    for name in given:
        values = [value.strip(" \t") for value in given.getlist(name) if value.strip()]
        if values and name not in ignore:
            data[name] = values if name in lists else values[-1]
    try:
        return model.model_validate(data), ""
    except ValidationError as error:
        return model(), first_problem(error)


def channel_choices(console: Console, search: Search) -> list[tuple[str, str]]:
    """Return the options of the filter by channel: the configured channels, and the one that the search names."""
    given = {search.channel} if search.channel is not None else set()
    return [(name, name) for name in sorted(given | set(console.channels))]


async def operator(request: Request) -> Operator:
    """Return who acts, and the reason that the request's form gives."""
    is_form = request.headers.get("content-type", "").startswith(FORM)
    form = await read_form(request) if is_form else {}
    reason = form.get("reason", "").strip()
    if len(reason) > MAX_REASON:
        raise PageError(400, f"A reason may have {MAX_REASON} characters.")
    return Operator(caller(request), reason)


def when(at: datetime | str | None, now: datetime) -> Markup:
    """Return HTML that shows a time relative to now, such as `5 minutes ago`, and the exact time as tooltip.

    The console's script keeps the relative time up to date, and shows times that are an hour away in the reader's zone.
    """
    if at is None:
        return Markup("")
    time = datetime.fromisoformat(at) if isinstance(at, str) else at
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        time.astimezone(UTC).isoformat(), exact(time), _ago(now - time)
    )


def clock_time(at: datetime) -> Markup:
    """Return HTML that shows a time as day and time of day. The console's script shows it in the reader's zone."""
    return Markup('<time datetime="{}" title="{}" data-format="clock">{:%d %b %H:%M} UTC</time>').format(
        at.astimezone(UTC).isoformat(), exact(at), at.astimezone(UTC)
    )


def field_time(text: str | None, now: datetime) -> str:
    """Return the value of a `datetime-local` field, in UTC, for a time in a query; empty if the time is not valid.

    `text`: a timestamp or a duration before `now`.
    """
    try:
        return f"{parse_time(text, now=now):%Y-%m-%dT%H:%M}" if text else ""
    except ValueError:  # the page says so
        return ""


def _ago(age: timedelta) -> str:
    if abs(age) < _JUST_NOW:
        return "just now"
    text = humanize.naturaldelta(age)
    return f"{text} ago" if age > timedelta() else f"in {text}"


def exact(at: datetime | str) -> str:
    """Format a time in UTC, with seconds."""
    time = datetime.fromisoformat(at) if isinstance(at, str) else at
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _count(count: Any) -> str:
    return f"{count.number:,}{'+' if count.more else ''}"


def _milliseconds(duration: float) -> str:
    return f"{duration:.0f} ms" if duration < 1000 else f"{duration / 1000:.1f} s"
