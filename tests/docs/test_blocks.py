"""Runs the commands and checks the YAML in README.md and docs/."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from channels.registry import CHANNEL_TYPES
from dispatcher.config.settings import Settings
from tests.docs.world import World, world
from tests.support.brokers import Broker
from tests.support.brokers.fixtures import make_topic
from tests.support.pages import ROOT, Block, blocks, pages, words
from tests.support.service import ROUTING_KEY

ELSEWHERE = {"docker", "helm", "kafka-acls.sh", "kafka-topics.sh", "kubectl", "systemctl"}
"""Programs in the pages that a test cannot run: they need a cluster, a container engine or root."""
OWN_TEST = {"tutorial.md"}
"""Pages that test_tutorial.py runs from beginning to end."""
PAGES = [page for page in pages() if page.name not in OWN_TEST]
CONSOLE = [block for page in PAGES for block in blocks(page, "console")]
YAML = [block for page in PAGES for block in blocks(page, "yaml")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def a_world(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    await make_topic(broker.bootstrap_servers, topic := f"docs-{os.getpid()}")
    async with world(tmp_path_factory.mktemp("docs") / "world", broker.bootstrap_servers, topic) as opened:
        yield opened


@pytest.fixture
def here(a_world: World, tmp_path: Path) -> World:
    return a_world.copy(tmp_path / "world")


@pytest.mark.broker
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "block", [pytest.param(one, marks=pytest.mark.timeout(60 + 20 * len(one.commands)), id=str(one)) for one in CONSOLE]
)
async def test_every_command_in_the_pages_succeeds(block: Block, here: World) -> None:
    for line in block.commands:
        match words(here.here(line)):
            case ["dispatcher", "import-flyteadmin", *_] as typed:
                await _import_flyteadmin(typed, here)
            case ["dispatcher", *_] as typed:
                status, output = await here.run(typed)
                assert status == 0, f"{line}\n{output}"
            case ["make", target, *variables]:
                assert all(re.match(r"[A-Z_]+=", variable) for variable in variables), line
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            case ["pip", "install", package]:
                assert _installable(package), line
            case typed:
                assert typed[0] in ELSEWHERE, f"{block}: no test runs {typed[0]}"


async def _import_flyteadmin(typed: list[str], here: World) -> None:
    """Run the import, then put back the world's settings: a reader would now complete the generated ones."""
    file = here.folder / typed[typed.index("--output") + 1]
    completed = file.read_text()
    file.unlink()
    status, output = await here.run(typed)
    assert status == 0, output
    assert set(yaml.safe_load(file.read_text())) <= set(Settings.model_fields)
    file.write_text(completed)


def _installable(package: str) -> bool:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, _, extras = package.rstrip("]").partition("[")
    return name == project["name"] and set(filter(None, extras.split(","))) <= set(project["optional-dependencies"])


@pytest.mark.broker
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("block", YAML, ids=str)
async def test_every_yaml_block_is_valid_for_its_program(block: Block, here: World) -> None:
    text = here.here(block.text)
    data = yaml.safe_load(text)
    if "launch_plan" in data:
        file = here.folder / "launch_plans" / "train.daily.yaml"
        before = file.read_bytes() if file.exists() else None
        file.write_text(text)
        rules = [rule.get("pager_duty", {}) for rule in data["notifications"]]
        services = {name: {"routing_key": ROUTING_KEY} for rule in rules for name in rule.get("recipients_email", ())}
        try:
            await _check({"rules": {"launch_plans": ["./launch_plans"]}}, here, pagerduty={"services": services})
        finally:
            file.unlink() if before is None else file.write_bytes(before)
    elif "routes" in data:
        assert block.file is not None
        (here.folder / block.file).write_text(text)
        named = {to for one in data["routes"] for to in one["notify"] if type(to) is str}
        owners = {"owners": {"label": "team"}} if "owner" in named else {}
        contacts = {to: {"email": ["a@example.com"]} for to in named - {"owner"}}
        await _check({"rules": {"routes": [block.file]}, "contacts": contacts} | owners, here)
    elif set(data) <= set(Settings.model_fields):
        await _check(data, here)
    elif set(data) <= set(CHANNEL_TYPES):
        await _check({"channels": data}, here)
    elif "cloudEvents" in data or "eventsPublisher" in data:
        events = data.get("cloudEvents", data)
        (here.folder / "flyteadmin.yaml").write_text(yaml.safe_dump({"cloudEvents": events}))
        _, output = await here.run(["dispatcher", "import-flyteadmin", "flyteadmin.yaml"])
        assert events["eventsPublisher"]["topicName"] in output
    else:  # ntfy.yaml has its channel's test; `auth` belongs to flyteadmin's configuration
        assert block.file == "ntfy.yaml" or "auth" in data, f"{block}: no program for it"


async def _check(data: Mapping[str, Any], here: World, **channels: Any) -> None:
    """`dispatcher check` accepts the block after missing sections are added."""
    settings = dict(data)
    if "reconcile" in settings:
        settings["rules"] = {"flyte_admin": {"endpoint": "127.0.0.1:81", "insecure": True}} | settings.get("rules", {})
    settings.setdefault("kafka", {"bootstrap_servers": "kafka:9092"})
    if "channels" not in settings:
        settings["channels"] = yaml.safe_load((here.folder / "dispatcher.yaml").read_text())["channels"] | channels
    if "services" in (pagerduty := settings["channels"].get("pagerduty") or {}):
        pagerduty["services"].setdefault("ml", {"routing_key": ROUTING_KEY})  # a recipient of the folder's rules
    (here.folder / "block.yaml").write_text(yaml.safe_dump(settings))
    status, output = await here.run(["dispatcher", "check", "--config", "block.yaml"])
    assert status == 0, output


def test_every_block_in_the_pages_has_a_language_that_a_test_covers() -> None:
    covered = {"console", "yaml", "text", "python", "toml"}  # python, toml: tested with docs/channels.md's own channel
    for page in pages():
        found = re.findall(r"^ *```(\w*)", page.read_text(), re.MULTILINE)
        assert set(found[::2]) <= covered, page
        assert "" not in found[::2], page
