"""`-`: commands read an event, a file or a list of keys from standard input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dispatcher.errors import SettingsError
from dispatcher.ledger import Filter, Ledger
from dispatcher.model.delivery import State
from tests.support.builders import NOW, a_delivery, a_launch_plan, an_event
from tests.support.ledger_steps import recorded, rejected
from tests.support.service import command
from tests.support.terminal import invoke


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/ledger.db"


@pytest.fixture
def config(tmp_path: Path, url: str) -> str:
    file = tmp_path / "dispatcher.yaml"
    channels = {"email": {"host": "relay.example.com", "from": "flyte@example.com"}}
    file.write_text(yaml.safe_dump({"ledger": {"url": url}, "channels": channels}))
    return str(file)


async def test_an_event_is_explained_and_previewed(config: str) -> None:
    event = an_event(launch_plan=a_launch_plan("of a pipe")).model_dump_json()
    for arguments in (
        ("explain", "-"),
        ("explain", "--event", "-"),
        ("preview", "--channel", "email", "--format", "text", "--event", "-"),
    ):
        answer = await invoke(*arguments, "--config", config, stdin=event)
        assert (answer.status, "of a pipe" in answer.out) == (0, True), answer.err
        broken = await invoke(*arguments, "--config", config, stdin="{")
        assert (broken.status, "standard input: broken JSON" in broken.err) == (2, True)


async def test_events_are_published_and_flyteadmins_configuration_is_imported() -> None:
    publish = ("publish", "--url", "http://127.0.0.1:1", "--file")
    status, _, err = await command(*publish, "-", stdin="\n{}\n")
    assert (status, "line 2: neither a CloudEvent" in err) == (1, True), err
    missing = await invoke(*publish, "nowhere.jsonl")
    assert (missing.status, "nowhere.jsonl: can't be read: No such file" in missing.err) == (2, True)
    imported = await invoke("import-flyteadmin", "-", stdin="cloudEvents: {enable: true, type: kafka}")
    assert (imported.status, imported.out.startswith("# From standard input.")) == (0, True)
    with pytest.raises(SettingsError, match="standard input:2: broken YAML"):
        await invoke("import-flyteadmin", "-", stdin="a: 1\na: 2")


async def test_keys_are_read_by_line_and_none_is_never_all(config: str, url: str) -> None:
    event = an_event()
    first, second, third = (a_delivery(event, to=f"{name}@example.com") for name in ("a", "b", "c"))
    async with Ledger(url) as ledger:
        await ledger.record(
            [recorded(first, second, third, event=event)], [rejected("aaaa"), rejected("bbbb")], now=NOW
        )
        cancel = ("deliveries", "cancel", "--config", config, "--json", "-")
        answer = await invoke(*cancel, stdin=f"{first.key[:12]}\n\n  {second.key}\n")
        assert json.loads(answer.out)["deliveries"] == 2
        assert [
            one.delivery.key for one in await ledger.history.find(Filter(states=frozenset({State.WAITING})), limit=5)
        ] == [third.key]
        for stdin, words in (("\n", "standard input names nothing"), ("0\n" * 501, "at most 500 at a time")):
            refused = await invoke(*cancel, "--channel", "email", "--all", stdin=stdin)
            assert (refused.status, words in refused.err) == (2, True), refused.err
        assert json.loads((await invoke(*cancel, stdin="0\n" * 499 + third.key)).out)["deliveries"] == 1

        dismissed = await invoke("rejected", "dismiss", "--config", config, "--json", "-", stdin="bbbb\n")
        assert json.loads(dismissed.out) == {"messages": 1}
        assert (await invoke("rejected", "replay", "-", "--config", config, stdin="")).status == 2
