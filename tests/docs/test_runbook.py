"""Each question of docs/runbook.md: its command and its page answer it, beside a replica that has a bad day."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from dispatcher.demo.fakes.mail import MailReceiver
from dispatcher.flyte.decode import Headers
from dispatcher.flyte.encode import Format, write
from dispatcher.model.event import Event, Options
from dispatcher.model.phase import Phase
from tests.support.builders import a_launch_plan, an_event
from tests.support.pages import ROOT, words
from tests.support.service import command, free_port, serving
from tests.support.waiting import until

JANE, TEAM = "jane.doe@example.com", "dev-team@example.com"
REFUSAL = "550 5.1.1 no such user"
PLAN = {
    "launch_plan": {"project": "flytesnacks", "domain": "production", "name": "train.daily"},
    "notifications": [
        {"phases": ["FAILED"], "email": {"recipients_email": [JANE]}},
        {"phases": ["FAILED"], "email": {"recipients_email": [TEAM]}},
        {"phases": ["FAILED"], "slack": {"recipients_email": ["#dev-alerts"]}},
    ],
}
ROUTE = {
    "name": "nightly",
    "match": {"phase": "TIMED_OUT", "labels": {"team": "ml"}},
    "notify": ["ml-team"],
}
QUIET = {"name": "at-night", "match": {"phase": "FAILED", "launch_plan": "nightly.*"}, "notify": ["night"]}
IN_BURSTS = {"name": "bursts", "match": {"phase": "FAILED", "launch_plan": "burst.*"}, "notify": ["burst"]}
IN_MAINTENANCE = {
    "name": "upgrades",
    "match": {"phase": "FAILED", "launch_plan": "upgrade.*"},
    "notify": ["ml-team"],
}
TO_OWNER = {"name": "owners", "match": {"phase": "ABORTED"}, "notify": ["owner"]}
ANSWERS = {
    "Why has jane got nothing since 9?": (JANE, "dead", "550"),
    "What went out last night?": (TEAM, "sent"),
    "What waits, and for what?": ("#dev-alerts", "waiting", "probe"),
    "Who hears of train.daily?": (JANE, TEAM, "#dev-alerts", "yaml:", "nightly", "labels.team"),
    "Which routes notify a team?": ("nightly", "labels.team", "routes.yaml:2"),
    "Who was notified of this execution, and why?": ("yaml:", TEAM, "sent", "550"),
    "Whose executions have no known owner?": ("0oa1k2v9xQ", "a7unowned", "is not in owners.map"),
    "Which executions failed last night?": ("a7failed", "a7quiet"),
    "How many reasons do these failures have?": ("FileNotFoundError:", "v1:", "a7quiet"),
    "Why was nobody notified of it?": ("options.disable_notifications is set",),
    "Why was nobody notified during the maintenance?": ("a7upgrade", "held", "cluster upgrade", TEAM),
    "What does this silence hold, and how do I end it now?": ("upgrade.*", "cluster upgrade", "1 delivery", TEAM),
    "A digest came: which executions?": ("a7burst1", "a7burst2", "included"),
    "Quiet hours held a message: until when, and how do I send it now?": ("a7night", "quiet hours of contact night"),
    "Whose notifications are switched off?": ("a7quiet", "options.disable_notifications"),
    "What did the provider answer?": ("550",),
    "What was given up, and why?": (JANE, "550"),
    "What would a redrive send again?": ("a7failed", "550"),
    "Slack is back: what can go now?": ("#dev-alerts", "a7failed", "probe"),
    "How do I stop messages that wait?": ("#dev-alerts", "a7failed", "probe"),
    "What is dead and no longer needed?": (JANE, "a7failed", "550"),
    "Which messages could not be read?": ("broken JSON", "http"),
    "What would a replay do?": ("broken JSON",),
    "What did operators do?": ("this machine", "the mailbox is back"),
    "Is it us or Slack?": ("circuit breaker", "open"),
}
"""For each question, words that its command prints and its page shows; single words, because a table may wrap lines."""


FOUND_A_PROBLEM = 1
DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    command: str
    page: str


def questions() -> Iterator[Question]:
    section = (ROOT / "docs/runbook.md").read_text().partition("\n## Questions and answers\n")[2].partition("\n## ")[0]
    for part in section.split("\n### ")[1:]:
        (command,) = re.findall(r"^\$ (dispatcher .+)$", part, re.MULTILINE)
        (page,) = re.findall(r"^Page: `(/.+)`$", part, re.MULTILINE)
        yield Question(part.partition("\n")[0], command, page)


@dataclass(frozen=True, slots=True)
class BadDay:
    """A replica whose Slack can't be reached, and whose relay refuses Jane."""

    config: Path
    url: str
    keys: dict[str, str]
    """The placeholders of the page, and what they stand for here."""

    def here(self, text: str) -> str:
        for placeholder, value in self.keys.items():
            text = re.sub(rf"\b{placeholder}\b", value, text)
        return text

    async def pages(self, paths: list[str]) -> list[str]:
        """The text that a reader sees on these pages."""
        async with aiohttp.ClientSession() as session:
            return [await self._text(session, path) for path in paths]

    async def _text(self, session: aiohttp.ClientSession, path: str) -> str:
        async with session.get(f"{self.url}{path}") as answer:
            assert answer.status == 200, path
            return html.unescape(re.sub(r"<[^>]*>", " ", await answer.text()))


