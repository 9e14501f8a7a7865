"""Watches replicas for alerts: Prometheus with the repository's rules if it is installed, otherwise a substitute."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support.service import free_port
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
PROMETHEUS = shutil.which("prometheus")
JOB = "flyte-notification-dispatcher"
DEAD = "DispatcherDeadDeliveries"
WINDOW = 15
"""Seconds over which the rule counts dead deliveries in tests; the delivered rule has 15 minutes."""


class Watcher(Protocol):
    """Finds the alerts that fire."""

    name: str

    def watch(self, urls: Sequence[str]) -> None:
        """Watch the replicas at these URLs from now on."""

    async def sees_all(self) -> bool:
        """True once each replica was scraped. Prometheus notices new ones after some seconds."""

    async def firing(self) -> set[str]:
        """The names of the alerts that fire now."""

    async def fired(self) -> set[str]:
        """The names of the alerts that have fired at any time."""


@asynccontextmanager
async def watching(folder: Path, token_file: Path) -> AsyncIterator[Watcher]:
    """A watcher for the `with` block. It creates the folder, and uses the token for `/metrics`."""
    folder.mkdir()  # noqa: ASYNC240 - a test
    opened = _prometheus(folder, token_file) if PROMETHEUS else _substitute(token_file)
    async with opened as watcher:
        yield watcher


@dataclass(slots=True)
class Prometheus:
    """Prometheus itself."""

    url: str
    targets: Path
    session: aiohttp.ClientSession
    name: str = "Prometheus"
    watched: int = 0

    def watch(self, urls: Sequence[str]) -> None:
        hosts = [url.removeprefix("http://") for url in urls]
        self.targets.write_text(json.dumps([{"targets": hosts}]))
        self.watched = len(hosts)

    async def sees_all(self) -> bool:
        async with self.session.get(f"{self.url}/api/v1/query", params={"query": "count(up == 1)"}) as answer:
            found = (await answer.json())["data"]["result"]
        return bool(found) and int(found[0]["value"][1]) >= self.watched

    async def firing(self) -> set[str]:
        async with self.session.get(f"{self.url}/api/v1/alerts") as answer:
            alerts = (await answer.json())["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def fired(self) -> set[str]:
        params = {"query": 'last_over_time(ALERTS{alertstate="firing"}[1h])'}
        async with self.session.get(f"{self.url}/api/v1/query", params=params) as answer:
            found = (await answer.json())["data"]["result"]
        return {one["metric"]["alertname"] for one in found}


@asynccontextmanager
async def _prometheus(folder: Path, token_file: Path) -> AsyncIterator[Prometheus]:
    port, targets = free_port(), folder / "targets.json"
    targets.write_text("[]")
    (folder / "rules.yaml").write_text(yaml.safe_dump(_with_short_window(yaml.safe_load(RULES.read_text()))))
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
            prometheus = Prometheus(f"http://127.0.0.1:{port}", targets, session)
            await until(lambda: _answers(session, f"{prometheus.url}/-/ready"), 60)
            yield prometheus
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _with_short_window(rules: dict[str, list[dict[str, list[dict[str, str]]]]]) -> object:
    """The rules, with a shorter window for dead deliveries: a test waits until that alert is over."""
    (rule,) = (rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == DEAD)
    assert "[15m]" in rule["expr"]
    rule["expr"] = rule["expr"].replace("[15m]", f"[{WINDOW}s]")
    return rules


@dataclass(slots=True)
class Substitute:
    """Evaluates the rule about dead deliveries from `/metrics`, and no other rule."""

    token_file: Path
    session: aiohttp.ClientSession
    name: str = "a substitute for one rule, because Prometheus is not installed (Debian: prometheus)"
    _urls: Sequence[str] = ()
    _samples: list[tuple[float, float]] = field(default_factory=list)
    """Monotonic time and the number of dead deliveries."""
    _dead: dict[str, float] = field(default_factory=dict)
    _fired: set[str] = field(default_factory=set)

    def watch(self, urls: Sequence[str]) -> None:
        self._urls = urls

    async def sees_all(self) -> bool:
        return bool(self._samples) and set(self._urls) <= self._dead.keys()

    async def firing(self) -> set[str]:
        return {DEAD} if self._increase() > 0 else set()

    async def fired(self) -> set[str]:
        return self._fired

    async def run(self) -> None:
        """Scrape every second, until cancelled."""
        while True:
            for url in self._urls:
                self._dead[url] = await self._dead_at(url)
            self._samples.append((time.monotonic(), sum(self._dead.values())))
            self._fired |= await self.firing()
            await asyncio.sleep(1)

    def _increase(self) -> float:
        recent = [dead for at, dead in self._samples if at > time.monotonic() - WINDOW]
        return recent[-1] - recent[0] if recent else 0

    async def _dead_at(self, url: str) -> float:
        headers = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        try:
            async with self.session.get(f"{url}/metrics", headers=headers) as answer:
                families = list(text_string_to_metric_families(await answer.text()))
        except aiohttp.ClientError:
            return self._dead.get(url, 0)
        samples = (one for family in families for one in family.samples if one.name == "dispatcher_deliveries_total")
        return sum(one.value for one in samples if one.labels["outcome"] == "dead")


@asynccontextmanager
async def _substitute(token_file: Path) -> AsyncIterator[Substitute]:
    async with aiohttp.ClientSession() as session:
        substitute = Substitute(token_file, session)
        scraping = asyncio.create_task(substitute.run())
        try:
            yield substitute
        finally:
            scraping.cancel()
            await asyncio.wait([scraping])


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


PROMTOOL = shutil.which("promtool")


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine (Debian: prometheus)")


def promtool(*arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [PROMTOOL or "promtool", *arguments], input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
