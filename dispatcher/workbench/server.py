"""The server of `dispatcher preview --serve`: a page that shows a message while its templates are edited.

The server listens on loopback only, and never changes the templates. An event's text is not trusted, so the page shows
messages in sandboxed frames without scripts.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from markupsafe import Markup
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from watchfiles import awatch

from channels.contract import UnknownRecipient
from channels.registry import CHANNEL_TYPES
from dispatcher.clock import SystemClock
from dispatcher.config.settings import Settings
from dispatcher.errors import DispatcherError
from dispatcher.model.delivery import Outage
from dispatcher.model.event import Event
from dispatcher.model.hold import HoldReason
from dispatcher.model.phase import TERMINAL
from dispatcher.model.summary import Summary
from dispatcher.parsing.validation_errors import every_problem
from dispatcher.rendering.folders import built_in_folder
from dispatcher.rendering.samples import sample_event, sample_summary
from dispatcher.runtime.wiring import opened_send_test
from dispatcher.web.auth.access import is_foreign
from dispatcher.web.server import serving
from dispatcher.workbench.sample import Sample, SampleRenderer, sample_outage

HOST = "127.0.0.1"
_PAGES = Path(__file__).parent / "pages"
_TYPES = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src data:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_COLOR_SCHEME = re.compile(r"\(\s*prefers-color-scheme\s*:\s*(dark|light)\s*\)")


class _Wanted(BaseModel):
    """The message that the page asks for."""

    channel: str
    event: Event
    recipient: str = ""
    """The recipient as a rule writes it; empty for an example."""
    resolved: bool = False
    """True for the resolved notice that the event, a success, causes."""
    summary: HoldReason | None = None
    """Set for a digest, or for the summary of what a silence or quiet hours held. The event then does not matter."""
    to: str = ""
    """To whom the message is sent, as a rule writes it."""

    @property
    def about(self) -> Event | Summary:
        return sample_summary(self.summary) if self.summary is not None else self.event

    @property
    def outage(self) -> Outage | None:
        return sample_outage(self.event) if self.resolved else None


async def _wanted(request: Request) -> _Wanted:
    """Read the request's body. Raises DispatcherError."""
    try:
        wanted = _Wanted.model_validate_json(await request.body())
    except ValidationError as error:
        raise DispatcherError(every_problem(error)) from None
    if wanted.channel not in CHANNEL_TYPES or not wanted.event.phase.terminal:
        raise DispatcherError(f"no message for {wanted.event.phase} on {wanted.channel}")
    return wanted


