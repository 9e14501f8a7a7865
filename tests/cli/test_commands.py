"""The command line, as a user runs it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import pwd
import socket
from asyncio.subprocess import PIPE
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import yaml

from channels.contract import Answer, Receipt
from dispatcher.clock import SystemClock
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.ledger import Ledger, RecordedEvent, Rejected, Settlement
from dispatcher.model.delivery import Dead, Retry, Sent
from dispatcher.model.rate_limit import AdmissionControl, RateLimit
from dispatcher.version import __version__
from tests.support import samples, terminal
from tests.support.builders import NOW, SECOND, a_delivery, a_digest, an_event, an_execution, members_of
from tests.support.flyte_admin import a_finished_execution
from tests.support.ledger_steps import record_digest
from tests.support.service import COMMAND, ROUTING_KEY, command

GOOD: dict[str, Any] = {
    "http": {},
    "rules": {"launch_plans": [str(samples.LAUNCH_PLANS / "train.daily.launch_plan.json")]},
    "channels": {
        "email": {"host": "relay.example.com", "from": "flyte@example.com"},
        "slack": {"token": "xoxb-hidden"},
        "pagerduty": {"services": {"pagerduty-service-key@example.com": {"routing_key": ROUTING_KEY}}},
    },
}


def settings_file(folder: Path, **changes: Any) -> str:
    file = folder / "dispatcher.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    return str(file)


async def test_version_and_help_are_printed() -> None:
    assert (await command("--version"))[1] == f"dispatcher {__version__}\n"
    status, out, _ = await command("--help")
    assert status == 0
    for name in ("serve", "check", "publish", "preview", "explain", "deliveries", "rejected", "demo"):
        assert name in out


async def test_check_accepts_a_valid_configuration(tmp_path: Path) -> None:
    status, out, err = await command("check", "--config", settings_file(tmp_path))
    assert (status, err) == (0, "")
    assert "rules      ok: 4 rules in 1 launch plan" in out
    assert "hidden" not in out


async def test_an_invalid_setting_is_one_message_with_file_and_key(tmp_path: Path) -> None:
    for name in ("check", "serve"):
        status, _, err = await command(name, "--config", settings_file(tmp_path, htpp={}))
        assert status == 1
        assert "dispatcher.yaml:" in err
        assert "htpp: unknown option; did you mean 'http'?" in err
        assert "Traceback" not in err


async def test_check_reports_an_invalid_rule_and_template_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(
        "{project: p, domain: d, name: n, notifications: [{phases: [RUNNING], email: {recipients_email: [a@b.c]}}]}"
    )
    (tmp_path / "own" / "email").mkdir(parents=True)
    (tmp_path / "own" / "email" / "text.txt.j2").write_text("{{ nonsense }}")
    config = settings_file(tmp_path, rules={"launch_plans": ["plan.yaml"]}, templates={"path": ["own"]})
    status, _, err = await command("check", "--config", config)
    assert status == 1
    assert "plan.yaml:1: rule 1: phases: RUNNING is not a terminal phase" in err
    assert "text.txt.j2:1: 'nonsense' is undefined" in err


async def test_check_reports_problems_in_templates_match(tmp_path: Path) -> None:
    (tmp_path / "own" / "email").mkdir(parents=True)
    (tmp_path / "own" / "email" / "text.txt.j2").write_text("{{ nonsense }}")
    for match, words in (
        ({"recipient": "boss@*", "path": "own"}, "text.txt.j2:1: 'nonsense' is undefined"),
        ({"project": "p", "path": ["nowhere"]}, "templates.match.0.path: no such folder"),
        ({"path": ["own"]}, "templates.match.0: would apply to every message"),
        ({"projekt": "p", "path": ["own"]}, "templates.match.0.projekt: unknown option"),
    ):
        status, _, err = await command("check", "--config", settings_file(tmp_path, templates={"match": [match]}))
        assert status == 1
        assert words in err
        assert "Traceback" not in err


async def test_template_variables_are_listed_with_type_meaning_and_example() -> None:
    _, out, _ = await command("templates", "variables", "--json")
    listed = {variable["name"]: variable for variable in json.loads(out)}
    assert listed["error.summary"] == {
        "name": "error.summary",
        "type": "text",
        "meaning": "The line with the exception.",
        "example": "ValueError: bad learning rate: <lr> & 'momentum' must be > 0",
    }
    assert listed["labels"]["type"] == "mapping of text to text"
    assert all(variable["meaning"] for variable in listed.values())
    _, table, _ = await command("templates", "variables")
    assert all(name in table for name in listed)


async def test_lint_reports_template_errors_and_unsupported_html(tmp_path: Path) -> None:
    assert await command("templates", "lint") == (0, "templates  ok\n", "")
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "html.html.j2").write_text(
        "<p>\n<div style='display: flex'>{{ wat }}</div>\n<script></script>"
    )
    (tmp_path / "email" / "text.txt.j2").write_text("{{ nonsense }}")
    status, out, err = await command("templates", "lint", str(tmp_path))
    assert (status, out) == (1, "")
    for words in (
        "html.html.j2:2: display: flex does nothing in Outlook",
        "html.html.j2:3: <script is removed by every mail program",
        "html.html.j2:2: 'wat' is undefined; did you mean 'what'?",
        "text.txt.j2:1: 'nonsense' is undefined",
        "email/style.css has no effect here: a tag isn't closed in this file",
        "5 problems found",
    ):
        assert words in err


async def test_preview_renders_an_execution_from_flyteadmin(tmp_path: Path) -> None:
    async with LocalFlyteAdmin() as server:
        server.add(a_finished_execution(closure={"updated_at": "2026-11-20T09:14:21Z"}))
        admin = {"endpoint": server.endpoint, "insecure": True, "timeout": "1s"}
        config = settings_file(tmp_path, rules={"flyte_admin": admin})
        arguments = ("preview", "--channel", "slack", "--format", "text", "--config", config, "--execution")
        status, out, err = await command(*arguments, str(an_execution()))
        assert (status, err) == (0, "")
        assert "train.daily failed" in out
        assert an_execution().name in out
        status, out, err = await command(*arguments, "flytesnacks/production/nowhere")
        assert (status, out) == (1, "")
        assert "nowhere" in err
        assert "Traceback" not in err
    for config, named, words in (
        (settings_file(tmp_path), str(an_execution()), "rules.flyte_admin"),
        (settings_file(tmp_path), "nonsense", "names no execution"),
    ):
        status, _, err = await command(*arguments[:-2], config, "--execution", named)
        assert status != 0
        assert words in " ".join(err.replace("│", "").split())


async def test_preview_set_changes_fields_of_the_event() -> None:
    arguments = ("preview", "--channel", "slack", "--format", "text")
    _, out, _ = await command(*arguments, "--set", "error.message=boom: <!here>", "--set", "labels.team=ops")
    assert "boom: <!here>" in out
    assert "team: ops" in out
    for change, words in (
        ("eror.message=x", "an event has no eror.message"),
        ("nonsense", "write NAME=VALUE"),
        ("occurred_at=never", "occurred_at"),
        ("phase=RUNNING", "RUNNING is not a terminal phase"),
    ):
        status, out, err = await command(*arguments, "--set", change)
        assert status != 0
        assert out == ""
        assert words in " ".join(err.replace("│", "").split())


async def test_preview_renders_the_resolved_notice_of_a_success(tmp_path: Path) -> None:
    status, out, err = await command("preview", "--channel", "slack", "--format", "text", "--resolved")
    assert (status, "3 failures" in out) == (0, True), err
    written = await command("preview", "--channel", "email", "--all", "--resolved", "--output", str(tmp_path))
    assert (written[0], (tmp_path / "resolved.email.txt").exists()) == (0, True)
    for given in (("--phase", "FAILED"), ("--serve",)):
        status, _, err = await command("preview", "--channel", "slack", "--resolved", *given)
        assert (status, "--resolved" in err) == (2, True)


async def test_preview_renders_a_digest_or_a_summary_in_the_place_of_an_event() -> None:
    status, out, err = await command("preview", "--channel", "teams", "--format", "text", "--summary")
    assert (status, "280 further failures were resolved" in out) == (0, True), err
    status, _, err = await command("preview", "--channel", "slack", "--digest", "--phase", "FAILED")
    assert (status, "only one of --digest, --summary" in " ".join(err.split())) == (2, True), err


async def test_preview_all_writes_every_message_and_an_index_page(tmp_path: Path) -> None:
    status, _, err = await command("preview", "--all", "--output", str(tmp_path / "all"))
    assert (status, "index.html" in err) == (0, True)
    written = {file.name for file in (tmp_path / "all").iterdir()}
    for phase in ("succeeded", "failed", "aborted", "timed_out", "digest", "summary"):
        assert {f"{phase}.email.{ending}" for ending in ("eml", "html", "txt")} <= written
        assert {
            f"{phase}.{name}.{ending}" for name in ("slack", "pagerduty") for ending in ("json", "html", "txt")
        } <= written
    assert "297 failed" in (tmp_path / "all" / "digest.email.txt").read_text()
    index = (tmp_path / "all" / "index.html").read_text()
    assert all(name == "index.html" or f'href="{name}"' in index for name in written)


async def test_preview_all_reports_messages_that_a_provider_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "own" / "slack").mkdir(parents=True)
    (tmp_path / "own" / "slack" / "message.yaml").write_text("{blocks: [{type: divider}]}")
    config = settings_file(tmp_path, templates={"path": ["own"]})
    status, _, err = await command("preview", "--all", "--output", str(tmp_path / "all"), "--config", config)
    assert status == 1
    assert "failed.slack: slack would refuse this: no text" in err
    assert "no text" in (tmp_path / "all" / "index.html").read_text()


async def test_preview_diff_prints_the_changes_by_other_templates(tmp_path: Path) -> None:
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "subject.txt.j2").write_text("{{ what }}!")
    status, out, _ = await command("preview", "--channel", "email", "--diff", str(tmp_path))
    assert status == 0
    assert "-Subject: ❌ train.daily failed" in out
    assert "+Subject: train.daily!" in out
    assert "html" not in out
    _, out, _ = await command("preview", "--all", "--diff", str(tmp_path))
    assert out.count("+Subject: train.daily!") == 4
    assert (await command("preview", "--channel", "slack", "--diff", str(tmp_path)))[1] == "nothing would change\n"


async def test_a_port_in_use_and_an_invalid_ledger_url_are_reported(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        serve = ("serve", "--config", settings_file(tmp_path, http={"listen": f"127.0.0.1:{port}"}))
        for arguments in (serve, ("preview", "--serve", "--port", port)):
            status, _, err = await command(*arguments)
            named = "http.listen" if arguments is serve else "--port"
            assert (status, f"{named}: can't listen on 127.0.0.1:{port}: " in err) == (1, True), err
    for url, words in (
        ("mysql://x", "there are sqlite and postgresql"),
        ("sqlite+aiosqlite:////no/such/folder/x.db", "no such folder"),
        ("nonsense", "not a database URL"),
    ):
        status, _, err = await command("deliveries", "list", "--config", settings_file(tmp_path, ledger={"url": url}))
        assert (status, words in err) == (1, True), err


async def test_preview_renders_each_channel_in_each_format(tmp_path: Path) -> None:
    status, out, _ = await command("preview", "--channel", "email", "--phase", "FAILED", "--format", "eml")
    mail: Any = message_from_bytes(out.encode(), policy=default)
    assert (status, "train.daily failed" in mail["subject"], mail["message-id"][-13:]) == (0, True, "@example.com>")

    status, out, _ = await command("preview", "--channel", "slack", "--format", "json")
    body = json.loads(out)
    assert (status, body["channel"], body["metadata"]["event_type"]) == (0, "#alerts", "notification_delivery")

    status, out, _ = await command("preview", "--channel", "pagerduty", "--format", "json", "--phase", "timed_out")
    event = json.loads(out)
    assert (status, event["routing_key"], event["payload"]["severity"]) == (0, "********", "error")

    target = tmp_path / "out.html"
    status, _, err = await command("preview", "--channel", "slack", "--format", "html", "--output", str(target))
    assert (status, "written to" in err, "<!doctype html>" in target.read_text()) == (0, True, True)

    status, out, _ = await command("preview", "--channel", "email")
    assert (status, "train.daily failed" in out) == (0, True)


async def test_preview_reads_an_event_file_and_uses_the_configured_channel(tmp_path: Path) -> None:
    event = str(samples.FOLDER / "v2-workflow-failed-enriched.json")
    config = settings_file(tmp_path)
    status, out, err = await command(
        "preview", "--channel", "email", "--event", event, "--format", "eml", "--config", config
    )
    assert status == 0, err
    mail: Any = message_from_bytes(out.encode(), policy=default)
    assert mail["from"] == "flyte@example.com"
    assert "av2e-failu-labels-af33wv" in mail["subject"]

    running = str(samples.FOLDER / "v1-workflow-running.json")
    status, _, err = await command("preview", "--channel", "email", "--event", running)
    assert (status, "RUNNING is not a terminal phase" in err) == (2, True)


async def test_preview_fails_if_the_provider_would_refuse_the_message(tmp_path: Path) -> None:
    (tmp_path / "own" / "slack").mkdir(parents=True)
    (tmp_path / "own" / "slack" / "message.yaml").write_text(
        "text: hi\nattachments: [{blocks: [" + "{type: divider}," * 51 + "]}]"
    )
    config = settings_file(tmp_path, templates={"path": ["own"]})
    status, _, err = await command("preview", "--channel", "slack", "--config", config)
    assert (status, "slack would refuse this: more than 50 blocks" in err) == (1, True)


@pytest.fixture
async def filled(tmp_path: Path) -> str:
    """Settings whose ledger holds a sent, a waiting and a dead delivery, and a rejected message."""
    event = an_event()
    new = [a_delivery(event, to=f"{name}@example.com", created_at=NOW, due_at=NOW) for name in ("sent", "late", "dead")]
    outcomes: list[Sent | Retry | Dead] = [
        Sent(Receipt(answer=Answer("250", "queued"), reference={"message_id": "<1@x>"})),
        Retry(SystemClock().now(), "greylisted", Answer("451", "later")),
        Dead("no such user", Answer("550", "unknown")),
    ]
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger:
        entry = RecordedEvent(
            event=event, position="t/0@1", verdict="matched", reason="", considered=[], deliveries=new
        )
        invalid = Rejected(
            id="abcdef12",
            position="t/0@2",
            received_at=NOW,
            reason="broken JSON",
            headers=[("x", b"y")],
            body=b"{[b]oops",
            size=8,
        )
        await ledger.record([entry], [invalid], now=NOW)
        admission = AdmissionControl(rate_limit=RateLimit(), destination=lambda _: "", now=NOW)
        claimed = (await ledger.claim("email", 3, lease="w", until=NOW + SECOND, admission=admission)).deliveries
        by_name = {delivery.recipients[0].split("@")[0]: delivery for delivery in claimed}
        for name, outcome in zip(("sent", "late", "dead"), outcomes, strict=True):
            await ledger.settle(
                Settlement(delivery=by_name[name], outcome=outcome, started_at=NOW, ended_at=NOW + SECOND)
            )
    return settings_file(tmp_path)


async def test_deliveries_are_listed_as_a_table_and_as_json(filled: str) -> None:
    status, out, _ = await command("deliveries", "list", "--config", filled)
    assert status == 0
    for word in ("sent", "waiting", "dead"):
        assert word in out
    status, out, _ = await command("deliveries", "list", "--config", filled, "--state", "dead", "--json")
    (entry,) = json.loads(out)
    assert (entry["recipients"], entry["reason"], entry["phase"]) == (["dead@example.com"], "no such user", "FAILED")
    assert entry["execution"] == {"project": "flytesnacks", "domain": "production", "name": "akx7b9q2vjt5fm4c8h2d"}
    for arguments in (("--since", "1h"), ("--channel", "slack"), ("--execution", "a/b/c")):
        assert json.loads((await command("deliveries", "list", "--config", filled, "--json", *arguments))[1]) == []
    status, _, err = await command("deliveries", "list", "--config", filled, "--state", "lost")
    assert (status, "there are dead, dropped, sent, waiting" in err) == (2, True)


async def test_deliveries_show_prints_one_delivery_with_its_attempts(filled: str) -> None:
    (entry,) = json.loads((await command("deliveries", "list", "--config", filled, "--state", "sent", "--json"))[1])
    shown = json.loads((await command("deliveries", "show", entry["key"][:10], "--config", filled, "--json"))[1])
    (attempt,) = shown["attempts"]
    assert (attempt["outcome"], attempt["status"], attempt["answer"], attempt["latency_ms"]) == (
        "sent",
        "250",
        "queued",
        1000.0,
    )
    assert shown["reference"] == {"message_id": "<1@x>"}
    status, out, _ = await command("deliveries", "show", entry["key"], "--config", filled)
    assert (status, "queued" in out) == (0, True)
    status, _, err = await command("deliveries", "show", "zzz", "--config", filled)
    assert (status, "no delivery begins with 'zzz'" in err) == (1, True)


async def test_a_digest_and_what_it_tells_of_are_listed_and_shown(tmp_path: Path) -> None:
    digest = a_digest()
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger:
        await record_digest(ledger, digest, *members_of(digest, 2))
    config = settings_file(tmp_path)
    listed = json.loads((await command("deliveries", "list", "--config", config, "--json", "--state", "waiting"))[1])
    assert [(one["event"], one["execution"], one["phase"]) for one in listed] == [("", None, None)]
    assert " digest " in (await command("deliveries", "list", "--config", config, "--state", "waiting"))[1]
    _, shown, _ = await command("deliveries", "show", digest.key[:9], "--config", config)
    assert f"2 others: dispatcher deliveries list --included-in {digest.key}" in shown
    arguments = ("--config", config, "--included-in", digest.key)
    members = json.loads((await command("deliveries", "list", "--json", *arguments))[1])
    assert {one["execution"]["name"] for one in members} == {"member0000", "member0001"}
    explained = (await command("explain", "flytesnacks/production/member0000", "--config", config))[1]
    assert f"({digest.key[:12]})" in explained  # as `--included-in` takes it
    by_prefix = ("--config", config, "--json", "--included-in", digest.key[:12])
    assert json.loads((await command("deliveries", "list", *by_prefix))[1]) == members
    found = json.loads((await command("executions", "list", *by_prefix))[1])
    assert {one["execution"]["name"] for one in found} == {"member0000", "member0001"}
    _, shown, _ = await command("deliveries", "show", members[0]["key"], "--config", config)
    assert f"included in  {digest.key}" in shown
    assert "included in" in explained


async def test_rejected_messages_are_listed_and_shown_without_interpreting_markup(filled: str) -> None:
    (entry,) = json.loads((await command("rejected", "list", "--config", filled, "--json"))[1])
    assert (entry["position"], entry["reason"]) == ("t/0@2", "broken JSON")
    status, out, _ = await command("rejected", "show", "abc", "--config", filled)
    assert (status, "{[b]oops" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "kafka"), "no Kafka to publish to"),
        (("--to", "http", "--url", "http://127.0.0.1:1"), "http://127.0.0.1:1/events"),
        (("--to", "kafka", "--bootstrap-servers", "127.0.0.1:1"), "can't be reached"),
    ],
)
async def test_publish_reports_a_missing_or_unreachable_destination(arguments: tuple[str, ...], words: str) -> None:
    status, _, err = await command("publish", *arguments)
    assert (status, words in err, "Traceback" in err) == (1, True, False), err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--phase", "EXPLODED"), "unknown phase"),
        (("--format", "flyte-v9"), "flyte-v1, flyte-v2, native"),
        (("--label", "oops"), "KEY=VALUE"),
        (("--project", "a/b"), "execution.project"),
    ],
)
async def test_publish_refuses_an_invalid_event(arguments: tuple[str, ...], words: str) -> None:
    status, _, err = await command("publish", "--url", "http://127.0.0.1:1", *arguments)
    assert (status, words in err) == (2, True), err


async def test_dead_deliveries_are_redriven_by_filter_after_a_dry_run(filled: str) -> None:
    status, out, _ = await command("deliveries", "redrive", "--all", "--dry-run", "--config", filled)
    *_, dead, last = out.splitlines()
    assert (status, "dead@example.com" in dead, "no such user" in dead) == (0, True, True), out
    assert last == "1 delivery would be due again"
    assert (await command("deliveries", "redrive", "--all", "--channel", "slack", "--config", filled))[
        1
    ] == "0 deliveries are due again\n"
    assert (await command("deliveries", "redrive", "--all", "--config", filled))[1] == "1 delivery is due again\n"
    assert json.loads((await command("deliveries", "list", "--config", filled, "--state", "dead", "--json"))[1]) == []
    assert (await command("deliveries", "redrive", "--config", filled))[0] == 2


async def test_waiting_deliveries_are_retried_now_and_cancelled_and_dead_and_rejected_ones_dismissed(
    filled: str,
) -> None:
    end = ("--config", filled)
    assert (await command("deliveries", "retry-now", "--channel", "email", *end))[1] == (
        "1 delivery is due now\n1 waits for a replica with channel email: none is running\n"
    )
    dry = await command("deliveries", "cancel", "--all", "--dry-run", *end)
    assert (dry[0], "greylisted" in dry[1], "a replica with channel email: none is running" in dry[1]) == (
        0,
        True,
        True,
    )
    assert dry[1].endswith("\n1 delivery would be cancelled\n")
    nothing = await command("deliveries", "cancel", "--all", "--since", "2099-01-01", "--dry-run", *end)
    assert nothing[:2] == (0, "0 deliveries would be cancelled\n")
    assert (await command("deliveries", "cancel", "--all", "--by", "ada", "--reason", "maintenance", *end))[1] == (
        "1 delivery is cancelled\n"
    )
    dismissed = await command("deliveries", "dismiss", "--all", "--json", *end)
    assert json.loads(dismissed[1]) == {"deliveries": 1, "silenced": 0, "waits_for": []}
    listed = json.loads((await command("deliveries", "list", "--state", "dropped", "--json", *end))[1])
    assert {one["drop_reason"]: one["reason"] for one in listed}.items() >= {
        ("cancelled", "cancelled by ada: maintenance")
    }
    assert len(listed) == 2

    assert (await command("rejected", "dismiss", "abcdef12", *end))[1] == "1 message dismissed\n"
    assert (await command("rejected", "dismiss", "--all", *end))[1] == "0 messages dismissed\n"


async def test_an_empty_list_says_so_on_a_terminal(filled: str) -> None:
    (listed,) = await terminal.run([["deliveries", "list", "--channel", "slack", "--config", filled]])
    assert (listed.statuses, listed.terminal.strip()) == ((0, 0), "nothing found")


@pytest.mark.parametrize(
    ("channel", "answer", "status", "question", "printed"),
    [
        ("email", "n", 1, "Cancel 1 waiting delivery? [y/N]", ""),
        ("email", "y", 0, "Cancel 1 waiting delivery? [y/N]", "1 delivery is cancelled\n"),
        ("slack", "", 0, "", "0 deliveries are cancelled\n"),
    ],
)
async def test_a_change_asks_on_a_terminal(
    filled: str, channel: str, answer: str, status: int, question: str, printed: str
) -> None:
    ours, theirs = pty.openpty()
    selected = ("--channel", channel, "--config", filled)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "deliveries", "cancel", *selected, stdin=theirs, stdout=PIPE, stderr=PIPE
    )
    os.write(ours, f"{answer}\n".encode())
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    os.close(ours)
    os.close(theirs)
    assert process.returncode == status
    assert err.decode().partition(" Aborted!")[0].strip() == question
    assert out.decode() == printed


async def test_who_redrives_and_why_is_shown_with_the_delivery_and_listed(filled: str) -> None:
    (dead,) = json.loads((await command("deliveries", "list", "--config", filled, "--state", "dead", "--json"))[1])
    by = ("--by", "ada", "--reason", "the relay knows her again")
    assert (await command("deliveries", "redrive", dead["key"], *by, "--config", filled))[0] == 0

    shown = json.loads((await command("deliveries", "show", dead["key"], "--config", filled, "--json"))[1])
    (action,) = shown["actions"]
    assert (action["what"], action["who"], action["scope"]) == ("redrive", "ada", "1 key")
    for arguments in (("deliveries", "show", dead["key"]), ("explain", str(an_event().execution))):
        status, out, _ = await command(*arguments, "--config", filled)
        assert (status, "ada" in out, "the relay knows her again" in out) == (0, True, True), out

    assert (await command("deliveries", "purge", "--older-than", "1s", "--config", filled))[0] == 0
    purge, redrive = json.loads((await command("ledger", "actions", "--json", "--config", filled))[1])
    assert redrive == action
    user = f"{pwd.getpwuid(os.getuid()).pw_name}@{socket.gethostname()}"
    assert (purge["what"], purge["who"], purge["why"]) == ("purge", user, "")
    status, _, err = await command("deliveries", "redrive", "--all", "--reason", "x" * 1001, "--config", filled)
    assert (status, "--reason may have 1000 characters" in err) == (2, True)


async def test_purge_deletes_old_rejected_messages_and_keeps_events_with_waiting_deliveries(filled: str) -> None:
    purge = ("deliveries", "purge", "--older-than", "1s", "--config", filled)
    assert (await command(*purge, "--dry-run"))[1] == "1 entry would be deleted\n"
    assert (await command(*purge))[1] == "1 entry deleted\n"  # the rejected message
    assert len(json.loads((await command("deliveries", "list", "--config", filled, "--json"))[1])) == 3


async def test_a_rejected_event_is_replayed_once_its_rules_are_known(tmp_path: Path) -> None:
    headers, value = samples.sample("v1-workflow-failed")
    invalid = Rejected(
        id="ffff", position="t/0@2", received_at=NOW, reason="?", headers=[("ce_type", b"x")], body=b"x", size=70_000
    )
    undecided = Rejected(
        id="eeee",
        position="t/0@3",
        received_at=NOW,
        reason="launch plan unknown",
        headers=headers,
        body=value,
        size=len(value),
    )
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger:
        await ledger.record([], [invalid, undecided], now=NOW)
    config = settings_file(tmp_path)
    status, out, _ = await command("rejected", "replay", "--all", "--config", config)
    assert (status, "launch plan unknown" in out, "publish it again" in out, "0 accepted now" in out) == (
        0,
        True,
        True,
        True,
    )

    (tmp_path / "routes.yaml").write_text(
        "routes: [{name: all, match: {domain: production, phase: FAILED}, notify: [{email: [a@example.com]}]}]"
    )
    config = settings_file(tmp_path, rules={"routes": ["routes.yaml"]})
    assert "1 would be accepted now" in (await command("rejected", "replay", "ee", "--dry-run", "--config", config))[1]
    assert "1 accepted now" in (await command("rejected", "replay", "ee", "--config", config))[1]
    assert "0 accepted now" in (await command("rejected", "replay", "ee", "--config", config))[1]
    (delivery,) = json.loads((await command("deliveries", "list", "--config", config, "--json"))[1])
    assert (delivery["state"], delivery["recipients"]) == ("waiting", ["a@example.com"])
    shown = json.loads((await command("deliveries", "show", delivery["key"], "--config", config, "--json"))[1])
    assert [(action["what"], action["scope"]) for action in shown["actions"]] == [("replay", "message eeee")]
