"""The log names events and deliveries, contains no secrets, and masks mail addresses at every level except debug."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from dispatcher.flyte.decode import NATIVE
from dispatcher.observability.logs import masked
from tests.support.http import ScriptedHttp, answer
from tests.support.service import ROUTING_KEY, Replica, ask, serving
from tests.support.smtp import ScriptedRelay
from tests.support.waiting import until

PERSON = "jane.doe@example.com"
SLACK, HOOK, CALLER = "xoxb-secret-of-the-tests", "key-of-the-hook", "token-of-the-caller"
PERSONAL_DATA = ("jane", "JANE", "nobody@")
RULES = [("email", PERSON), ("slack", PERSON), ("pagerduty", "pages@example.com"), ("webhook", "ops")]
UNKNOWN = ("webhook", "nobody@example.com")


def failed(**changes: Any) -> bytes:
    rules = [{"phases": ["FAILED"], "channel": channel, "recipients": [to]} for channel, to in (*RULES, UNKNOWN)]
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
async def refusing_providers(folder: Path, **more: Any) -> AsyncIterator[Replica]:
    """A replica whose providers refuse every message, with answers that repeat addresses and secrets."""
    no_mailbox = f"550 5.1.1 <{PERSON}>: jane.doe@mx1 has no mailbox, see <jane.doe@mx1>"
    async with (
        ScriptedRelay(always={"RCPT": no_mailbox}) as relay,
        ScriptedHttp(default=repeating(SLACK)) as slack,
        ScriptedHttp(default=repeating(ROUTING_KEY)) as pagerduty,
        ScriptedHttp(default=repeating(HOOK)) as hook,
    ):
        contacts = {"oncall": {"email": [PERSON]}}
        channels = {
            "email": {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "Flyte <f@example.com>"},
            "slack": {"token": SLACK, "api_url": f"{slack.url}/api/"},
            "pagerduty": {
                "events_url": pagerduty.url,
                "services": {"pages@example.com": {"routing_key": ROUTING_KEY}},
                "fallback_recipients": ["oncall"],
            },
            "webhook": {
                "targets": {"ops": {"url": f"{hook.url}/{HOOK}", "headers": {"x-key": HOOK}}},
                "allow_http": True,
                "allow_networks": ["127.0.0.0/8"],
            },
        }
        ledger = {"url": "sqlite+aiosqlite:///./ledger.db"}
        async with serving(folder, {"ledger": ledger, "contacts": contacts, "channels": channels, **more}) as replica:
            yield replica


def repeating(secret: str) -> bytes:
    """A refusal that contains the secret."""
    body = {"ok": False, "error": f"no {PERSON}, {secret}", "message": f"{PERSON} {secret}", "errors": [secret]}
    return answer(400, json.dumps(body).encode())


async def post(replica: Replica, body: bytes) -> int:
    headers = {"ce-type": NATIVE, "content-type": "application/json", "authorization": f"Bearer {CALLER}"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{replica.url}/events", data=body, headers=headers) as got,
    ):
        return got.status


async def until_logged(replica: Replica, text: str, times: int) -> None:
    await until(lambda: replica.log.count(text) >= times, 40)


async def test_a_log_names_events_and_deliveries_but_no_people_and_no_secrets(tmp_path: Path) -> None:
    async with refusing_providers(tmp_path, log="json") as replica:
        assert await post(replica, failed()) == 202
        assert await post(replica, failed(phase=PERSON)) == 400
        await until_logged(replica, '"given up"', len(RULES))
        listed = await ask(tmp_path / "dispatcher.yaml", "deliveries", "list")
    lines = [json.loads(line) for line in replica.log.splitlines()]
    for hidden in (*PERSONAL_DATA, SLACK, ROUTING_KEY, HOOK, CALLER):
        assert hidden not in replica.log, [line for line in lines if hidden in json.dumps(line)]
    assert any("550 5.1.1 <…@example.com>" in line.get("reason", "") for line in lines)
    assert f"<{PERSON}>" in json.dumps(listed)  # the ledger stores the relay's whole answer

    given_up = [line for line in lines if line["event"] == "given up"]
    assert {line["channel"] for line in given_up} >= {"email", "slack", "pagerduty", "webhook"}
    for line in given_up:
        assert line["execution"] == "p/d/n/FAILED"
        assert len(line["delivery"]) == 32
        assert line["attempt"] == 1
    (recorded,) = [line for line in lines if line["event"] == "recorded"]
    assert recorded["execution"] == "p/d/n/FAILED"


async def test_only_debug_lines_name_recipients(tmp_path: Path) -> None:
    async with refusing_providers(tmp_path, log="console", log_level="debug") as replica:
        await post(replica, failed())
        await until_logged(replica, "given up", len(RULES))
    naming = [line for line in replica.log.splitlines() if PERSON in line]
    assert naming
    assert all("debug" in line and "attempted" in line for line in naming), naming
    for secret in (SLACK, ROUTING_KEY, HOOK, CALLER):
        assert secret not in replica.log


@pytest.mark.parametrize(
    ("value", "shown"),
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
def test_of_a_mail_address_only_the_host_is_shown(value: Any, shown: Any) -> None:
    assert masked(value) == shown


def written(script: str, form: str = "json", level: int = logging.INFO) -> str:
    """The standard error of a process that runs the script, in which `log` exists before the log is configured."""
    setup = f"""
import logging, os, sys, structlog, threading
log = structlog.get_logger("dispatcher.component")
from dispatcher.observability import logs
logs.configure({form!r}, level={level})
"""
    done = subprocess.run([sys.executable, "-c", setup + script], check=True, capture_output=True, text=True)
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exceptions_text_is_masked_too(form: str) -> None:
    script = """
