"""Shows a delivery's attempts in few lines: attempts that ended in the same way share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from dispatcher.cli._output import time_text


def attempt_rows(attempts: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str, str]]:
    """Return (numbers, when the last one ended, outcome, answer, duration) for each run of equal attempts, in order.

    `attempts`: as `explain.attempt_data` returns them.
    """
    rows = []
    for _, group in groupby(attempts, lambda one: (one["outcome"], one["status"], one["answer"], one["reason"])):
        same = list(group)
        first, last = same[0], same[-1]
        numbers = f"{first['number']}" if len(same) == 1 else f"{first['number']}-{last['number']}"
        slowest = max(one["latency_ms"] for one in same)
        times = f"{len(same)} × " if len(same) > 1 else ""  # noqa: RUF001 - the sign is meant
        ended = time_text(last["ended_at"])
        rows.append((numbers, ended, last["outcome"], f"{times}{answer_text(last)}", f"{slowest:.0f} ms"))
    return rows


def answer_text(attempt: Mapping[str, Any]) -> str:
    """Return the provider's answer and the attempt's reason."""
    answer = f"{attempt['status']} {attempt['answer']}".strip()
    return ": ".join(text for text in (answer, attempt["reason"]) if text)


def attempts_text(attempts: Sequence[Mapping[str, Any]]) -> str:
    """Return one line for each run of equal attempts, with its number and the last one's end."""
    return "\n".join(
        f"{outcome} {answer}, {'last ' if '-' in numbers else ''}{ended}"
        for numbers, ended, outcome, answer, _ in attempt_rows(attempts)
    )
