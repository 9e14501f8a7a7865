"""Every benchmark, one table: ours beside a baseline of the same run, on this machine.

    python -m bench [--smoke] [--rounds 5] [--only mail --only start] [--out .cache/bench] [--write docs/performance.md]

All of it takes about twenty minutes on a quiet machine of two cores.

The table is printed, and lies as Markdown and as JSON in the folder. Exit status 1 where a benchmark broke: what can't
run here for want of something says so in the table and breaks nothing, nor does a goal that is missed.
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
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import orjson

import bench
from bench.figures import Figure, Missing, Unavailable, as_markdown
from bench.machine import machine

ORDER = (
    "intake",
    "record",
    "rules",
    "render",
    "mail",
    "http",
    "latency",
    "memory",
    "scale",
    "growth",
    "start",
)
"""As an event goes through the rooms; what isn't named comes after."""
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

Benchmark = Callable[..., Iterable[Figure | Missing]]


@dataclass(slots=True)
class Run:
    """What one run found, and what it took."""

    rounds: int
    smoke: bool
    machine: Mapping[str, str] = field(default_factory=machine)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    found: list[Figure | Missing] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        what = "the shortest form: these figures say nothing" if self.smoke else f"medians of {self.rounds} rounds"
        took = sum(self.seconds.values()) / 60
        return "\n".join(
            [
                f"{self.began:%Y-%m-%d}, {took:.0f} minutes; {what}.",
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
    """Every module here that has `figures`, by its name."""
    names = {module.name for module in pkgutil.iter_modules(bench.__path__)} - {"__main__", "figures", "machine"}
    in_order = [name for name in ORDER if name in names] + sorted(names - set(ORDER))
    modules = {name: importlib.import_module(f"bench.{name}") for name in in_order}
    return {name: module.figures for name, module in modules.items() if hasattr(module, "figures")}


def measure(name: str, benchmark: Benchmark, run: Run) -> None:
    """Run one of them; what it lacks and how it broke is a line of the table too."""
    began = time.monotonic()
    say(f"{name} …")
    try:
        for one in benchmark(run.rounds, smoke=run.smoke):
            run.found.append(one)
            say(f"{name}: {one.summary}")
    except Unavailable as lacking:
        run.found.append(Missing(path=name, why=str(lacking)))
        say(f"{name}: {lacking}")
    except Exception as error:  # noqa: BLE001 - one that breaks must not take the others' figures with it
        traceback.print_exc()
        run.found.append(Missing(path=name, why=f"broke: {type(error).__name__}: {error}"))
        run.broken.append(name)
        say(f"{name}: broke: {error!r}")
    run.seconds[name] = round(time.monotonic() - began, 1)
    say(f"{name} took {run.seconds[name]:.0f} s")


def say(words: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {words}", file=sys.stderr, flush=True)


def around_table(file: Path) -> tuple[str, str]:
    """What is before the table in a file, and what is after it. Raises ValueError where its markers aren't there."""
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{file} has no table: it wants {BEGIN} and {END}")
    return before + begin, end + after


def asked(known: Sequence[str], arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="as short as can be: whether they still run")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each comparison")
    parser.add_argument(
        "--only", action="append", choices=known, metavar="NAME", help=f"of {', '.join(known)}; may be given again"
    )
    parser.add_argument("--out", type=Path, default=Path(".cache/bench"), help="the folder of the written tables")
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="also put the table between the markers of this file"
    )
    options = parser.parse_args(arguments)
    if options.write and (options.only or options.smoke):
        parser.error("--write wants the whole table: neither --only nor --smoke")
    if options.write:
        around_table(options.write)  # or the run is for nothing
    return options


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # brokers and databases are to end too
    known = benchmarks()
    options = asked(list(known))
    run = Run(rounds=1 if options.smoke else options.rounds, smoke=options.smoke)
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
