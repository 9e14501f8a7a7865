"""`dispatcher silences`, as a user runs it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

from dispatcher.clock import SystemClock
from dispatcher.ledger import Deed, Filter, Ledger
from dispatcher.model.delivery import DropReason, Kind, State
from tests.support.builders import a_delivery, a_launch_plan, a_replica, an_event
from tests.support.ledger_steps import recorded, settings_file
from tests.support.service import command


async def test_a_silence_is_tried_added_listed_extended_shown_and_ended(tmp_path: Path) -> None:
    url, now = f"sqlite+aiosqlite:///{tmp_path}/ledger.db", SystemClock().now()
    config = ("--config", settings_file(tmp_path, url))
    match = ("--match", "project=flytesnacks", "--match", "launch_plan=train.*", "--match", "not.phase=ABORTED")
    async with Ledger(url) as ledger:
        for number in range(3):
            event = an_event(name=f"e{number}", launch_plan=a_launch_plan())
            mails = [
                a_delivery(event, to=f"{name}@example.com", occurred_at=now) for name in ("ann", "bo")[: number + 1]
            ]
            done: dict[str, Any] = {"state": State.DROPPED, "drop_reason": DropReason.CANCELLED} if number == 1 else {}
            await ledger.record([recorded(*[one._replace(**done) for one in mails], event=event)], [], now=now)
        change = a_delivery(event, to="ann@example.com", key="0" * 32, kind=Kind.CHANGE_EVENT)
        await ledger.record([recorded(change, event=an_event(name="change"))], [], now=now)
        await ledger.replicas.write(a_replica("web-2:7", at=now, version="0.0.9"))

    status, out, err = await command(
        "silences", "add", *match, "--for", "2h", "--reason", "upgrade", "--dry-run", *config
    )
    assert (status, "warning: replica web-2:7 runs version 0.0.9" in err) == (0, True)
    assert "it would have held 5 messages of 3 events" in out
    assert [line.split() for line in out.splitlines()[-2:]] == [
        ["email", "ann@example.com", "3"],
        ["email", "bo@example.com", "2"],
    ]
    async with Ledger(url) as ledger:
        assert await ledger.history.latest_actions(limit=9) == []

    status, out, err = await command(
        "silences", "add", *match, "--for", "2h", "--reason", "upgrade", "--by", "ada", *config
    )
    assert status == 0
    assert "launch_plan is train.*, unless phase is ABORTED" in out
    assert out.endswith("it holds 3 deliveries\n")
    assert "rules.flyte_admin" in err, "without FlyteAdmin, many events don't name their launch plan"
    silence = out.split()[1]
    _, out, _ = await command("silences", "list", *config)
    assert all(one in out for one in (silence, "in force", "ada", "upgrade"))

    status, out, _ = await command("silences", "extend", silence[:4], "--for", "1h", *config)
    assert (status, "in force until" in out) == (0, True)
    status, out, _ = await command("silences", "show", silence, "--json", *config)
    shown = json.loads(out)
    assert (shown["state"], shown["holds"], shown["then"]) == ("in force", 3, "summary")
    assert shown["holds_for"] == [
        {"channel": "email", "address": "ann@example.com", "messages": 2},
        {"channel": "email", "address": "bo@example.com", "messages": 1},
    ]
    async with Ledger(url) as ledger:
        found = [one.delivery for one in await ledger.history.find(Filter(states=frozenset({State.WAITING})), limit=9)]
        held = [one for one in found if one.hold]
        assert {one.due_at - now >= timedelta(hours=3) for one in held} == {True}

    status, out, _ = await command("silences", "end", silence, "--reason", "done", *config)
    assert (status, "has ended" in out) == (0, True)
    assert json.loads((await command("silences", "list", "--json", *config))[1]) == []
    assert [one["id"] for one in json.loads((await command("silences", "list", "--ended", "--json", *config))[1])] == [
        silence
    ]
    async with Ledger(url) as ledger:
        actions = await ledger.history.latest_actions(limit=9)
        assert [one.what for one in actions] == [Deed.END_SILENCE, Deed.EXTEND_SILENCE, Deed.SILENCE]
        assert actions[-1].scope == f"silence {silence}: project=flytesnacks, launch_plan=train.*, not.phase=ABORTED"
        found = [one.delivery for one in await ledger.history.find(Filter(states=frozenset({State.WAITING})), limit=9)]
        assert all(one.due_at <= SystemClock().now() for one in found), "they are released now"


async def test_a_silence_that_makes_no_sense_is_refused_with_the_reason(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/ledger.db"
    async with Ledger(url):
        pass
    config = ("--config", settings_file(tmp_path, url))
    some = ("--match", "project=p", "--reason", "r")
    for arguments, reason in (
        (("add", "--for", "2h", "--reason", "r"), "Missing option '--match'"),
        (("add", "--match", "project=p", "--for", "2h"), "Missing option '--reason'"),
        (("add", "--match", "project=p", "--for", "2h", "--reason", ""), "reason: must not be empty"),
        (("add", "--match", "project", "--for", "2h", "--reason", "r"), "'project' is not a key with a value"),
        (("add", "--match", "cluster=p", "--for", "2h", "--reason", "r"), "match: cluster: unknown option"),
        (("add", "--match", "not.error=x", "--for", "2h", "--reason", "r"), "match: "),
        (("add", *some), "give --for, such as 2h, or --until"),
        (("add", *some, "--for", "8d"), "a silence lasts at most 7 d"),
        (("add", *some, "--for", "0s"), "the end has to be later than now"),
        (("add", *some, "--for", "1h", "--from", "2020-01-01"), "begins now or later"),
        (("add", *some, "--until", "tonight"), "--until: 'tonight' is not a time"),
        (("add", *some, "--for", "1h", "--then", "mail"), "then: "),
        (("end", "abc"), "no silence has an id that begins with 'abc'"),
    ):
        status, _, err = await command("silences", *arguments, *config)
        assert status != 0
        assert reason in err.replace("\n", " "), (arguments, err)
