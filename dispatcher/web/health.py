"""GET /healthz: the loop turns. GET /readyz: the ledger can be written, FlyteAdmin answers, the sources are connected."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dispatcher.errors import Unavailable

PATIENCE = 3.0
"""Seconds for all the questions together: a probe that waits is a probe that failed."""

Question = Callable[[], Awaitable[str | None]]
"""None where all is well, else what is wrong."""


async def alive(_: Request) -> Response:
    return JSONResponse({"status": "alive"})


class ReadyPage:
    """Asks each room how it is."""

    def __init__(self, questions: dict[str, Question]) -> None:
        self._questions = questions

    async def answers(self) -> dict[str, str | None]:
        """What each room says."""
        async with asyncio.TaskGroup() as asking:
            tasks = {name: asking.create_task(_ask(question)) for name, question in self._questions.items()}
        return {name: task.result() for name, task in tasks.items()}

    async def get(self, _: Request) -> Response:
        answers = await self.answers()
        troubles = {name: answer for name, answer in answers.items() if answer is not None}
        if troubles:
            return JSONResponse({"status": "not ready", "why": troubles}, 503)
        return JSONResponse({"status": "ready", "rooms": sorted(answers)})


async def _ask(question: Question) -> str | None:
    try:
        async with asyncio.timeout(PATIENCE):
            return await question()
    except TimeoutError:
        return f"no answer within {PATIENCE:.0f} s"
    except Unavailable as error:
        return str(error)