@asynccontextmanager
async def bad_day(folder: Path) -> AsyncIterator[BadDay]:
    (folder / "train.daily.yaml").write_text(yaml.safe_dump(PLAN))
    (folder / "routes.yaml").write_text(yaml.safe_dump({"routes": [ROUTE, TO_OWNER, QUIET, IN_BURSTS, IN_MAINTENANCE]}))
    days = f"{datetime.now(UTC) - DAY:%Y-%m-%d}..{datetime.now(UTC) + DAY:%Y-%m-%d}"
    async with MailReceiver(refuse={JANE: REFUSAL}) as relay:
        settings: dict[str, Any] = {
            "http": {"console": True},
            "rules": {"launch_plans": ["./train.daily.yaml"], "routes": ["./routes.yaml"]},
            "contacts": {
                "ml-team": {"email": [TEAM]},
                "night": {"email": ["night@example.com"], "quiet": {"dates": [days], "zone": "UTC"}},
                "burst": {"email": ["burst@example.com"], "digest": {"after": 1, "every": "1s"}},
            },
            "owners": {"map": {"jo": "ml-team"}},
            "channels": {
                "email": {"host": "127.0.0.1", "port": relay.port, "security": "none", "from": "flyte@example.com"},
                "slack": {
                    "token": "xoxb-example",
                    "api_url": f"http://127.0.0.1:{free_port()}/api/",
                    "retry": {"initial": "1h", "ceiling": "1h"},  # a delivery that is being sent waits for nothing else
                },
            },
        }
        async with serving(folder, settings) as replica, aiohttp.ClientSession() as session:
            config = folder / "dispatcher.yaml"
            for name, options in (("a7failed", None), ("a7quiet", Options(disable_notifications=True))):
                error = {"message": f"FileNotFoundError: [Errno 2] No such file or directory: '/data/{name}.csv'"}
                event = an_event(name=name, launch_plan=a_launch_plan(), options=options, error=error)
                await publish_event(session, replica.url, event)
            unowned = an_event(Phase.ABORTED, name="a7unowned", launch_plan=a_launch_plan(), principal="0oa1k2v9xQ")
            await publish_event(session, replica.url, unowned)
            await publish(session, replica.url, [("content-type", b"application/cloudevents+json")], b"{oops")
            api = f"{replica.url}/api/v1"
            silence = {"match": {"launch_plan": "upgrade.*"}, "for": "1h", "reason": "cluster upgrade"}
            async with session.post(f"{api}/silences/add", json=silence) as answer:
                silenced = (await answer.json())["silence"]["id"]
            for name, plan in (
                ("a7upgrade", "upgrade.db"),
                ("a7night", "nightly.sync"),
                *((f"a7burst{number}", "burst.fan-out") for number in range(3)),
            ):
                await publish_event(session, replica.url, an_event(name=name, launch_plan=a_launch_plan(plan)))
            key = await settled(session, api)
            redrive = {"keys": [key], "reason": "the mailbox is back"}
            async with session.post(f"{api}/deliveries/redrive", json=redrive) as answer:
                assert answer.status == 200, await answer.text()
            await settled(session, api)
            async with session.get(f"{api}/rejected") as answer:
                (rejected,) = (await answer.json())["entries"]
            digest = await until(lambda: a_digest_of(session, api))
            keys = {"KEY": key, "ID": rejected["id"], "SILENCE": silenced, "DIGEST": digest}
            yield BadDay(config, replica.url, keys)


async def a_digest_of(session: aiohttp.ClientSession, api: str) -> str | None:
    """The key of the digest that burst@example.com got; None if it got none yet."""
    async with session.get(f"{api}/deliveries", params={"recipient": "burst@example.com"}) as answer:
        found = [one["key"] for one in (await answer.json())["entries"] if one["kind"] == "digest"]
    return found[0] if found else None


async def publish_event(session: aiohttp.ClientSession, url: str, event: Event) -> None:
    written = write(event, Format.NATIVE)
    await publish(session, url, written.headers, written.value)


async def publish(session: aiohttp.ClientSession, url: str, headers: Headers, body: bytes) -> None:
    named = {name.replace("ce_", "ce-", 1): value.decode() for name, value in headers}
    async with session.post(f"{url}/events", data=body, headers=named) as answer:
        assert answer.status < 500, await answer.text()


async def settled(session: aiohttp.ClientSession, api: str) -> str:
    """Wait until Jane's delivery is dead, and Slack's waits for the circuit breaker. Returns the key of Jane's."""

    async def found() -> str | None:
        async with session.get(f"{api}/deliveries") as answer:
            entries = (await answer.json())["entries"]
        dead = [one["key"] for one in entries if one["state"] == "dead"]
        waits = {wait["kind"] for one in entries for wait in one["waits_for"]}
        return dead[0] if dead and "breaker" in waits else None

    return await until(found)


async def test_each_question_is_answered_by_its_command_and_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list(questions())
    assert len(asked) >= 15
    assert {one.text for one in asked} == ANSWERS.keys()
    async with bad_day(tmp_path) as day:
        for name, value in (("DISPATCHER_CONFIG", str(day.config)), ("COLUMNS", "200"), ("NO_COLOR", "1")):
            monkeypatch.setenv(name, value)
        printed = [await command(*words(day.here(one.command))[1:]) for one in asked]
        shown = await day.pages([day.here(one.page) for one in asked])
    wrong = []
    for question, (status, out, err), page in zip(asked, printed, shown, strict=True):
        output = out + err
        if status != (FOUND_A_PROBLEM if "check" in question.command else 0):
            wrong.append(f"{question.command} ended with status {status}:\n{output}")
        for where, text in ((question.command, output), (question.page, page)):
            missing = [word for word in ANSWERS[question.text] if word not in text]
            if missing:
                wrong.append(f"{where} does not say {missing}:\n{' '.join(text.split())}")
    assert not wrong, "\n\n".join(wrong)
