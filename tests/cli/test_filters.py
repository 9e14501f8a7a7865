"""The filters are the same in commands, the console and the API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pytest
import yaml

from channels.registry import BUILT_IN
from dispatcher.cli import _choices, _filters
from dispatcher.filters import PageParameters, Search
from dispatcher.flyte.encode import Format
from dispatcher.ledger import Deed, Filter, Ledger
from dispatcher.model.delivery import State
from dispatcher.model.hold import Quiet
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.rendering.cause import cause_of
from tests.support.builders import NOW, SECOND, a_delivery, a_launch_plan, an_event
from tests.support.ledger_steps import an_action, recorded
from tests.support.terminal import invoke


def test_commands_have_an_option_for_each_filter_and_show_every_choice() -> None:
    assert set(_filters.OPTIONS) == Search.model_fields.keys() - PageParameters.model_fields.keys()
    verdicts = get_args(get_args(get_args(Search.model_fields["verdict"].annotation)[0])[0])
    for shown, values in (
        (_choices.STATES, list(State)),
        (_choices.CHANNELS, [*BUILT_IN, "…"]),
        (_choices.PHASES, sorted(TERMINAL)),
        (_choices.VERDICTS, verdicts),
        (_choices.FORMATS, list(Format)),
        (_choices.ALL_PHASES, set(Phase) - {Phase.UNDEFINED}),
    ):
        assert sorted(shown.strip("[]").split("|")) == sorted(values)


CAUSE = cause_of(an_event(error={"message": "KeyError: 17"})).fingerprint


@pytest.fixture
async def config(tmp_path: Path) -> str:
    """Settings whose ledger holds a failure with two deliveries, one of them dead, and a later success with none."""
    failed = an_event(name="e1", launch_plan=a_launch_plan(), error={"message": "KeyError: 17"})
    succeeded = an_event(Phase.SUCCEEDED, name="e2")
    dead = a_delivery(failed, channel="slack", to="#alerts", state=State.DEAD, reason="channel_not_found")
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger:
        await ledger.record([recorded(a_delivery(failed), dead, event=failed)], [], now=NOW)
        await ledger.record([recorded(event=succeeded)], [], now=NOW + SECOND)
    file = tmp_path / "dispatcher.yaml"
    file.write_text(yaml.safe_dump({"channels": {"slack": {"token": "xoxb-hidden"}}}))
    return str(file)


async def test_executions_and_deliveries_are_listed_by_the_same_filters(config: str) -> None:
    filters: Sequence[tuple[Sequence[str], Sequence[str], int]] = (
        ((), ("e2", "e1"), 2),
        (("--state", "dead"), ("e1",), 1),
        (("--state", "DEAD", "--state", "waiting"), ("e1",), 2),
        (("--state", "dead", "--channel", "email"), (), 0),
        (("--channel", "slack", "--phase", "failed"), ("e1",), 1),
        (("--recipient", "#ALERTS", "--project", "flytesnacks", "--domain", "production"), ("e1",), 1),
        (("--launch-plan", "train.daily", "--verdict", "matched"), ("e1",), 2),
        (("--verdict", "no matching rule"), (), 0),
        (("--cause", CAUSE), ("e1",), 2),
        (("--cause", CAUSE, "--state", "dead"), ("e1",), 1),
        (("--cause", CAUSE, "--phase", "succeeded"), (), 0),
        (("--phase", "succeeded", "--since", NOW.isoformat()), ("e2",), 0),
        (("--execution", "e1", "--until", NOW.isoformat()), (), 0),
    )
    for given, names, number in filters:
        arguments = ("list", *given, "--json", "--config", config)
        executions, deliveries = [json.loads((await invoke(of, *arguments)).out) for of in ("executions", "deliveries")]
        assert tuple(entry["execution"]["name"] for entry in executions) == names, given
        assert len(deliveries) == number, given
        if not given:
            assert executions[1]["deliveries"] == {"dead": 1, "waiting": 1}


async def test_unknown_values_are_refused_with_the_near_ones(config: str) -> None:
    refused = {
        ("--state", "ded"): "--state: there is no state 'ded': did you mean dead?",
        ("--phase", "running"): "there is no terminal phase 'running': there are ABORTED, FAILED, SUCCEEDED, TIMED_OUT",
        ("--verdict", "matchd"): "there is no verdict 'matchd': did you mean matched?",
        ("--channel", "slak"): "there is no channel in the ledger 'slak': did you mean slack?",
        ("--project", "flytesnack"): "there is no project in the ledger 'flytesnack': did you mean flytesnacks?",
        ("--launch-plan", "train.dayly"): "did you mean train.daily?",
        ("--recipient", "dev-teem@example.com"): "did you mean dev-team@example.com?",
        ("--cause", "KeyError"): "a cause is given by its fingerprint, such as v1:5f0c2a9d81e4b637, not by 'KeyError'",
        ("--cause", CAUSE.replace(":", ":0")[:-1]): "there is no cause in the ledger",
        ("--since", "soon"): "'soon' is neither a duration like 24h nor a time",
        ("--until", ""): "--until: must not be empty",
    }
    for given, words in refused.items():
        for command in (("executions", "list"), ("deliveries", "redrive", "--all")):
            if given[0] != "--state" or command[0] == "executions":
                answer = await invoke(*command, *given, "--config", config)
                assert (answer.status, answer.out) == (2, "")
                assert words in answer.err, given


async def test_failures_are_counted_by_cause(config: str) -> None:
    answer = await invoke("executions", "causes", "--launch-plan", "train.daily", "--config", config)
    assert answer.out.split() == [
        *("CAUSE", "NUMBER", "NAME", "FIRST", "LAST", "NEWEST", "EXECUTION"),
        *(CAUSE, "1", "KeyError:", "...", *(2 * ["2026-11-20", "09:14:21"]), "flytesnacks/production/e1"),
    ]
    assert (await invoke("executions", "list", "--cause", CAUSE, "--config", config)).out.count("KeyError: ...") == 1
    assert f"{CAUSE} KeyError: ..." in (await invoke("explain", "flytesnacks/production/e1", "--config", config)).out
    assert (
        json.loads((await invoke("executions", "causes", "--phase", "succeeded", "--json", "--config", config)).out)
        == []
    )


async def test_a_list_says_how_to_go_on_if_it_does_not_show_everything(config: str) -> None:
    for name in ("executions", "deliveries"):
        answer = await invoke(name, "list", "--limit", "1", "--config", config)
        assert "only the newest 1 are shown; --limit shows more, --until 2026-11-20T09:14:2" in answer.err


async def test_what_is_held_is_found_by_what_holds_it(config: str, tmp_path: Path) -> None:
    event = an_event(name="e3")
    night, weekend = (Quiet(NOW + 60 * SECOND, f"contact {name}") for name in ("ml", "data"))
    mails = [a_delivery(event, key=f"{n}" * 32, to=f"{n}@x.com", quiet=one) for n, one in enumerate((night, weekend))]
    async with Ledger(f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db") as ledger:
        await ledger.record([recorded(*mails, event=event)], [], now=NOW)
        await ledger.change(Filter(keys=[mails[1].key]), an_action(Deed.CANCEL))
    for given, executions, deliveries in (
        (("--held",), ["e3"], ["0@x.com"]),
        (("--not-held",), ["e3", "e1"], ["1@x.com", "dev-team@example.com", "#alerts"]),
        (("--held-by", "contact data"), ["e3"], ["1@x.com"]),
        (("--held-by", "contact data", "--held"), [], []),
    ):
        arguments = ("list", *given, "--json", "--config", config)
        found = [json.loads((await invoke(of, *arguments)).out) for of in ("executions", "deliveries")]
        assert sorted(one["execution"]["name"] for one in found[0]) == sorted(executions), given
        assert sorted(one["recipients"][0] for one in found[1]) == sorted(deliveries), given
    for given in (("--held",), ("--all", "--not-held")):
        answer = await invoke("deliveries", "retry-now", *given, "--dry-run", "--json", "--config", config)
        assert len(json.loads(answer.out)) == 1, given
