"""The service's event loop."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.runtime import event_loop


async def _running() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_uvloop_runs_the_service_if_it_is_installed() -> None:
    assert event_loop.run(_running()) == pytest.importorskip("uvloop").Loop.__module__


def test_an_exception_of_the_coroutine_is_raised_by_run() -> None:
    async def broken() -> None:
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        event_loop.run(broken())
