"""The rest after a batch of few messages."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from dispatcher.intake.source import BACKLOG_SIZE, REST, Rest


async def test_a_rest_after_few_messages_ends_a_fixed_time_after_the_batch_was_read() -> None:
    noted: list[str] = []
    rest = Rest(REST, lambda: noted.append("pause"), lambda: noted.append("resume"))
    async with asyncio.timeout(5):
        await rest.wait()  # it has not begun
    loop = asyncio.get_running_loop()
    began = loop.time()

    rest.after(BACKLOG_SIZE - 1)

    assert (rest.resting, noted) == (True, ["pause"])
    async with asyncio.timeout(5):
        await rest.wait()
    assert loop.time() - began >= REST.total_seconds() / 2
    assert (rest.resting, noted) == (False, ["pause", "resume"])


@pytest.mark.parametrize("messages", [0, BACKLOG_SIZE, 5000])
async def test_neither_a_read_without_messages_nor_a_backlog_rests(messages: int) -> None:
    rest = Rest(REST)

    rest.after(messages)

    assert not rest.resting


async def test_a_rest_of_zero_is_no_rest() -> None:
    rest = Rest(timedelta())

    rest.after(1)

    assert not rest.resting
