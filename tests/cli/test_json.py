"""`--json`: every command that has a result prints it as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
import yaml

from dispatcher.cli import app
from dispatcher.ledger import HEAD, Ledger
from tests.support import samples
from tests.support.builders import NOW
from tests.support.ledger_steps import rejected
from tests.support.terminal import invoke

WITHOUT = {"serve", "demo", "preview"}
"""Commands without `--json`: two run until they are stopped, and the third shows messages, also as JSON."""


def _commands(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Yield each command with its name. `Any`: Typer does not export click's classes."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, *path, name)
        else:
            yield " ".join((*path, name)), command


def test_every_command_with_a_result_has_the_option() -> None:
    found = dict(_commands(typer.main.get_command(app)))
    assert found.keys() > WITHOUT
    lacking = {name for name, one in found.items() if all("--json" not in option.opts for option in one.params)}
    assert lacking == WITHOUT


async def _data(*arguments: str, status: int = 0) -> Any:
    answer = await invoke(*arguments, "--json")
    assert answer.status == status, answer.err
    return json.loads(answer.out)


async def test_findings_and_problems_say_which_part_they_are_about(tmp_path: Path) -> None:
    file, own = tmp_path / "dispatcher.yaml", tmp_path / "own"
    channels: dict[str, Any] = {"email": {"host": "relay.example.com", "from": "flyte@example.com"}}
    file.write_text(yaml.safe_dump({"http": {}, "channels": channels}))
    checked = await _data("check", "--config", str(file))
    assert checked["ok"]
    assert {one["part"]: one["result"] for one in checked["findings"]} == {
        "settings": "ok",
        "channels": "ok",
        "rules": "warning",
        "templates": "ok",
    }
    made = await _data("templates", "init", str(own), "--channel", "slack")
    assert made == {"files": [str(own / "slack" / name) for name in ("message.yaml", "summary.yaml")]}
    assert await _data("templates", "lint", str(own)) == {"problems": []}

    (own / "slack" / "message.yaml").write_text("text: '{{ wat }}'")
    (problem,) = (await _data("templates", "lint", str(own), status=1))["problems"]
    assert problem["message"].startswith("'wat' is undefined")
    assert (problem["file"], problem["line"]) == (str(own / "slack" / "message.yaml"), 1)
    file.write_text(yaml.safe_dump({"http": {}, "channels": channels, "templates": {"path": [str(own)]}}))
    checked = await _data("check", "--config", str(file), status=1)
    assert (checked["ok"], [one["part"] for one in checked["findings"]]) == (False, ["templates"])
    file.write_text(yaml.safe_dump({"htpp": {}}))
    (finding,) = (await _data("check", "--config", str(file), status=1))["findings"]
    assert (finding["part"], "htpp: unknown option" in finding["message"]) == ("settings", True)


async def test_the_ledgers_version_and_replayed_messages(tmp_path: Path) -> None:
    file, url = tmp_path / "dispatcher.yaml", f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    file.write_text(yaml.safe_dump({"ledger": {"url": url}, "channels": {"slack": {"token": "xoxb-hidden"}}}))
    end = ("--config", str(file))
    missing = {"version": None, "needed": HEAD, "compatible": False, "newer": False}
    assert await _data("ledger", "status", *end, status=1) == missing
    assert await _data("ledger", "migrate", *end) == {"version": HEAD, "version_before": None}
    assert await _data("ledger", "migrate", *end) == {"version": HEAD, "version_before": HEAD}
    assert await _data("ledger", "status", *end) == missing | {"version": HEAD, "compatible": True}

    headers, body = samples.sample("v1-workflow-failed")
    async with Ledger(url) as ledger:
        await ledger.record([], [rejected("eeee", headers=headers, body=body, size=len(body))], now=NOW)
    replayed = await _data("rejected", "replay", "--all", "--dry-run", *end)
    (message,) = replayed["messages"]
    assert (replayed["accepted"], message["id"], message["accepted"]) == (0, "eeee", False)
    assert message["message"].startswith("launch plan unknown")


async def test_imported_settings_come_with_what_is_left_to_do(tmp_path: Path) -> None:
    source, target = tmp_path / "flyteadmin.yaml", tmp_path / "dispatcher.yaml"
    source.write_text(
        "notifications: {type: smtp, emailer: {subject: '{{ name }} is over', sender: flyte@example.com}}"
    )
    printed = await _data("import-flyteadmin", str(source))
    assert ("channels:" in printed["settings"], printed["files"]) == (True, [])
    assert any("rules" in task for task in printed["to_do"])
    written = await _data("import-flyteadmin", str(source), "--output", str(target))
    assert str(target) in written["files"]
    assert target.read_text() == written["settings"]
