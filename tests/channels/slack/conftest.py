"""The demo's Slack as a server. Each test file has a workspace of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette

from dispatcher.demo.fakes.inbox import SlackReceiver
from dispatcher.web.server import serving


@pytest.fixture
async def url(workspace: SlackReceiver) -> AsyncIterator[str]:
    """The base URL of Slack's API."""
    async with serving(Starlette(routes=workspace.routes()), "127.0.0.1", 0) as base:
        yield f"{base}/api/"
