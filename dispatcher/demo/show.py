"""Runs the demo: starts the real service and the inbox, sends the simulated day's events, and prints the result."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
import yaml
from rich.console import Console
from rich.text import Text

from dispatcher.clock import Clock, SystemClock
from dispatcher.config.settings import load
from dispatcher.demo.fakes.inbox import (
    Arrival,
    Conversation,
    Inbox,
    MailReceiver,
    PagerDutyReceiver,
    SlackReceiver,
    WebhookReceiver,
)
from dispatcher.demo.fakes.mail import Mail
from dispatcher.demo.fakes.pagerduty import Incident
from dispatcher.demo.fakes.slack import SlackMessage
from dispatcher.demo.fakes.webhooks import Call, Card
from dispatcher.demo.story import LAUNCH_PLANS, ROUTES, Scene, day
from dispatcher.flyte.encode import EncodedMessage, write, write_lifecycle
from dispatcher.intake.pipeline import BatchResult
from dispatcher.runtime.service import Service
from dispatcher.safe_text import visible

ARRIVAL_TIMEOUT = 30.0
"""Maximum time that the demo waits until every expected message has arrived, in seconds."""
EXTRA_WAIT = timedelta(seconds=1)
"""Time that the demo waits after the last expected message. If another message arrives in this time, the demo fails."""
_ANY_PORT = "127.0.0.1:0"
_ROUTING_KEY = "0123456789abcdef0123456789abcdef"
_WEBHOOK_SECRET = "of the demo"  # noqa: S105 - only the demo's fake receiver accepts this value
_ALLOW_LOOPBACK = {"allow_http": True, "allow_networks": ["127.0.0.0/8"]}
_VERDICT_STYLES = {
    "matched": "green",
    "no_matching_rule": "yellow",
    "resolved": "green",
    "disabled": "magenta",
    "rules_unknown": "yellow",
}


@dataclass(slots=True)
class Show:
    """Runs the demo once and prints its progress."""

    console: Console
    port: int = 0
    """The port of the inbox's web page. 0 chooses a free port."""
    clock: Clock = field(default_factory=SystemClock)
    inbox: Inbox = field(init=False)

    def __post_init__(self) -> None:
        self.inbox = Inbox(
            mail=MailReceiver(),
            slack=SlackReceiver(
                channels=[Conversation("C0000001", "dev-alerts"), Conversation("C0000002", "data-eng")],
                people={"jane.doe@example.com": "U0000001"},
            ),
            pagerduty=PagerDutyReceiver(services={_ROUTING_KEY: "ML platform"}),
            webhook=WebhookReceiver(secret=_WEBHOOK_SECRET),
            port=self.port,
            on_arrival=self._show_arrival,
        )

    async def run(self, *, once: bool) -> bool:
        """Run the demo. If `once` is False, the inbox stays open after the simulated day, until Ctrl-C.

        Returns True if exactly the expected messages arrived.
        """
        with TemporaryDirectory(prefix="dispatcher-demo-") as folder:
            async with self.inbox:
                settings_file = self._settings_file(Path(folder))
                settings = load(settings_file)
                service = Service(settings, on_batch=self._show_decisions, inbox_url=self.inbox.url)
                started: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
                service.on_ready = started.set_result
                async with asyncio.TaskGroup() as group:
                    running = group.create_task(service.run())
                    running.add_done_callback(lambda _: started.done() or started.cancel())
                    try:
                        url = await started or ""
                        self.inbox.console_url = f"{url}/console/"
                        _name_port(settings_file, url)
                        complete = await self._run_day(url)
                        if not once:
                            await self._wait_for_interrupt(settings_file)
                    finally:
                        service.stop()
        return complete

    async def _run_day(self, intake: str) -> bool:
        scenes = day(self.clock.now())
        self.console.print(f"events go to {intake}/events\n")
        async with aiohttp.ClientSession() as session:
            for scene in scenes:
                await self._send_events(scene, session, f"{intake}/events")
        expected = Counter(message for scene in scenes for message in _expected(scene))
        complete = await self.inbox.until(
            lambda inbox: not expected - _arrived(inbox.arrivals), seconds=ARRIVAL_TIMEOUT
        )
        await self.clock.sleep(EXTRA_WAIT)
        return self._show_result(expected, _arrived(self.inbox.arrivals)) and complete

    async def _send_events(self, scene: Scene, session: aiohttp.ClientSession, url: str) -> None:
        self.console.print(f"▸ {scene.title}", style="bold", markup=False, highlight=False)
        messages = write_lifecycle(scene.event, scene.form) if scene.lifecycle else [write(scene.event, scene.form)]
        for message in messages:
            self._line("event", "cyan", message.summary)
            await _post(session, url, message)
        await self.inbox.until(lambda inbox: not Counter(_expected(scene)) - _arrived(inbox.arrivals), seconds=5)
        self.console.print()

    async def _wait_for_interrupt(self, settings_file: Path) -> None:
        self.console.print("\nAll stay until Ctrl-C ends the demo. Commands take the settings with --config:")
        for name, place in (
            ("the settings", settings_file),
            ("the inbox", f"{self.inbox.url}/"),
            ("the console", self.inbox.console_url),
        ):
            self.console.print(f"{name:<12}  {place}", style="bold", soft_wrap=True)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()

    def _settings_file(self, folder: Path) -> Path:
        (folder / "launch_plans").mkdir()
        (folder / "launch_plans" / "team.yaml").write_text(LAUNCH_PLANS, encoding="utf-8")
        (folder / "routes.yaml").write_text(ROUTES, encoding="utf-8")
        settings = {
            "http": {"listen": _ANY_PORT, "console": True},
            "ledger": {"url": "sqlite+aiosqlite:///./demo.db"},
            "rules": {"launch_plans": ["./launch_plans"], "routes": ["./routes.yaml"]},
            "contacts": {"data-eng": {"slack": ["#data-eng"], "teams": ["data-eng"]}},
            "channels": {
                "email": {
                    "host": "127.0.0.1",
                    "port": self.inbox.mail.port,
                    "security": "none",
                    "from": "Flyte <flyte@example.com>",
                },
                "slack": {"token": self.inbox.slack.token, "api_url": self.inbox.slack_url, "fallback": "email"},
                "pagerduty": {
                    "events_url": self.inbox.pagerduty_url,
                    "services": {"pagerduty-service-key@example.com": {"routing_key": _ROUTING_KEY}},
                },
                "teams": {
                    "targets": {"data-eng": {"url": f"{self.inbox.url}/teams/workflows/data-eng"}},
                    **_ALLOW_LOOPBACK,
                },
                "webhook": {
                    "targets": {"audit": {"url": f"{self.inbox.url}/hooks/audit", "secret": _WEBHOOK_SECRET}},
                    **_ALLOW_LOOPBACK,
                },
            },
            "console_url": "https://flyte.example.com/console",
        }
        file = folder / "dispatcher.yaml"
        file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return file

    def _show_decisions(self, batch: BatchResult) -> None:
        for entry, new in batch.new_or_duplicate():
            if new:
                style = _VERDICT_STYLES.get(entry.verdict, "")
                self._line(entry.verdict.replace("_", " "), style, entry.reason)
            else:
                self._line("duplicate", "yellow", "event already recorded; nothing sent again")
        for rejected in batch.rejected:
            self._line("rejected", "red", rejected.reason)

    def _show_arrival(self, arrival: Arrival) -> None:
        channel, recipients, _ = _message(arrival)
        self._line("arrived", "bold green", f"{channel:<9} {', '.join(recipients)}")

    def _line(self, word: str, style: str, text: str) -> None:
        line = Text.assemble(f"{self.clock.now():%H:%M:%S} ", (f"{word:<9}  ", style), visible(text))
        self.console.print(line, soft_wrap=True)

    def _show_result(self, expected: Counter[_Message], arrived: Counter[_Message]) -> bool:
        for word, messages in (("missing", expected - arrived), ("unexpected", arrived - expected)):
            for channel, recipients, execution in messages.elements():
                self._line(word, "red", f"{channel} to {', '.join(recipients)} about {execution}")
        passed = expected == arrived
        result = "every expected message arrived, and no other" if passed else "not the messages that were expected"
        style = "bold green" if passed else "bold red"
        self._line("done" if passed else "mismatch", style, f"{expected.total()} messages: {result}")
        return passed


