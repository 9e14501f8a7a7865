"""The ntfy channel that docs/channels.md shows: it passes the contract tests and works as an installed package."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from channels.contract import Channel, Message
from channels.registry import ENTRY_POINT_GROUP
from tests.channels.contract import ChannelContract, HttpProvider, Provider, Reaction
from tests.support.http import Request, ScriptedHttp, answer
from tests.support.service import ask, command, serving

PAGE = (Path(__file__).parents[2] / "docs" / "channels.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## A channel of your own")[2]
TOKEN = "tk_hidden"
CREATED = datetime(2026, 11, 20, tzinfo=UTC)


def block(language: str, index: int = 0) -> str:
    """A code block of the section in that language."""
    blocks: list[str] = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    return blocks[index]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the package as pip installs it."""
    (tmp_path / "dispatcher_ntfy.py").write_text(block("python"))
    (tmp_path / "ntfy.yaml").write_text(block("yaml"))
    metadata = tmp_path / "dispatcher_ntfy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dispatcher-ntfy\nVersion: 1.0\n")
    found = re.search(r'entry-points\."(.*?)"\]\n(\w+) = "(.*?)"', block("toml"))
    assert found is not None
    assert found[1] == ENTRY_POINT_GROUP
    (metadata / "entry_points.txt").write_text(f"[{found[1]}]\n{found[2]} = {found[3]}\n")
    return tmp_path


@pytest.fixture
def channel_type(installed: Path) -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("dispatcher_ntfy", installed / "dispatcher_ntfy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dispatcher_ntfy"] = module
    spec.loader.exec_module(module)
    yield module.CHANNEL_TYPE
    del sys.modules["dispatcher_ntfy"]


def test_the_documented_channel_is_shorter_than_80_lines() -> None:
    assert len(block("python").splitlines()) < 80


class TestNtfy(ChannelContract):
    secrets: Sequence[str] = (TOKEN,)

    @pytest.fixture
    async def provider(self) -> AsyncIterator[Provider]:
        async with ScriptedHttp(default=answer(200, b"{}")) as server:
            yield HttpProvider(
                server, self._key, {Reaction.TRY_LATER: answer(429), Reaction.REFUSE: answer(403, b"{}")}
            )

    @pytest.fixture
    def new_channel(self, provider: HttpProvider, channel_type: Any) -> Channel:
        return self._channel(channel_type, provider.server.url)

    @pytest.fixture
    def unreachable_channel(self, channel_type: Any) -> Channel:
        return self._channel(channel_type, "http://127.0.0.1:1")

    @pytest.fixture
    def message(self) -> Callable[[str], Message]:
        return lambda key: Message(key=key, recipients=("ops",), content={"title": "failed"}, created_at=CREATED)

    def _channel(self, channel_type: Any, url: str) -> Channel:
        options = {"server": url, "token": TOKEN, "topics": ["ops"], "timeout": 1}
        channel: Channel = channel_type.open(channel_type.config.model_validate(options))
        return channel

    def _key(self, request: Request) -> str | None:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert request.json["topic"] == "ops"
        key: str = request.json["sequence_id"]
        return key


def environment(*folders: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}


def settings_file(folder: Path, **ntfy: Any) -> str:
    file = folder / "dispatcher.yaml"
    section = {"token": TOKEN, "topics": ["ops"], "rate": "2/s", **ntfy}
    settings = {"http": {}, "channels": {"ntfy": section}, "contacts": {"#dev": {"ntfy": ["ops"]}}}
    file.write_text(yaml.safe_dump(settings))
    return str(file)


async def test_an_installed_package_is_a_channel_like_any_other(installed: Path) -> None:
    env = environment(installed)
    async with ScriptedHttp(default=answer(200, b'{"id":"x"}')) as server:
        config = settings_file(installed, server=server.url)
        status, out, err = await command("check", "--config", config, env=env)
        assert (status, "channels   ok: ntfy" in out) == (0, True), err

        arguments = ("send-test", "--channel", "ntfy", "--to", "ops", "--config", config)
        status, out, err = await command(*arguments, env=env)
        assert status == 0, err
        assert "sent: ntfy accepted it" in out

    (request,) = server.requests
    assert request.json["title"] == "❌ TEST: train.daily failed"
    assert request.json["topic"] == "ops"

    status, out, err = await command("preview", "--channel", "ntfy", "--format", "json", "--config", config, env=env)
    assert (status, '"title":"❌ train.daily failed"' in out.replace('": "', '":"')) == (0, True), err


