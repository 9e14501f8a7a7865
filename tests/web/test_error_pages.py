"""Errors, whatever part of the server finds them: pages for people, JSON for programs, problem details from the API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from yarl import URL

from dispatcher.clock import SystemClock
from dispatcher.intake.pipeline import BatchResult
from dispatcher.web.app import application
from dispatcher.web.auth.access import AccessControl
from dispatcher.web.config import HttpConfig
from dispatcher.web.event_intake import EventsPage
from dispatcher.web.health import ReadyPage, alive
from dispatcher.web.server import serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def _broken(_: Request) -> Response:
    raise RuntimeError("not foreseen")


async def _take(_: object) -> BatchResult:
    raise AssertionError


@pytest.fixture
async def url() -> AsyncIterator[str]:
    access_control = AccessControl(HttpConfig(console=True, base_path="/base"), SystemClock())
    broken = [Route("/broken", _broken), Route("/api/v1/broken", _broken)]
    pages = application(EventsPage(_take), ReadyPage({}), alive, access_control, broken, base_path="/base")
    async with serving(pages, "127.0.0.1", 0) as url:
        yield url


@pytest.mark.parametrize(
    ("method", "path", "status", "title"),
    [
        ("GET", "/base/nothing", 404, "Not found"),
        ("PUT", "/base/login", 405, "Method not allowed"),
        ("POST", "/base/login", 400, "Bad request"),
        ("GET", "/base//x", 400, "Bad request"),
        ("GET", "/base/broken", 500, "Internal server error"),
    ],
)
async def test_people_get_a_page_and_programs_get_json(
    url: str, method: str, path: str, status: int, title: str
) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.request(method, f"{url}{path}", headers=BROWSER) as answer:
            page = await answer.text()
            assert (answer.status, answer.content_type) == (status, "text/html")
            assert f"<h1>{title}</h1>" in page
            assert "Not Found" not in page
            assert 'href="/base/static/console.css"' in page
        async with session.request(method, f"{url}{path}") as answer:
            assert (answer.status, (await answer.json())["status"]) == (status, "error")


@pytest.mark.parametrize(("path", "status"), [("nothing", 404), ("broken", 500), ("a%00b", 400)])
async def test_the_api_answers_everybody_with_problem_details(url: str, path: str, status: int) -> None:
    address = URL(f"{url}/base/api/v1/{path}", encoded=True)
    async with aiohttp.ClientSession() as session, session.get(address, headers=BROWSER) as answer:
        assert (answer.status, answer.content_type) == (status, "application/problem+json")


async def test_static_files_are_served_with_their_types(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        for name, content_type in (
            ("console.css", "text/css"),
            ("console.js", "text/javascript"),
            ("icon.svg", "image/svg+xml"),
            ("frame.py", "text/plain"),
        ):
            async with session.get(f"{url}/base/static/{name}") as answer:
                assert answer.content_type == content_type