def _name_port(settings_file: Path, url: str) -> None:
    """Write the port that the service chose into its settings, so that `dispatcher publish` finds it."""
    text = settings_file.read_text(encoding="utf-8")
    settings_file.write_text(text.replace(_ANY_PORT, url.removeprefix("http://")), encoding="utf-8")


_Message = tuple[str, tuple[str, ...], str]
"""The channel, the recipients and the execution's name of one message."""


def _expected(scene: Scene) -> list[_Message]:
    return [(channel, recipients, scene.event.execution.name) for channel, recipients in scene.expected]


def _arrived(arrivals: Sequence[Arrival]) -> Counter[_Message]:
    return Counter(_message(arrival) for arrival in arrivals)


def _message(arrival: Arrival) -> _Message:
    match arrival:
        case Mail():
            return "email", tuple(sorted(arrival.recipients)), arrival.subject.rsplit(" ", 1)[-1]
        case SlackMessage():
            name = arrival.name if arrival.name.startswith("@") else f"#{arrival.name}"
            return "slack", (name,), _execution_in(str(arrival.body))
        case Incident():
            return "pagerduty", (arrival.service,), str(arrival.events[-1]["payload"]["source"]).rsplit("/", 1)[-1]
        case Card():
            return "teams", (arrival.team,), str(arrival.body["actions"][0]["url"]).rsplit("/", 1)[-1]
        case Call():
            return "webhook", (arrival.name,), str(arrival.body["execution"]["name"])


def _execution_in(body: str) -> str:
    return body.partition("/executions/")[2].partition("|")[0]


async def _post(session: aiohttp.ClientSession, url: str, message: EncodedMessage) -> None:
    headers = {name.replace("ce_", "ce-", 1): value.decode() for name, value in message.headers}
    async with session.post(url, data=message.value, headers=headers) as response:
        response.raise_for_status()
