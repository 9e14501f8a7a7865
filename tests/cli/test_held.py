"""What commands say of deliveries that are held back, and of those that were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.clock import SystemClock
from dispatcher.holding.silences import Silence
from dispatcher.ledger import Ledger
from dispatcher.ledger.digests import Target
from dispatcher.ledger.releases import Ended
from dispatcher.model.delivery import Delivery, Success
from dispatcher.model.hold import DigestOptions, Quiet, Then
from dispatcher.model.phase import Phase
from tests.support.builders import a_delivery, a_launch_plan, a_silence, an_event
from tests.support.ledger_steps import SENT, an_action, claim, recorded, settlement
from tests.support.terminal import invoke

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
DIGEST = DigestOptions(1, HOUR, HOUR)


class Held:
    """A ledger with one execution for each thing that can become of a held delivery."""

    def __init__(self, ledger: Ledger, now: datetime) -> None:
        self.ledger, self.now = ledger, now
        self.keys: dict[str, str] = {}

    async def fail(self, name: str, *silences: Silence, to: str, ago: timedelta = MINUTE, **fields: Any) -> None:
        """Record a failure of this execution with one mail."""
        at = self.now - ago
        event = an_event(name=name, launch_plan=a_launch_plan(name)).model_copy(update={"occurred_at": at})
        mail = a_delivery(event, to=to, occurred_at=at, created_at=at, due_at=at, **fields)
        self.keys[name] = mail.key
        await self.ledger.record([replace(recorded(mail, event=event), silences=silences)], [], now=at)

    async def succeed(self, name: str) -> None:
        event = an_event(Phase.SUCCEEDED, name=f"{name}-again", launch_plan=a_launch_plan(name))
        facts = Success(
            event=event.key,
            occurred_at=self.now,
            started_at=self.now,
            subjects=(a_launch_plan(name).key,),
            channels=frozenset(),
            recorded_at=self.now,
        )
        await self.ledger.record([replace(recorded(event=event), success=facts)], [], now=self.now)

    async def release(self, to: str, *names: str) -> None:
        """Release what was held for this address."""
        keys = [self.keys[name] for name in names]
        version, _ = await self.ledger.silences.load(now=self.now)
        ended = Ended(
            target=Target("email", to), covers=dict.fromkeys(keys, ()), silences=version, pages=False, zone=UTC
        )
        assert await self.ledger.releases.release(ended, now=self.now) is not None

    async def send(self) -> Sequence[Delivery]:
        """Send what is due."""
        sent = await claim(self.ledger, 9, now=self.now)
        for one in sent:
            assert await self.ledger.settle(settlement(one, SENT))
        return sent


@pytest.fixture
async def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The keys of the deliveries by the name of their execution, and `summary`: the key of a summary that was sent."""
    config = tmp_path / "dispatcher.yaml"
    config.write_text(yaml.safe_dump({"channels": {"email": {"host": "relay.example.com", "from": "f@example.com"}}}))
    monkeypatch.setenv("DISPATCHER_CONFIG", str(config))
    now = SystemClock().now()
    then = now - 2 * HOUR
    silence = a_silence("5f0c2a9d", starts_at=now - HOUR, ends_at=now + HOUR)
    over = a_silence("0ver0000", starts_at=then, ends_at=now)
    drops = a_silence("dr0p0000", starts_at=then, ends_at=now, then=Then.DROP, reason="migration")
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger:
        for one in (silence, over, drops):
            await ledger.silences.add(one, an_action())
        world = Held(ledger, now)
        await world.fail("silenced", silence, to="a@x.com")
        await world.fail("quiet", to="a@x.com", quiet=Quiet(now + 9 * HOUR, "contact ml"))
        await world.fail("resolved", silence, to="a@x.com")
        await world.succeed("resolved")
        await world.fail("first", to="digest@x.com", digest=DIGEST)
        await world.fail("member", to="digest@x.com", digest=DIGEST)
        await world.fail("told", over, to="b@x.com", ago=HOUR)
        await world.fail("told-too", over, to="b@x.com", ago=HOUR)
        await world.fail("dropped", drops, to="c@x.com", ago=HOUR)
        await world.fail("alone", over, to="d@x.com", ago=HOUR)
        await world.fail("late", over, to="e@x.com", ago=HOUR)
        for to, *names in (("b@x.com", "told", "told-too"), ("c@x.com", "dropped"), ("d@x.com", "alone")):
            await world.release(to, *names)
        (summary,) = [one for one in await world.send() if not one.event]
    return {**world.keys, "summary": summary.key}


async def explained(name: str) -> str:
    """What `explain` prints of the execution, in one line."""
    return " ".join((await invoke("explain", f"flytesnacks/production/{name}")).out.split())


async def explained_as_data(name: str) -> dict[str, Any]:
    """The execution's delivery as JSON data."""
    (delivery,) = json.loads((await invoke("explain", f"flytesnacks/production/{name}", "--json")).out)["deliveries"]
    return dict(delivery)


async def test_explain_says_what_became_of_each_delivery_by_the_first_reason_that_decides(held: dict[str, str]) -> None:
    summary = held["summary"]
    for name, status, words in (
        ("silenced", "held", "waits for the end of silence 5f0c2a9d (maintenance), 20"),
        ("quiet", "held", "waits for the end of quiet hours of contact ml, 20"),
        ("member", "held", "waits for the end of its digest, 20"),
        ("resolved", "dropped", "resolved before it was sent, while silence 5f0c2a9d (maintenance) held it"),
        ("told", "included", f"included in a summary ({summary[:12]}), which was sent"),
        ("dropped", "dropped", "dropped by silence dr0p0000 (migration)"),
        ("alone", "sent", "(silence 0ver0000 (maintenance))"),
        ("late", "held", "waits for its release by a replica, after silence 0ver0000 (maintenance)"),
        ("first", "sent", "sent"),
    ):
        printed = await explained(name)
        assert words in printed, name
        assert f" {status} email " in printed, name
    told = await explained_as_data("told")
    assert (told["state"], told["status"]) == ("dropped", "included")
    assert told["told_by"] == {"key": summary, "kind": "summary", "status": "sent"}
    assert (await explained_as_data("resolved"))["holder"] == "silence 5f0c2a9d (maintenance)"


async def test_lists_show_what_is_held_and_what_another_message_tells_of(held: dict[str, str]) -> None:
    listed = (await invoke("deliveries", "list", "--state", "dropped")).out
    assert f"included in a summary ({held['summary'][:12]}), which was sent" in listed
    shown = (await invoke("deliveries", "show", held["told"])).out
    assert "included" in shown
    assert held["summary"] in shown
    entries = json.loads((await invoke("executions", "list", "--json")).out)
    counts = {one["execution"]["name"]: one["deliveries"] for one in entries}
    assert [counts[name] for name in ("silenced", "told", "alone", "dropped")] == [
        {"held": 1},
        {"included": 1},
        {"sent": 1},
        {"dropped": 1},
    ]
    assert "1 held" in (await invoke("executions", "list", "--execution", "silenced")).out
    of_silence = json.loads((await invoke("deliveries", "list", "--held-by", "5f0c2a9d", "--json")).out)
    assert {one["status"] for one in of_silence} == {"held", "dropped"}
