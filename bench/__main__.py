"""Runs all benchmarks and prints one table: the dispatcher compared with a baseline of the same run, on this machine.

    python -m bench [--smoke] [--rounds 5] [--only mail --only start] [--out .cache/bench] [--write docs/performance.md]
    python -m bench --against REVISION [--rounds 7] [--only mail --only intake]

A full run takes about 25 minutes on a quiet machine with two cores. With --against the table compares HEAD with
another revision instead.

The table is printed, and written as Markdown and JSON to the folder --out. Exit status 1 if a benchmark fails. A missing
program (such as Alertmanager) or a missed goal is only reported in the table.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import orjson

import bench
from bench.figures import Figure, Missing, Unavailable, as_markdown
from bench.machine import machine
from bench.revisions import checked_out, uncommitted

ORDER = (
    "intake",
    "record",
    "holds",
    "rules",
    "render",
    "mail",
    "http",
    "storm",
    "latency",
    "memory",
    "scale",
    "routes",
    "growth",
    "console",
    "start",
)
"""In the order of an event's processing; other benchmarks come last."""
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

Benchmark = Callable[..., Iterable[Figure | Missing]]


@dataclass(slots=True)
class Run:
    """The results of one run, and the time that each benchmark took."""

    rounds: int
    smoke: bool
    machine: Mapping[str, str] = field(default_factory=machine)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    found: list[Figure | Missing] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        what = "a smoke run: the figures mean nothing" if self.smoke else f"medians of {self.rounds} rounds"
        minutes = sum(self.seconds.values()) / 60
        return "\n".join(
            [
                f"{self.began:%Y-%m-%d}, {minutes:.0f} minutes; {what}.",
                "",
                *(f"- {name}: {value}" for name, value in self.machine.items()),
                "",
                as_markdown(self.found),
            ]
        )

    def json(self) -> bytes:
        data = {
            "began": self.began,
            "rounds": self.rounds,
            "smoke": self.smoke,
            "machine": self.machine,
            "seconds": self.seconds,
            "figures": [one.as_data() for one in self.found],
            "broken": self.broken,
        }
        return orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def benchmarks() -> dict[str, Benchmark]:
    """The benchmarks by name: the modules of this package that have a function `figures`."""
    names = {module.name for module in pkgutil.iter_modules(bench.__path__)} - {"__main__", "figures", "machine"}
    in_order = [name for name in ORDER if name in names] + sorted(names - set(ORDER))
    modules = {name: importlib.import_module(f"bench.{name}") for name in in_order}
    return {name: module.figures for name, module in modules.items() if hasattr(module, "figures")}


def measure(name: str, benchmark: Benchmark, run: Run) -> None:
    """Run one benchmark. If it is unavailable or fails, the table gets a line with the reason."""
    began = time.monotonic()
    print_progress(f"{name} …")
    try:
        for one in benchmark(run.rounds, smoke=run.smoke):
            run.found.append(one)
            print_progress(f"{name}: {one.summary}")
    except Unavailable as unavailable:
        run.found.append(Missing(path=name, why=str(unavailable)))
        print_progress(f"{name}: {unavailable}")
    except Exception as error:  # noqa: BLE001 - a failed benchmark must not lose the others' results
        traceback.print_exc()
        run.found.append(Missing(path=name, why=f"broke: {type(error).__name__}: {error}"))
        run.broken.append(name)
        print_progress(f"{name}: broke: {error!r}")
    run.seconds[name] = round(time.monotonic() - began, 1)
    print_progress(f"{name} took {run.seconds[name]:.0f} s")


def print_progress(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {line}", file=sys.stderr, flush=True)


def around_table(file: Path) -> tuple[str, str]:
    """The text before and after the table in a file. Raises ValueError if the file lacks the table's markers."""
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{file} has no table: it needs {BEGIN} and {END}")
    return before + begin, end + after


def arguments(known: Sequence[str], arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smoke", action="store_true", help="only test that the benchmarks run; the figures mean nothing"
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each comparison; 5, with --against 7")
    parser.add_argument("--against", metavar="REVISION", help="compare HEAD with this git revision: CPU a message")
    parser.add_argument(
        "--only", action="append", choices=known, metavar="NAME", help=f"one of {', '.join(known)}; repeat for several"
    )
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"), help="the folder to write the tables to")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="also write the table between the markers in this file"
    )
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (7 if options.against else 5)
    if options.write and (options.only or options.smoke or options.against):
        parser.error("--write needs a full run: do not combine it with --only, --smoke or --against")
    if options.write:
        around_table(options.write)  # fail before the run, not after it
    return options


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # runs `finally`: stops brokers, databases
    known = benchmarks()
    options = arguments(list(known))
    run = Run(rounds=1 if options.smoke else options.rounds, smoke=options.smoke)
    with ExitStack() as stack:
        if options.against:
            if uncommitted():
                print_progress("uncommitted changes are not measured")
            revisions = stack.enter_context(checked_out(options.against))
            known = {name: partial(revisions.figures, name) for name in known}
        for name in options.only or known:
            measure(name, known[name], run)
    table = run.markdown()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "figures.md").write_text(table + "\n")
    (options.out / "figures.json").write_bytes(run.json())
    print(table)
    if options.write:
        options.write.write_text(f"\n\n{table}\n\n".join(around_table(options.write)))
    return 1 if run.broken else 0


if __name__ == "__main__":
    sys.exit(main())