@pytest.fixture
def with_powers(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package with all that the page shows of `ChannelType`, in the environment of every command."""
    (installed / "dispatcher_ntfy.py").write_text(f"{block('python')}\n{block('python', 1)}")
    monkeypatch.setenv("PYTHONPATH", str(installed))
    return installed


async def test_an_installed_channel_is_previewed_without_settings_in_every_form(with_powers: Path) -> None:
    status, out, err = await command("preview", "--channel", "ntfy")
    assert (status, err) == (0, "")
    assert "─ Push ─" in out
    assert "❌ train.daily failed" in out
    status, _, err = await command("preview", "--all", "--output", str(with_powers / "all"))
    assert status == 0, err
    page = (with_powers / "all" / "failed.ntfy.html").read_text()
    assert '<div class="drawing ntfy"><h3>❌ train.daily failed</h3>' in page
    assert (with_powers / "all" / "failed.ntfy.txt").read_text().startswith("❌ train.daily failed\n\nflytesnacks/")


async def test_an_installed_channels_limits_hold_for_operators_templates_and_its_lint_reports_the_rest(
    with_powers: Path,
) -> None:
    template = with_powers / "own" / "ntfy" / "message.yaml"
    template.parent.mkdir(parents=True)
    template.write_text("title: '{{ \"x\" * 300 }}'\nmessage: '{{ name }}'")
    config, folder = settings_file(with_powers), str(with_powers / "own")
    assert (await command("templates", "lint", folder))[0] == 0
    with (with_powers / "dispatcher.yaml").open("a") as file:
        file.write("templates: {path: [own]}\n")
    _, out, err = await command("preview", "--channel", "ntfy", "--format", "json", "--config", config)
    assert f'"{"x" * 249}…"' in out, err
    template.write_text("title: '{{ name }}'")
    status, _, err = await command("templates", "lint", folder)
    assert status == 1
    assert "message is missing" in err


async def test_an_installed_channels_deliveries_are_listed_and_explained(with_powers: Path) -> None:
    (with_powers / "plan.yaml").write_text(
        "launch_plan: {project: flytesnacks, domain: production, name: train.daily}\n"
        "notifications: [{phases: [FAILED], channel: ntfy, recipients: [ops]}]\n"
    )
    async with ScriptedHttp(default=answer(200, b'{"id":"x"}')) as server:
        settings = {
            "rules": {"launch_plans": [str(with_powers / "plan.yaml")]},
            "ledger": {"url": f"sqlite+aiosqlite:///{with_powers}/ledger.db"},
            "channels": {"ntfy": {"server": server.url, "token": TOKEN, "topics": ["ops"]}},
        }
        async with serving(with_powers, settings) as replica:
            plan = ("--project", "flytesnacks", "--domain", "production", "--launch-plan", "train.daily")
            status, _, err = await command(
                "publish", *plan, "--name", "a1", "--format", "native", "--to", "http", "--url", f"{replica.url}/events"
            )
            assert status == 0, err
            config = with_powers / "dispatcher.yaml"
            async with asyncio.timeout(30):
                while not (listed := await ask(config, "deliveries", "list", "--channel", "ntfy", "--state", "sent")):
                    pass
    assert [(one["channel"], one["recipients"]) for one in listed] == [("ntfy", ["ops"])]
    status, out, err = await command("explain", "flytesnacks/production/a1", "--config", str(config))
    assert (status, "ntfy" in out) == (0, True), err


async def test_an_operators_template_takes_precedence_over_the_packages(installed: Path) -> None:
    template = installed / "own" / "ntfy" / "message.yaml"
    template.parent.mkdir(parents=True)
    template.write_text("title: 'mine: {{ name }}'\nwrong: '{{ nonsense }}'")
    config, folder, env = settings_file(installed), str(template.parent.parent), environment(installed)
    status, _, err = await command("templates", "lint", folder, "--config", config, env=env)
    assert (status, "ntfy/message.yaml:2: 'nonsense' is undefined" in err) == (1, True), err
    template.write_text("title: 'mine: {{ name }}'")
    _, out, err = await command("preview", "--channel", "ntfy", "--diff", folder, "--config", config, env=env)
    assert '+  "title": "mine: akx7b9q2vjt5fm4c8h2d"' in out, err


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        (
            "ntfy",
            "nowhere_at_all:CHANNEL_TYPE",
            "can't be loaded: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
        ("ntfy", "dispatcher_ntfy:NOTHING", "can't be loaded: AttributeError"),
        ("ntfy", "dispatcher_ntfy:NtfyConfig", "is no channels.contract.ChannelType"),
        ("ntfy", "with_lambda:CHANNEL_TYPE", "the functions of its form must stand at the top level of a module"),
        ("slack", "dispatcher_ntfy:CHANNEL_TYPE", "there is another channel of that name"),
        ("Not-a-name", "dispatcher_ntfy:CHANNEL_TYPE", "is made of a-z, 0-9 and _"),
    ],
)
async def test_check_names_a_package_that_cannot_be_loaded_and_the_reason(
    installed: Path, name: str, target: str, reason: str
) -> None:
    entry = installed / "dispatcher_ntfy-1.0.dist-info" / "entry_points.txt"
    entry.write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {target}\n")
    (installed / "with_lambda.py").write_text(
        "from channels.contract import ContentForm\n"
        "from dispatcher_ntfy import NtfyChannel, NtfyConfig\n"
        "from channels.contract import ChannelType\n"
        "CHANNEL_TYPE = ChannelType(config=NtfyConfig, open=NtfyChannel, form=ContentForm(lint=lambda _: ()))\n"
    )
    status, _, err = await command("check", "--config", settings_file(installed), env=environment(installed))
    assert status == 1
    assert reason in err
    assert f"channel {name!r} of dispatcher-ntfy" in err
    assert "Traceback" not in err
