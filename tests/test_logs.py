"""What a log may say: enough to find an event and a delivery; no secrets, and nobody's address above debug."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.decode import NATIVE
from dispatcher.logs import masked
from tests.support.http import ScriptedHttp, answer
from tests.support.service import ROUTING_KEY, Replica, ask, serving
from tests.support.smtp import ScriptedRelay

PERSON = "jane.doe@example.com"
SLACK, HOOK, CALLER = "xoxb-secret-of-the-tests", "key-of-the-hook", "token-of-the-caller"
ABOUT_A_PERSON = ("jane", "JANE", "nobody@")
RULES = [("email", PERSON), ("slack", PERSON), ("pagerduty", "pages@example.com"), ("webhook", "ops")]
VAIN = ("webhook", "nobody@example.com")


def failed(**changes: Any) -> bytes:
    rules = [{"phases": ["FAILED"], "channel": channel, "recipients": [to]} for channel, to in (*RULES, VAIN)]
    event = {
        "execution": {"project": "p", "domain": "d", "name": "n"},
        "phase": "FAILED",
        "occurred_at": "2026-11-20T09:14:21Z",
        "principal": PERSON,
        "labels": {"owner": "jane.doe"},
        "error": {"message": f"mail {PERSON}, who is jane", "code": "USER:jane"},
        "options": {"notifications": rules},
        **changes,
    }
    return json.dumps(event).encode()


@asynccontextmanager
async def told_no(folder: Path, **more: Any) -> AsyncIterator[Replica]:
    """A replica whose providers refuse, and repeat in their answers whatever they were told, secrets too."""
    no_mailbox = f"550 5.1.1 <{PERSON}>: jane.doe@mx1 has no mailbox, see <jane.doe@mx1>"
    async with (
        ScriptedRelay(always={"RCPT": no_mailbox}) as relay,
        ScriptedHttp(usual=repeating(SLACK)) as slack,
        ScriptedHttp(usual=repeating(ROUTING_KEY)) as pagerduty,
        ScriptedHttp(usual=repeating(HOOK)) as hook,
    ):
        channels = {
            "email": {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "Flyte <f@example.com>"},
            "slack": {"token": SLACK, "api_url": f"{slack.url}/api/"},
            "pagerduty": {
                "events_url": pagerduty.url,
                "services": {"pages@example.com": {"routing_key": ROUTING_KEY}},
                "fallback_recipients": {"email": [PERSON]},
            },
            "webhook": {
                "targets": {"ops": {"url": f"{hook.url}/{HOOK}", "headers": {"x-key": HOOK}}},
                "allow_http": True,
                "allow_networks": ["127.0.0.0/8"],
            },
        }
        ledger = {"url": "sqlite+aiosqlite:///./ledger.db"}
        async with serving(folder, {"ledger": ledger, "channels": channels, **more}) as replica:
            yield replica


def repeating(secret: str) -> bytes:
    told = {"ok": False, "error": f"no {PERSON}, {secret}", "message": f"{PERSON} {secret}", "errors": [secret]}
    return answer(400, json.dumps(told).encode())


async def post(replica: Replica, body: bytes) -> int:
    headers = {"ce-type": NATIVE, "content-type": "application/json", "authorization": f"Bearer {CALLER}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{replica.url}/events", data=body, headers=headers) as got,
    ):
        return got.status


async def until_said(replica: Replica, words: str, times: int) -> None:
    async with asyncio.timeout(40):
        while replica.log.count(words) < times:
            await asyncio.sleep(0.1)


async def test_a_log_names_events_and_deliveries_and_neither_people_nor_secrets(tmp_path: Path) -> None:
    async with told_no(tmp_path, log="json") as replica:
        assert await post(replica, failed()) == 202
        assert await post(replica, failed(phase=PERSON)) == 400
        await until_said(replica, '"given up"', len(RULES))
        whole = await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")
    lines = [json.loads(line) for line in replica.log.splitlines()]
    for hidden in (*ABOUT_A_PERSON, SLACK, ROUTING_KEY, HOOK, CALLER):
        assert hidden not in replica.log, [line for line in lines if hidden in json.dumps(line)]
    assert any("550 5.1.1 <…@example.com>" in line.get("reason", "") for line in lines)
    assert f"<{PERSON}>" in json.dumps(whole)  # the ledger keeps the relay's words

    told = [line for line in lines if line["event"] == "given up"]
    assert {line["channel"] for line in told} >= {"email", "slack", "pagerduty", "webhook"}
    for line in told:
        assert line["execution"] == "p/d/n/FAILED"
        assert len(line["delivery"]) == 32
        assert line["attempt"] == 1
    (recorded,) = [line for line in lines if line["event"] == "recorded"]
    assert recorded["execution"] == "p/d/n/FAILED"


async def test_at_a_terminal_debug_says_whom(tmp_path: Path) -> None:
    async with told_no(tmp_path, log="console", log_level="debug") as replica:
        await post(replica, failed())
        await until_said(replica, "given up", len(RULES))
    whom = [line for line in replica.log.splitlines() if PERSON in line]
    assert whom
    assert all("debug" in line and "attempted" in line for line in whom), whom
    for secret in (SLACK, ROUTING_KEY, HOOK, CALLER):
        assert secret not in replica.log


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("550 <jane@example.com> unknown", "550 <…@example.com> unknown"),
        ("to=jane@mx.example.com,joe@example.org: no", "to=…@mx.example.com,…@example.org: no"),
        ('"jane doe"@example.com', "…@example.com"),
        ("<jane@relay>", "<…@relay>"),
        ("jané+x_y@exämple.com.", "…@exämple.com."),
        ("events/3@1234 of p/d/train.daily@v1.4.2", "events/3@1234 of p/d/train.daily@v1.4.2"),
        ("jane@mx1: no", "…@mx1: no"),
        ("https://x/stop/jane@example.com", "https://x/stop/…@example.com"),
        ("postgresql+asyncpg://ledger@db/x", "postgresql+asyncpg://ledger@db/x"),
        ("amqp://us:hunter2@db/x", "amqp://us:…@db/x"),
        ({"a": ["jane@example.com"], "b": (1, None, True)}, {"a": ["…@example.com"], "b": [1, None, True]}),
    ],
)
def test_of_a_mail_address_only_the_host_is_shown(said: Any, shown: Any) -> None:
    assert masked(said) == shown


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exceptions_words_are_masked_too(form: str) -> None:
    script = f"""
import structlog
from dispatcher import logs
logs.configure({form!r})
try:
    raise ValueError("550 <jane@example.com>")
except ValueError:
    structlog.get_logger("dispatcher.x").exception("tripped")
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert "ValueError" in done.stderr
    assert "@example.com" in done.stderr
    assert "jane" not in done.stderr
