"""Text from events, files and providers is text and nothing else, in every command, in a pipe and in a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from channels.contract import Answer, Receipt
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.ledger import Filter
from dispatcher.model.delivery import Dead, Outcome, Retry, Sent
from dispatcher.model.event import ExecutionId
from tests.support import terminal
from tests.support.console import ConsoleServer, serve_console
from tests.support.flyte_admin import a_finished_execution
from tests.support.http import ScriptedHttp, answer
from tests.support.service import free_port
from tests.support.smtp import ScriptedRelay

MARKUP = "[bold]b[/bold] [/nope] [link=https://evil.example]l[/link]"
BIDI = "\u202eevil\u2066x\u2069\u200f"
C1 = "\x9b41m\x9d0;title\x9c\x90dcs\x9c"
NAME = f"n{C1}{BIDI}{MARKUP}".replace("/", "|")
"""The name of an execution, which has no slash and no character of C0."""
TEXT = f"t\x1b]52;c;cm0=\x07\x1b[2J\x1b[41m\x1b]8;;https://evil.example\x1b\\{C1}{BIDI}{MARKUP}\x7f\x08\rnext\nlast"
OUR_COLOURS = re.compile(r"\x1b\[(?!41m|2J)[\d;]*m")
"""What Rich writes for colours, which the texts above do not contain."""
NOT_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udcff]")
SHOWN = (r"\u009b41m", r"\u202e")
"""A part of each hostile text, as it must be shown."""
PLAN = {"project": "p", "domain": "d", "name": TEXT, "version": TEXT}
EVENT: dict[str, Any] = {
    "execution": {"project": NAME, "domain": NAME, "name": NAME},
    "phase": "FAILED",
    "occurred_at": "2026-11-20T09:14:21Z",
    "launch_plan": PLAN,
    "workflow": PLAN,
    "principal": TEXT,
    "labels": {"team": TEXT, TEXT: TEXT},
    "error": {"code": TEXT, "message": TEXT, "kind": "USER"},
    "options": {"notifications": [{"phases": ["FAILED"], "email": {"recipients_email": [f"{NAME}@example.com"]}}]},
}


def problems(written: terminal.Written) -> list[str]:
    """What is wrong with the output of a command."""
    wrong = []
    for kind, output in (("pipe", written.pipe), ("terminal", written.terminal)):
        plain = OUR_COLOURS.sub("", re.sub(r"\r+\n", "\n", output))
        if found := NOT_TEXT.findall(plain):
            wrong.append(f"{kind}: {sorted(set(found))} in {plain!r}")
        if "Traceback" in plain:
            wrong.append(f"{kind}: {plain}")
    return wrong


def problems_of(commands: Sequence[Sequence[str]], written: Sequence[terminal.Written]) -> dict[str, list[str]]:
    found = {" ".join(command): problems(one) for command, one in zip(commands, written, strict=True)}
    return {command: wrong for command, wrong in found.items() if wrong}


def joined(output: str) -> str:
    """The output without the line breaks and the frames that Rich adds, so that folded text can be found."""
    return re.sub(r"[\s│▌]+", "", OUR_COLOURS.sub("", output))


@pytest.fixture
async def console(tmp_path: Path) -> AsyncIterator[ConsoleServer]:
    async with serve_console(f"sqlite+aiosqlite:///{tmp_path}/ledger.db") as server:
        yield server


async def filled(console: ConsoleServer) -> None:
    """Record hostile text in every field of the ledger that takes it."""
    execution = {"project": NAME, "domain": NAME, "name": NAME}
    fields = {name: EVENT[name] for name in ("workflow", "principal", "labels", "error")}
    wanted: dict[str, tuple[str, Outcome]] = {
        "slack": (f"#{BIDI}{MARKUP}", Dead(TEXT, Answer(TEXT, TEXT))),
        "email": (f"{NAME}@example.com", Sent(Receipt(answer=Answer(TEXT, TEXT), reference={TEXT: TEXT}))),
        "teams": (f"{BIDI}{MARKUP}", Retry(console.clock.now() + timedelta(days=1), TEXT, Answer(TEXT, TEXT))),
    }
    rules = [{"phases": ["FAILED"], "channel": channel, "recipients": [to]} for channel, (to, _) in wanted.items()]
    options = {"notifications": rules}
    await console.finish("n", launch_plan=TEXT, execution=execution, options=options, **fields)
    for channel, (_, outcome) in wanted.items():
        await console.deliver(channel, outcome)
    headers = [("content-type", b"application/cloudevents+json"), (TEXT, TEXT.encode()), ("[/nope]", b"\x9b\xff")]
    await console.intake.ingest([(headers, TEXT.encode(), TEXT)])
    another = {"execution": {**execution, "name": f"another{NAME}"}, "launch_plan": None, "options": None}
    unknown = json.dumps({**EVENT, **another}).encode()
    await console.intake.ingest([([("ce_type", b"dispatcher.execution.phase_changed.v1")], unknown, f"{TEXT} 2")])


async def test_whatever_the_ledger_has_is_shown_as_text(console: ConsoleServer, tmp_path: Path) -> None:
    await filled(console)
    stored = await console.ledger.history.find(Filter(), limit=9)
    rejected = await console.ledger.rejected.find(limit=9)
    config = tmp_path / "dispatcher.yaml"
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    config.write_text(yaml.safe_dump({"http": {}, "ledger": {"url": url}}))
    execution = "/".join([NAME] * 3)
    lists = [["deliveries", "list"], ["rejected", "list"], ["explain", execution]]
    shown = [["deliveries", "show", one.delivery.key] for one in stored]
    shown += [["rejected", "show", one.id] for one in rejected]
    commands = [*lists, *shown]
    with_json = [[*command, "--json"] for command in (*lists, shown[0], shown[-1])]
    changes = [["deliveries", "redrive", "--all", "--dry-run"], ["rejected", "replay", "--all", "--dry-run"]]
    every = [[*command, "--config", str(config)] for command in (*commands, *with_json, *changes)]
    assert len(shown) == 3 + 2
    outputs = await terminal.run(every)
    assert problems_of(every, outputs) == {}
    written = dict(zip(map(" ".join, every), outputs, strict=True))
    for command, one in written.items():
        assert one.statuses == (0, 0), command
        for output in (one.pipe, one.terminal):
            assert any(part in joined(output) for part in SHOWN), (command, output)
            assert MARKUP.replace(" ", "") in joined(output) or NAME[-5:] in joined(output), (command, output)
    parsed = [json.loads(one.pipe) for command, one in written.items() if "--json" in command]
    values = [text for data in parsed for text in texts(data)]
    assert {TEXT, NAME} <= set(values), "JSON keeps every character"


def texts(data: Any) -> list[str]:
    match data:
        case dict():
            return [text for name, value in data.items() for text in (name, *texts(value))]
        case list():
            return [text for value in data for text in texts(value)]
        case _:
            return [str(data)]


async def test_files_and_arguments_are_shown_as_text(tmp_path: Path) -> None:
    event = tmp_path / "event.json"
    event.write_text(json.dumps(EVENT))
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({**EVENT, "phase": TEXT, "labels": {TEXT: {}}}))
    rules = tmp_path / f"rules{BIDI}\x1b[41m"
    rules.mkdir()
    (rules / f"plan{BIDI}.yaml").write_text(json.dumps({"launch_plan": PLAN, TEXT: TEXT}))
    own = tmp_path / f"own{C1}"
    (own / "email").mkdir(parents=True)
    (own / "email" / f"sub{BIDI}ject.txt.j2").write_text("x")
    config = tmp_path / "dispatcher.yaml"
    config.write_text(yaml.safe_dump({"http": {}, "rules": {"launch_plans": [str(rules)]}, "channels": {}}))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({"http": {}, TEXT: TEXT, "channels": {TEXT: {}}}))
    admin = tmp_path / "flyteadmin.yaml"
    notifications = {"type": "aws", "emailer": {"subject": TEXT, "sender": TEXT, "body": TEXT}}
    admin.write_text(yaml.safe_dump({"notifications": notifications, "cloudEvents": {"enable": True, "type": TEXT}}))
    commands = [
        ["explain", str(event)],
        ["explain", str(event), "--json"],
        ["explain", str(broken)],
        ["explain", TEXT],
        ["check", "--config", str(config)],
        ["check", "--config", str(wrong)],
        ["check", "--config", str(tmp_path / TEXT)],
        ["deliveries", "list", "--state", TEXT],
        ["templates", "lint", str(own)],
        ["import-flyteadmin", str(admin)],
        ["preview", "--channel", TEXT],
        ["preview", "--channel", "slack", "--event", str(broken)],
        *(
            ["preview", "--channel", channel, "--event", str(event)]
            for channel in ("email", "slack", "pagerduty", "teams", "webhook")
        ),
        *(["preview", "--channel", "slack", "--event", str(event), "--format", form] for form in ("html", "json")),
        ["preview", "--channel", "email", "--event", str(event), "--format", "eml"],
    ]
    written = await terminal.run(commands)
    assert problems_of(commands, written) == {}
    for command, one in zip(commands, written, strict=True):
        if command[0] == "preview" and str(event) in command and command[-1] != "eml":
            assert MARKUP.replace(" ", "") in joined(unescape(one.pipe)), (command, one.pipe)


async def test_what_others_answer_is_shown_as_text(tmp_path: Path) -> None:
    hostile = json.dumps({"ok": False, "error": TEXT, "reason": TEXT, "status": TEXT, "message": TEXT}).encode()
    execution = ExecutionId(project="p", domain="d", name=NAME)
    line = TEXT.replace("\r", "").replace("\n", "")
    async with (
        ScriptedHttp(default=answer(400, hostile)) as refusing,
        ScriptedHttp(default=answer(202, hostile)) as accepting,
        ScriptedRelay(always={"RCPT": f"550 {line}"}) as relay,
        LocalFlyteAdmin() as admin,
    ):
        admin.add(a_finished_execution(execution))
        webhook = {
            "allow_http": True,
            "allow_networks": ["127.0.0.0/8"],
            "targets": {"ops": {"url": f"{refusing.url}/h"}},
        }
        settings = {
            "http": {"listen": f"127.0.0.1:{free_port()}"},
            "ledger": {"url": f"sqlite+aiosqlite:///{tmp_path}/ledger.db"},
            "rules": {"flyte_admin": {"endpoint": admin.endpoint, "insecure": True}},
            "channels": {
                "email": {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "f@example.com"},
                "slack": {"token": "xoxb-1", "api_url": f"{refusing.url}/api/"},
                "webhook": webhook,
            },
        }
        config = tmp_path / "dispatcher.yaml"
        config.write_text(yaml.safe_dump(settings))
        commands = [
            ["send-test", "--channel", "email", "--to", "a@example.com"],
            ["send-test", "--channel", "slack", "--to", "C0123456789"],
            ["send-test", "--channel", "webhook", "--to", "ops"],
            ["publish", "--url", refusing.url],
            ["publish", "--url", accepting.url, "--name", NAME],
            ["check", "--live"],
            ["reconcile", "--dry-run", "--since", "2020-01-01"],
        ]
        written = await terminal.run([[*command, "--config", str(config)] for command in commands])
    assert problems_of(commands, written) == {}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
async def test_commands_work_on_terminals_that_are_not_utf_8(tmp_path: Path, encoding: str) -> None:
    event = tmp_path / "event.json"
    words = "caf\xe9 \u2713 \u0416 \U0001f680"
    event.write_text(json.dumps({**EVENT, "principal": words, "error": {"message": words}}))
    commands = [
        ["preview", "--channel", "slack", "--event", str(event)],
        ["preview", "--channel", "email", "--event", str(event), "--format", "text"],
        ["explain", str(event), "--json"],
        ["explain", str(event)],
        ["explain", words],
    ]
    written = await terminal.run(commands, {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    for command, one in zip(commands, written, strict=True):
        assert one.statuses == ((2, 2) if command[1] == words else (0, 0)), one.pipe
        for output in (one.pipe, one.terminal):
            assert "Traceback" not in output
            output.encode("ascii", "surrogateescape" if encoding == "latin-1" else "strict")
            assert r"\u2713" in joined(output), output
    assert json.loads(written[2].pipe)["event"]["principal"] == words
