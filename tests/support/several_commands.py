"""Runs several commands of the dispatcher in one process, because the imports take most of a command's time.

`python -m tests.support.several_commands` reads a line of JSON for each command: its arguments. It answers each with a line
of JSON: the exit status and the output.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path


async def run_several(commands: Sequence[Sequence[str]], *, config: Path | None = None) -> list[tuple[int, str]]:
    """Run the commands, with these settings unless they name others. Returns the status and output of each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, cwd=Path(__file__).parents[2], stdin=PIPE, stdout=PIPE,
        env=os.environ | {"DISPATCHER_CONFIG": str(config or ""), "COLUMNS": "200", "NO_COLOR": "1"},
    )  # fmt: skip
    lines = "".join(json.dumps(list(words)) + "\n" for words in commands)
    async with asyncio.timeout(120):
        out, _ = await process.communicate(lines.encode())
    return [(status, text) for status, text in map(json.loads, out.splitlines())]


def _answer_all() -> None:
    from dispatcher.cli import main

    answers = sys.stdout
    for line in sys.stdin:
        sys.argv[1:] = json.loads(line)
        output = io.StringIO()
        with redirect_stdout(output), redirect_stderr(output):
            try:
                main()
            except SystemExit as ended:
                status = ended.code or 0
        print(json.dumps([status, output.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    _answer_all()