class Workbench:
    """The server of the preview page. It loads all templates again when a template file changes."""

    def __init__(self, settings: Settings, event: Event) -> None:
        """`event`: the event that the page shows first. Raises SettingsError for a folder that doesn't exist."""
        self._settings = settings
        self._event = event
        self._renderer = SampleRenderer(settings)
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        """Set at the next change of a template file, and at the end. Each change replaces it."""

    @property
    def folders(self) -> Sequence[Path]:
        """The folders that are watched for changes."""
        templates = self._settings.templates
        matched = [path for entry in templates.match for path in entry.path]
        return [*matched, *templates.path, built_in_folder()]

    def stop(self) -> None:
        self._stopping.set()
        self._changed.set()  # ends the streams of open pages

    async def run(self, port: int, on_ready: Any) -> None:
        """Serve the page until `stop` is called. When the server listens, `on_ready` is called with the page's URL."""
        application = Starlette(
            routes=[
                Route("/", self._file),
                Route("/{name}", self._file),
                Route("/events/first", self._first),
                Route("/events/{phase}", self._sample_event),
                Route("/sample", self._render, methods=["POST"]),
                Route("/send", self._send, methods=["POST"]),
                Route("/changes/stream", self._changes),
            ],
            # Against DNS rebinding: refuses requests of a website whose own domain name resolves to 127.0.0.1.
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        )
        async with serving(application, HOST, port, setting="--port") as url, asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            on_ready(url)
            await self._stopping.wait()

    async def _file(self, request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        if name not in _TYPES:
            return Response("no such page\n", status_code=404)
        text = (_PAGES / name).read_text(encoding="utf-8")
        if name == "page.html":
            text = text.replace("<!-- channels -->", Markup("\n").join(map(_channel_button, self._renderer.channels)))
        return Response(text, media_type=_TYPES[name], headers=_HEADERS)

    async def _first(self, _: Request) -> Response:
        return _event_response(self._event)

    async def _sample_event(self, request: Request) -> Response:
        phases = {phase.lower(): phase for phase in TERMINAL}
        phase = phases.get(request.path_params["phase"])
        return (
            _event_response(sample_event(phase)) if phase is not None else Response("no such phase\n", status_code=404)
        )

    async def _render(self, request: Request) -> Response:
        """Respond with one message in every form, and with the variables. The field `error` says why there is none."""
        try:
            wanted = await _wanted(request)
        except DispatcherError as error:
            return _json(error=str(error))
        variables = [asdict(one) for one in self._renderer.variables(wanted.channel, wanted.about, wanted.outage)]
        try:
            return _json(variables=variables, **_forms(await self._sample(wanted)))
        except DispatcherError as error:
            return _json(variables=variables, error=str(error))

    async def _send(self, request: Request) -> Response:
        """Send the message, marked as a test, to the author. The field `message` says what became of it."""
        if is_foreign(request):
            return _json(accepted=False, message="this request comes from another site's page")
        try:
            wanted = await _wanted(request)
            if wanted.summary is not None:
                raise DispatcherError("a test is a message about an execution: choose a phase")
            if problems := (await self._sample(wanted)).problems:
                raise DispatcherError("; ".join(problems))
            async with opened_send_test(self._settings, SystemClock()) as test:
                result = await test.send(
                    wanted.channel, wanted.to, wanted.event, templates_of=wanted.recipient, outage=wanted.outage
                )
        except DispatcherError as error:
            return _json(accepted=False, message=f"not sent: {error}")
        return _json(accepted=result.accepted, message=result.message)

    async def _sample(self, wanted: _Wanted) -> Sample:
        """Render the message. Raises DispatcherError."""
        try:
            # In a thread, because an own template may take seconds until it is stopped.
            return await asyncio.to_thread(
                self._renderer.render, wanted.channel, wanted.about, wanted.recipient, wanted.outage
            )
        except UnknownRecipient as error:
            raise DispatcherError(f"this recipient can't be served: {error.reason}") from None

    async def _changes(self, _: Request) -> Response:
        """Send a server-sent event each time a template file changes."""
        return StreamingResponse(self._change_events(), media_type="text/event-stream", headers=_HEADERS)

    async def _change_events(self) -> AsyncIterator[bytes]:
        changed = self._changed
        yield b": watching\n\n"
        while True:
            await changed.wait()
            if self._stopping.is_set():
                return
            changed = self._changed  # taken before the page learns of this change, so that it misses no later one
            yield b"data: changed\n\n"

    async def _watch(self) -> None:
        """Load the templates again each time a template file changes, until `stop` is called."""
        async for _ in awatch(*self.folders, stop_event=self._stopping, rust_timeout=500):
            with suppress(DispatcherError):  # keep the old templates: a folder is missing while an editor saves
                self._renderer = SampleRenderer(self._settings)
                self._changed.set()
                self._changed = asyncio.Event()


def _channel_button(channel: str) -> Markup:
    button = Markup('<label><input type="radio" name="channel" value="{}"> {}</label>')
    return button.format(channel, CHANNEL_TYPES[channel].title or channel)


def _event_response(event: Event) -> Response:
    return _json(event=orjson.loads(event.model_dump_json(exclude_none=True, exclude_defaults=True)))


def _json(**data: Any) -> Response:
    return JSONResponse(data, headers=_HEADERS)


def _forms(sample: Sample) -> Mapping[str, Any]:
    return {
        "headline": sample.headline,
        "light": _in_scheme(sample.html, "light"),
        "dark": _in_scheme(sample.html, "dark"),
        "text": sample.text,
        "source": sample.wire.decode(errors="replace") if sample.is_mail else sample.json.decode(),
        "problems": sample.problems,
    }


def _in_scheme(html: str, scheme: str) -> str:
    """Return the HTML with its colour scheme fixed to `scheme`, even if the browser prefers the other colour scheme."""
    html = _COLOR_SCHEME.sub(lambda found: "(min-width: 0)" if found[1] == scheme else "(max-width: 0)", html)
    background, text = ("#1a1d21", "#e8e8e8") if scheme == "dark" else ("#ffffff", "#1d1c1d")
    return f"{html}<style>:root{{color-scheme:{scheme};background:{background};color:{text}}}</style>"


def run(settings: Settings, event: Event, port: int, started: Callable[[str], None]) -> None:
    """Serve the page until the user presses Ctrl+C. `started` is called with the page's URL."""

    async def serve() -> None:
        workbench = Workbench(settings, event)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, workbench.stop)
        await workbench.run(port, started)

    asyncio.run(serve())