try:
    raise ValueError("550 <jane@example.com>")
except ValueError:
    log.exception("tripped")
"""
    output = written(script, form)
    assert "ValueError" in output
    assert "@example.com" in output
    assert "jane" not in output


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_librarys_warning_has_the_format_of_the_dispatchers_lines(form: str) -> None:
    ours, theirs = written(
        """
log.warning("<jane@example.com> is gone é")
logging.getLogger("dispatcher.component").warning("<%s@example.com> is gone é", "jane")
""",
        form,
    ).splitlines()
    when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert re.sub(when, "", ours) == re.sub(when, "", theirs) != ours
    assert "…@example.com" in (json.loads(ours)["event"] if form == "json" else ours)
    if form == "json":
        assert ours.isascii()
        assert list(json.loads(ours)) == ["event", "level", "logger", "timestamp"]
        assert json.loads(ours)["logger"] == "dispatcher.component"


def test_another_handler_on_the_root_logger_gets_the_same_masked_lines() -> None:
    ours, others, *more = written(
        """
logging.getLogger().addHandler(logging.StreamHandler())
log.info("<jane@example.com> is 100 % gone")
structlog.get_logger("another_package.channel").info("sent")
"""
    ).splitlines()
    assert ours == others
    assert json.loads(others)["event"] == "<…@example.com> is 100 % gone"
    assert [json.loads(line)["logger"] for line in more] == ["another_package.channel"] * 2


def test_lines_below_the_level_are_not_formatted() -> None:
    script = """
class Costly:
    def __str__(self): raise SystemExit("formatted")
    __repr__ = __str__
log.debug("attempted", outcome=Costly())
log.info("sent", outcome=Costly())
log.warning("not sent yet")
"""
    (line,) = written(script, level=logging.WARNING).splitlines()
    assert json.loads(line)["event"] == "not sent yet"


ODDITIES = {
    r"'half a character \ud800'": "half a character \ud800",
    r"'\x9b31m\u2028'": "\x9b31m\u2028",
    r"b'jos\xc3\xa9@x'": "…@x",
    "2**70": 2**70,
    "{'a@x'}": ["…@x"],
    "{1: (None, True)}": {"1": [None, True]},
    "ValueError('to jane@example.com')": "to …@example.com",
}


def test_any_value_is_written_in_ascii_on_one_line() -> None:
    script = "".join(f'log.info("odd", value={value})\n' for value in ODDITIES)
    output = written(script)
    assert output.isascii()
    assert [json.loads(line)["value"] for line in output.split("\n")[:-1]] == list(ODDITIES.values())


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_that_cannot_be_written_raises_nothing(form: str) -> None:
    script = """
class Torn:
    def __str__(self): raise ValueError("jane@example.com")
    __repr__ = __str__
log.info("torn", one=Torn())
endless = []
endless.append(endless)
log.info("endless", one=endless, two="@")
sys.stderr.flush()
os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
log.info("a full disk")
logging.getLogger("library").warning("a full disk")
os.close(2)
log.info("nowhere")
sys.stderr.close()
log.info("nowhere")
"""
    output = written(script, form)
    assert output.count("a line could not be written") >= 2
    assert "jane" not in output


def test_the_log_follows_standard_error_to_another_file(tmp_path: Path) -> None:
    script = f"""
log.info("before")
os.dup2(os.open({str(tmp_path / "log")!r}, os.O_WRONLY | os.O_CREAT), 2)
log.info("after")
"""
    assert [json.loads(line)["event"] for line in written(script).splitlines()] == ["before"]
    assert json.loads((tmp_path / "log").read_text())["event"] == "after"


def test_lines_of_several_threads_are_not_mixed() -> None:
    script = """
def write(number):
    for _ in range(40):
        log.info("dispatcher", text=str(number) * 9000)
        logging.getLogger("library").warning("library %s", str(number) * 9000)
threads = [threading.Thread(target=write, args=(number,)) for number in range(5)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    lines = [json.loads(line) for line in written(script).splitlines()]
    assert len(lines) == 2 * 40 * 5
    assert all(len(set(line.get("text", line["event"].removeprefix("library ")))) == 1 for line in lines)


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_no_locals(form: str) -> None:
    script = """
def login(token): raise ValueError("no")
try: login("xo" + "xb")
except ValueError as error:
    log.error("once", exc_info=error)
    log.exception("twice")
"""
    output = written(script, form)
    assert output.count("ValueError") >= 2
    assert output.count("login") >= 2
    assert "xoxb" not in output


def test_a_readable_line_contains_text_and_nothing_else() -> None:
    """Colours come from the log itself; no text of a line can control the terminal, or look like another line."""
    code = """
import logging, structlog
from dispatcher.observability import logs
logs.configure("console")
hostile = "t\\x1b]52;c;cm0=\\x07\\x1b[41m\\x9b41m\\u202e\\x7f\\r\\n2026-11-20 [error    ] forged"
log = structlog.get_logger("dispatcher.test")
log.warning(hostile, text=hostile, **{hostile: hostile}, nested={hostile: [hostile]}, path=OSError(hostile))
logging.getLogger("library").warning("%s", hostile)
try:
    raise ValueError(hostile)
except ValueError:
    log.exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    written = re.sub(r"\x1b\[(?!41m)[\d;]*m", "", done.stderr)
    assert re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", written) == []
    assert written.count("\\u202e") >= 8
    dated = [line for line in written.splitlines() if line.startswith("2026-11-20 [error")]
    assert len(dated) == 1, "the traceback keeps its lines"
