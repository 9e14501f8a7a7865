"""Who watches the replicas: Debian's Prometheus with our alert rules, or, where there is none, a substitute's own eyes."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.service import free_port

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
PROMETHEUS = shutil.which("prometheus")
JOB = "flyte-notification-dispatcher"
DEAD = "DispatcherDeadDeliveries"
WINDOW = 15
"""Seconds over which deaths are counted here; the rule as it is delivered says 15 minutes."""


class Watcher(Protocol):
    """Tells which alerts fire."""

    name: str

    def watch(self, urls: Sequence[str]) -> None:
        """These are the replicas from now on."""

    async def sees(self) -> bool:
        """Whether each of them has been looked at. Prometheus finds new ones after some seconds."""

    async def firing(self) -> set[str]:
        """The alerts that fire now, by name."""

    async def fired(self) -> set[str]:
        """The alerts that have ever fired."""


@asynccontextmanager
async def watching(folder: Path, token_file: Path) -> AsyncIterator[Watcher]:
    """A watcher that shows this token at `/metrics`, while the block lasts. Its folder is made."""
    folder.mkdir()  # noqa: ASYNC240 - a test
    opened = _prometheus(folder, token_file) if PROMETHEUS else _own_eyes(token_file)
    async with opened as watcher:
        yield watcher


@dataclass(slots=True)
class Prometheus:
    """The real one."""

    url: str
    targets: Path
    session: aiohttp.ClientSession
    name: str = "Prometheus"
    watched: int = 0

    def watch(self, urls: Sequence[str]) -> None:
        hosts = [url.removeprefix("http://") for url in urls]
        self.targets.write_text(json.dumps([{"targets": hosts}]))
        self.watched = len(hosts)

    async def sees(self) -> bool:
        async with self.session.get(f"{self.url}/api/v1/query", params={"query": "count(up == 1)"}) as answer:
            found = (await answer.json())["data"]["result"]
        return bool(found) and int(found[0]["value"][1]) >= self.watched

    async def firing(self) -> set[str]:
        async with self.session.get(f"{self.url}/api/v1/alerts") as answer:
            alerts = (await answer.json())["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def fired(self) -> set[str]:
        asked = {"query": 'last_over_time(ALERTS{alertstate="firing"}[1h])'}
        async with self.session.get(f"{self.url}/api/v1/query", params=asked) as answer:
            found = (await answer.json())["data"]["result"]
        return {one["metric"]["alertname"] for one in found}


@asynccontextmanager
async def _prometheus(folder: Path, token_file: Path) -> AsyncIterator[Prometheus]:
    port, targets = free_port(), folder / "targets.json"
    targets.write_text("[]")
    (folder / "rules.yaml").write_text(yaml.safe_dump(_quicker(yaml.safe_load(RULES.read_text()))))
    scrape = {
        "job_name": JOB,
        "authorization": {"credentials_file": str(token_file)},
        "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
    }
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(PROMETHEUS),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession() as session:
            made = Prometheus(f"http://127.0.0.1:{port}", targets, session)
            await until(lambda: _answers(session, f"{made.url}/-/ready"), "Prometheus is ready")
            yield made
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _quicker(rules: dict[str, list[dict[str, list[dict[str, str]]]]]) -> object:
    """Our rules with the window of one of them shortened, for a test waits until the alert is over."""
    (rule,) = (rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == DEAD)
    assert "[15m]" in rule["expr"]
    rule["expr"] = rule["expr"].replace("[15m]", f"[{WINDOW}s]")
    return rules


@dataclass(slots=True)
class OwnEyes:
    """Reads what that rule is about off `/metrics`, and follows it: the dead within the window. Sees no other alert."""

    token_file: Path
    session: aiohttp.ClientSession
    name: str = "a substitute that knows one rule, for there is no Prometheus on this machine (Debian: prometheus)"
    _urls: Sequence[str] = ()
    _counted: list[tuple[float, float]] = field(default_factory=list)
    _dead: dict[str, float] = field(default_factory=dict)
    _fired: set[str] = field(default_factory=set)

    def watch(self, urls: Sequence[str]) -> None:
        self._urls = urls

    async def sees(self) -> bool:
        return bool(self._counted) and set(self._urls) <= self._dead.keys()

    async def firing(self) -> set[str]:
        return {DEAD} if self._increase() > 0 else set()

    async def fired(self) -> set[str]:
        return self._fired

    async def look(self) -> None:
        """Scrape every second, until cancelled."""
        while True:
            for url in self._urls:
                self._dead[url] = await self._dead_at(url)
            self._counted.append((time.monotonic(), sum(self._dead.values())))
            self._fired |= await self.firing()
            await asyncio.sleep(1)

    def _increase(self) -> float:
        recent = [dead for at, dead in self._counted if at > time.monotonic() - WINDOW]
        return recent[-1] - recent[0] if recent else 0

    async def _dead_at(self, url: str) -> float:
        shown = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        try:
            async with self.session.get(f"{url}/metrics", headers=shown) as answer:
                families = list(text_string_to_metric_families(await answer.text()))
        except aiohttp.ClientError:
            return self._dead.get(url, 0)
        samples = (one for family in families for one in family.samples if one.name == "dispatcher_deliveries_total")
        return sum(one.value for one in samples if one.labels["outcome"] == "dead")


@asynccontextmanager
async def _own_eyes(token_file: Path) -> AsyncIterator[OwnEyes]:
    async with aiohttp.ClientSession() as session:
        eyes = OwnEyes(token_file, session)
        looking = asyncio.create_task(eyes.look())
        try:
            yield eyes
        finally:
            looking.cancel()
            await asyncio.wait([looking])


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def until(holds: Callable[[], Awaitable[bool]], what: str, *, seconds: float = 60) -> None:
    """Ask again and again until it holds; `what` should."""
    end = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.2)
