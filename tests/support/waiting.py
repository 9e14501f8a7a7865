"""Waits for what a test expects to become true."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

Result = TypeVar("Result")


@overload
async def until(condition: Callable[[], Awaitable[Result | None]], seconds: float = 30) -> Result: ...
@overload
async def until(condition: Callable[[], Result | None], seconds: float = 30) -> Result: ...
async def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until the condition is true, and return its value. After `seconds`, fail with the condition's source."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {inspect.getsource(condition).strip()}"
        await asyncio.sleep(0.02)
