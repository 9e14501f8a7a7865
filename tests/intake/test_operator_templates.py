"""Intake waits for an operator's template in a thread, so the event loop goes on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import yaml

from channels.registry import CHANNEL_TYPES
from dispatcher.clock import SystemClock
from dispatcher.config.settings import load
from dispatcher.flyte.encode import Format, write
from dispatcher.intake.pipeline import Intake
from dispatcher.ledger import Ledger
from dispatcher.model.event import Options
from dispatcher.model.phase import Phase
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.rules import RuleBook
from dispatcher.runtime.wiring import make_contents, make_planner, open_channels
from tests.support.builders import a_notification

ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


async def test_an_endless_template_does_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    (tmp_path / "own" / "email").mkdir(parents=True)
    (tmp_path / "own" / "email" / "subject.txt.j2").write_text(ENDLESS)
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    email = {"host": "relay.example.com", "from": "flyte@example.com"}
    settings = {"ledger": {"url": url}, "templates": {"path": [str(tmp_path / "own")]}, "channels": {"email": email}}
    (tmp_path / "dispatcher.yaml").write_text(yaml.safe_dump(settings))
    loaded = load(tmp_path / "dispatcher.yaml")
    failed = sample_event(Phase.FAILED)
    event = failed.model_copy(update={"options": Options(notifications=(a_notification(),))})
    message = write(event, Format.NATIVE)

    async with Ledger(url) as ledger:
        planner = make_planner(loaded, open_channels(loaded))
        contents = make_contents(loaded, planner.contacts)
        intake = Intake(ledger, lambda: RuleBook({}), planner, contents, SystemClock())
        taking = asyncio.create_task(intake.ingest([(message.headers, message.value, "t/0@1")]))
        longest, before = 0.0, time.monotonic()
        while not taking.done():
            await asyncio.sleep(0.01)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
        (recorded,) = (await taking).recorded

    assert longest < 0.7  # without a thread, the loop would stand for a second
    content = recorded.deliveries[0].content
    assert content is not None
    assert content["subject"] == Renderer(CHANNEL_TYPES).render("email", failed)["subject"]
