"""`dispatcher preview --serve`: a page on which templates are worked on, beside what they make.

It listens on this machine alone, reads the templates and writes nothing. What is shown comes from an event
that anybody may have written, so it is drawn in frames without scripts.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import typer
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from watchfiles import awatch

from channels.contract import UnknownRecipient
from dispatcher.config.settings import Settings
from dispatcher.errors import DispatcherError
from dispatcher.model.event import Event
from dispatcher.model.phase import TERMINAL
from dispatcher.rendering.renderer import built_in_folder, sample_event
from dispatcher.web.server import serving
from dispatcher.workbench.sample import CHANNELS, Press, Proof

HOST = "127.0.0.1"
_PAGES = Path(__file__).parent / "pages"
_TYPES = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; connect-src 'self'; img-src data:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_DARK = re.compile(r"\(\s*prefers-color-scheme\s*:\s*(dark|light)\s*\)")


class Workbench:
    """The page's server. Templates are read anew whenever one of their files changes."""

    def __init__(self, settings: Settings, event: Event) -> None:
        """`event`: what the page begins with. Raises TemplateError, as Renderer does."""
        self._settings = settings
        self._event = event
        self._press = Press(settings)
        self._stopping = asyncio.Event()

    @property
    def folders(self) -> Sequence[Path]:
        """Where templates may change."""
        templates = self._settings.templates
        own = [path for match in templates.match for path in match.path]
        return [*own, *templates.path, built_in_folder()]

    def stop(self) -> None:
        self._stopping.set()

    async def run(self, port: int, ready: Any) -> None:
        """Serve until stopped. `ready` is called with the page's address."""
        application = Starlette(
            routes=[
                Route("/", self._file),
                Route("/{name}", self._file),
                Route("/events/first", self._first),
                Route("/events/{phase}", self._sample),
                Route("/proof", self._proof, methods=["POST"]),
                Route("/changes/stream", self._changes),
            ],
            # a page elsewhere could reach this server by a name of its own
            middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        )
        async with serving(application, HOST, port) as url:
            ready(url)
            await self._stopping.wait()

    async def _file(self, request: Request) -> Response:
        name = request.path_params.get("name", "page.html")
        if name not in _TYPES:
            return Response("no such page\n", status_code=404)
        return Response((_PAGES / name).read_bytes(), media_type=_TYPES[name], headers=_HEADERS)

    async def _first(self, _: Request) -> Response:
        return _event(self._event)

    async def _sample(self, request: Request) -> Response:
        phases = {phase.lower(): phase for phase in TERMINAL}
        phase = phases.get(request.path_params["phase"])
        return _event(sample_event(phase)) if phase is not None else Response("no such phase\n", status_code=404)

    async def _proof(self, request: Request) -> Response:
        """One message in every form; where there is none, `error` says why."""
        try:
            asked = orjson.loads(await request.body())
            channel, event = asked["channel"], Event.model_validate(asked["event"])
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            return _said(error=f"no JSON that can be read: {error}")
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            return _said(error=f"no event: {'; '.join(wrong)}")
        if channel not in CHANNELS or not event.phase.terminal:
            return _said(error=f"nobody is told of {event.phase} by {channel}")
        try:
            proof = self._press.proof(channel, event, str(asked.get("recipient", "")))
        except DispatcherError as error:
            return _said(error=str(error))
        except UnknownRecipient as error:
            return _said(error=f"this recipient can't be served: {error.reason}")
        return _said(**_forms(proof))

    async def _changes(self, _: Request) -> Response:
        """A line for each change of a template, as server-sent events."""
        return StreamingResponse(self._watch(), media_type="text/event-stream", headers=_HEADERS)

    async def _watch(self) -> AsyncIterator[bytes]:
        yield b": watching\n\n"
        async for _ in awatch(*self.folders, stop_event=self._stopping, rust_timeout=500):
            try:
                self._press = Press(self._settings)
            except DispatcherError:  # a folder is gone for the moment
                continue
            yield b"data: changed\n\n"


def _event(event: Event) -> Response:
    return _said(event=orjson.loads(event.model_dump_json(exclude_none=True, exclude_defaults=True)))


def _said(**facts: Any) -> Response:
    return JSONResponse(facts, headers=_HEADERS)


def _forms(proof: Proof) -> Mapping[str, Any]:
    return {
        "headline": proof.headline,
        "light": _scheme(proof.html, "light"),
        "dark": _scheme(proof.html, "dark"),
        "text": proof.text,
        "source": proof.wire.decode(errors="replace") if proof.channel == "email" else proof.json.decode(),
        "problems": proof.problems,
    }


def _scheme(html: str, scheme: str) -> str:
    """The page as it looks in one colour scheme, whatever the browser's own is."""
    html = _DARK.sub(lambda found: "(min-width: 0)" if found[1] == scheme else "(max-width: 0)", html)
    ground, ink = ("#1a1d21", "#e8e8e8") if scheme == "dark" else ("#ffffff", "#1d1c1d")
    return f"{html}<style>:root{{color-scheme:{scheme};background:{ground};color:{ink}}}</style>"


def run(settings: Settings, event: Event, port: int) -> None:
    """Serve the page until interrupted."""

    async def work() -> None:
        bench = Workbench(settings, event)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, bench.stop)
        await bench.run(port, lambda url: typer.echo(f"work on templates at {url} (Ctrl+C ends it)"))

    asyncio.run(work())
