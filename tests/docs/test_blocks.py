"""What the pages tell a reader to type or to write, typed and written."""

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

ELSEWHERE = {"docker", "helm", "kafka-acls.sh", "kafka-topics.sh", "kubectl", "systemctl"}
"""Programs that the pages speak of and that a test can't have: a cluster's, an engine's, root's."""
APART = {"tutorial.md"}
"""Pages that are followed from their first line to their last, by a test of their own."""
PAGES = [page for page in pages() if page.name not in APART]
CONSOLE = [block for page in PAGES for block in blocks(page, "console")]
YAML = [block for page in PAGES for block in blocks(page, "yaml")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def a_world(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    await make_topic(broker.bootstrap_servers, topic := f"docs-{os.getpid()}")
    async with world(tmp_path_factory.mktemp("docs") / "world", broker.bootstrap_servers, topic) as made:
        yield made


@pytest.fixture
def here(a_world: World, tmp_path: Path) -> World:
    return a_world.copy(tmp_path / "world")


@pytest.mark.broker
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("block", CONSOLE, ids=str)
async def test_every_command_of_the_pages_does_what_it_is_there_for(block: Block, here: World) -> None:
    for line in block.commands:
        match words(here.here(line)):
            case ["dispatcher", "import-flyteadmin", *_] as typed:
                await _import(typed, here)
            case ["dispatcher", *_] as typed:
                status, said = await here.run(typed)
                assert status == 0, f"{line}\n{said}"
            case ["make", target]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
            case ["pip", "install", package]:
                assert _installable(package), line
            case typed:
                assert typed[0] in ELSEWHERE, f"{block}: who tries {typed[0]}?"


async def _import(typed: list[str], here: World) -> None:
    """What is imported is for the reader to fill in; the world's settings are what comes of it."""
    file = here.folder / typed[typed.index("--output") + 1]
    filled_in = file.read_text()
    file.unlink()
    status, said = await here.run(typed)
    assert status == 0, said
    assert set(yaml.safe_load(file.read_text())) <= set(Settings.model_fields)
    file.write_text(filled_in)


def _installable(package: str) -> bool:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, _, extras = package.rstrip("]").partition("[")
    return name == project["name"] and set(filter(None, extras.split(","))) <= set(project["optional-dependencies"])


@pytest.mark.broker
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("block", YAML, ids=str)
async def test_every_piece_of_yaml_is_taken_by_the_one_it_is_for(block: Block, here: World) -> None:
    text = here.here(block.text)
    data = yaml.safe_load(text)
    if "launch_plan" in data:
        (here.folder / "launch_plans" / "train.daily.yaml").write_text(text)
        await _checks_out({"rules": {"launch_plans": ["./launch_plans"]}}, here)
    elif set(data) <= set(Settings.model_fields):
        await _checks_out(data, here)
    elif set(data) <= set(CHANNEL_TYPES):
        await _checks_out({"channels": data}, here)
    elif "cloudEvents" in data or "eventsPublisher" in data:
        events = data.get("cloudEvents", data)
        (here.folder / "flyteadmin.yaml").write_text(yaml.safe_dump({"cloudEvents": events}))
        _, said = await here.run(["dispatcher", "import-flyteadmin", "flyteadmin.yaml"])
        assert events["eventsPublisher"]["topicName"] in said
    else:
        assert block.file == "ntfy.yaml" or "auth" in data, (
            f"{block}: whose is it?"
        )  # tried by the channel's own test; flyteadmin's


async def _checks_out(data: Mapping[str, Any], here: World) -> None:
    """`dispatcher check` finds nothing, once the sections are there that the piece leaves out."""
    settings = dict(data)
    if "reconcile" in settings:
        settings["rules"] = {"flyte_admin": {"endpoint": "127.0.0.1:81", "insecure": True}} | settings.get("rules", {})
    if "channels" not in settings:
        settings["channels"] = yaml.safe_load((here.folder / "dispatcher.yaml").read_text())["channels"]
    (here.folder / "piece.yaml").write_text(yaml.safe_dump(settings))
    status, said = await here.run(["dispatcher", "check", "--config", "piece.yaml"])
    assert status == 0, said


def test_no_page_has_a_block_in_a_language_that_nobody_tries() -> None:
    tried = {
        "console",
        "yaml",
        "text",
        "python",
        "toml",
    }  # python, toml: the channel that docs/channels.md shows has its own test
    for page in pages():
        found = re.findall(r"^ *```(\w*)", page.read_text(), re.MULTILINE)
        assert set(found[::2]) <= tried, page
        assert "" not in found[::2], page
