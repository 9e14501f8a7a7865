"""Whatever decoding accepts, both ledgers can record, and a worker can claim, send and settle."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.contract import Answer, Channel, Message, Receipt
from dispatcher.clock import SystemClock
from dispatcher.config.settings import Settings
from dispatcher.delivering.options import WorkerOptions
from dispatcher.delivering.worker import DeliveryWorker
from dispatcher.flyte.decode import NATIVE
from dispatcher.intake.pipeline import BatchResult, Intake
from dispatcher.intake.source import Batch, RawMessage
from dispatcher.ledger import Ledger
from dispatcher.model.delivery import State
from dispatcher.model.retry import RetryPolicy
from dispatcher.rules import RuleBook
from dispatcher.rules.files import RuleFiles
from dispatcher.runtime.wiring import make_contents, make_planner, open_channels
from tests.support.service import ROUTING_KEY

TO = "https://hooks.example.com/"
SETTINGS = {
    "console_url": "https://flyte.example.com/console",
    "channels": {
        "email": {"host": "127.0.0.1", "from": "flyte@example.com"},
        "slack": {"token": "not-a-token"},
        "pagerduty": {"services": {"oncall": {"routing_key": ROUTING_KEY}}},
        "webhook": {"allow_hosts": ["hooks.example.com"]},
        "teams": {"targets": {"ops": {"url": "https://teams.example.com/hook"}}},
    },
}
EVERYBODY = [
    {"phases": ["FAILED"], "email": {"recipients_email": ["team@example.com"]}},
    {"phases": ["FAILED"], "slack": {"recipients_email": ["#alerts"]}},
    {"phases": ["FAILED"], "pager_duty": {"recipients_email": ["oncall"]}},
    {"phases": ["FAILED"], "channel": "webhook", "recipients": [f"{TO}hook"]},
]


def an_event(name: str, **changes: Any) -> dict[str, Any]:
    """The data of a native event."""
    return {
        "execution": {"project": "flytesnacks", "domain": "production", "name": name},
        "phase": "FAILED",
        "occurred_at": "2026-11-20T09:14:21Z",
        "launch_plan": {"project": "flytesnacks", "domain": "production", "name": "train", "version": "v1"},
        "options": {"notifications": EVERYBODY},
        **changes,
    }


@dataclass(frozen=True)
class Raw:
    """A message as aiokafka returns it."""

    headers: Sequence[tuple[str, bytes | None]]
    value: bytes | None


def native(data: Mapping[str, Any]) -> Raw:
    return Raw([("ce_type", NATIVE.encode())], json.dumps(data).encode())


@dataclass
class OneBatch:
    """A source with a single batch; the object is both."""

    messages: Sequence[RawMessage]
    undecodable: Sequence[tuple[str, str]] = ()
    skipped: int = 0
    committed: bool = False

    def position(self, message: RawMessage) -> str:
        return f"flyte-cloudevents/0@{self.messages.index(message)}"

    async def commit(self) -> None:
        self.committed = True

    async def batches(self) -> AsyncGenerator[Batch]:
        yield self

    async def wait(self, duration: timedelta) -> bool:
        raise AssertionError(f"a dependency was unavailable for {duration}")

    def stop(self) -> None:
        pass

    async def unready_reason(self) -> str | None:
        return None


class Built:
    """A real channel that builds its message and sends it nowhere."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def send(self, message: Message) -> Receipt:
        body = self._channel.wire_preview(message).body.decode(errors="replace")
        return Receipt(answer=Answer("250", f"Отправлено \ud800\0 {body[:100]}"), reference={"id": "\ud800\0ж"})


async def go_through(ledger: Ledger, messages: Sequence[Raw], book: RuleBook | None = None) -> BatchResult:
    """Take the messages in, and let each channel's worker send every delivery. Returns what intake recorded."""
    config = Settings.model_validate(SETTINGS)
    channels: dict[str, Any] = {name: Built(channel) for name, channel in open_channels(config).items()}
    planner = make_planner(config, channels)
    contents = make_contents(config, planner.contacts)
    results: list[BatchResult] = []
    source = OneBatch(messages)
    clock = SystemClock()
    await Intake(ledger, lambda: book or RuleBook(), planner, contents, clock, on_batch=results.append).run(source)
    assert source.committed
    workers = [
        DeliveryWorker(
            WorkerOptions(
                name=name,
                channel=channel,
                ledger=ledger,
                planner=planner,
                contents=contents,
                policy=RetryPolicy(),
                clock=clock,
                rng=Random(7),
                worker_id="test",
                concurrency=100,
            )
        )
        for name, channel in channels.items()
    ]
    async with asyncio.timeout(30), asyncio.TaskGroup() as running:
        for worker in workers:
            running.create_task(worker.run())
        while State.WAITING in {state for _, state in await ledger.queries.counts()}:
            await asyncio.sleep(0.01)
        for worker in workers:
            worker.stop()
    recorded = [one for result in results for one in result.recorded]
    return BatchResult(recorded, [one for result in results for one in result.rejected])


WIDE = "\U0001d4b3" * 255
"""A name of 255 characters and 1,020 bytes."""
CASES = {
    "a time that UTC does not have": (
        native(an_event("odd1", occurred_at="0001-01-01T00:00:00+01:00")),
        "occurred_at: in UTC, this time is before the year 1 or after the year 9999",
    ),
    "a start that UTC does not have": (
        native(an_event("odd2", started_at="9999-12-31T23:59:59-01:00")),
        "started_at: in UTC, this time is before the year 1 or after the year 9999",
    ),
    "the last moment": (native(an_event("odd3", occurred_at="9999-12-31T23:59:59.999999Z")), None),
    "the first moment": (
        native(an_event("odd4", occurred_at="0001-01-01T00:00:00Z", started_at="0001-01-01T00:00:00Z")),
        None,
    ),
    "a recipient of 601 characters": (
        native(
            an_event(
                "bad",
                options={"notifications": [{"phases": ["FAILED"], "slack": {"recipients_email": ["C" + "A" * 600]}}]},
            )
        ),
        "options.notifications.0.recipients: a recipient of 601 characters: at most 512 are allowed",
    ),
    "a URL that is longer when it is encoded": (
        native(
            an_event(
                "bad",
                options={
                    "notifications": [{"phases": ["FAILED"], "channel": "webhook", "recipients": [TO + "ж" * 480]}]
                },
            )
        ),
        None,
    ),
    "a channel's name of 33 characters": (
        native(
            an_event(
                "bad", options={"notifications": [{"phases": ["FAILED"], "channel": "x" * 33, "recipients": ["a"]}]}
            )
        ),
        "options.notifications.0.channel: must have at most 32 characters",
    ),
    "a channel's name with NUL": (
        native(
            an_event("odd5", options={"notifications": [{"phases": ["FAILED"], "channel": "x\0", "recipients": ["a"]}]})
        ),
        "options.notifications.0.channel: a channel with control characters",
    ),
    "an execution of 3,060 bytes": (
        native(an_event("odd6", execution={"project": WIDE, "domain": WIDE, "name": WIDE})),
        "execution: project, domain and name may have 2,000 bytes together",
    ),
    "an execution of 1,900 bytes": (
        native(an_event("odd7", execution={"project": "p", "domain": WIDE, "name": WIDE[:220]})),
        None,
    ),
    "texts with NUL": (
        native(
            an_event("odd8", principal="\0", labels={"\0": "\0"}, url="\0", error={"code": "\0", "message": "\0\ud800"})
        ),
        None,
    ),
    "a template with NUL": (
        native(
            an_event(
                "bad",
                options={
                    "notifications": [
                        {"phases": ["FAILED"], "email": {"recipients_email": ["a@b.c"], "template": "\0/../x"}}
                    ]
                },
            )
        ),
        None,
    ),
    "a header without a value": (Raw([("x-note", None)], b"hello"), "broken JSON: "),
    "a type without a value": (Raw([("ce_type", None)], b"{}"), None),
    "a trace without a value": (
        Raw([*native({}).headers, ("traceparent", None)], native(an_event("odd9")).value),
        None,
    ),
}


async def test_odd_messages_are_recorded_or_rejected_and_the_next_goes_on(ledger: Ledger) -> None:
    result = await go_through(ledger, [*(message for message, _ in CASES.values()), native(an_event("good"))])

    assert "good" in {entry.event.execution.name for entry in result.recorded}
    rejected = {int(one.position.rpartition("@")[2]): one.reason for one in result.rejected}
    wrong = {
        case: rejected.get(at)
        for at, (case, (_, reason)) in enumerate(CASES.items())
        if not (rejected.get(at) or "none").startswith(reason or "none")
    }
    assert not wrong
    assert {state for _, state in await ledger.queries.counts()} == {State.SENT}


async def test_a_rule_file_whose_name_is_not_utf_8_serves(ledger: Ledger, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"pr\xf6ject")
    folder.mkdir()
    (folder / os.fsdecode(b"gr\xf6\xdfe.yaml")).write_text(
        "launch_plan: {project: flytesnacks, domain: production, name: train}\n"
        "notifications:\n"
        "  - {phases: [FAILED], email: {recipients_email: [a@example.com]}}\n"
        "  - {phases: [FAILED], pager: {recipients_email: [b]}}\n"
    )
    files = RuleFiles([folder])
    files.load()
    files.log_problems()
    (problem,) = files.problems
    assert str(problem).rpartition("/")[2].startswith("gr\\udcf6\\udcdfe.yaml:4: rule 2: unknown channel 'pager'")

    result = await go_through(ledger, [native(an_event("bad", options=None))], files.book)

    (entry,) = result.recorded
    assert [one.defined_at.rpartition("/")[2] for delivery in entry.deliveries for one in delivery.rules] == [
        "gr\\udcf6\\udcdfe.yaml:3"
    ]


_any_text = st.text(st.characters(codec="utf-8") | st.sampled_from("\0\x1b\x85\u2028\ufeff/@#<>&\"'%{}"), max_size=40)
_long_text = st.builds(lambda text, times: (text * times)[:6000], _any_text, st.sampled_from((1, 1, 20, 300)))
_short = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/"), min_size=1, max_size=40
)
_name = _short | st.sampled_from(("production", WIDE, "x" * 255, "..", "*"))
_time = st.datetimes().map(lambda at: f"{at.isoformat()}Z") | st.sampled_from(
    ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T20:00:00-02:00", "9999-12-31T20:00:00-05:00")
)
_recipient = _short.map(lambda text: f"_{text}_") | st.sampled_from(
    ("team@example.com", "#alerts", "C" + "A" * 511, "C" + "A" * 600, "oncall", TO + "ж" * 400)
)
_rule = st.fixed_dictionaries(
    {
        "phases": st.just(["FAILED", "SUCCEEDED"]),
        "channel": st.sampled_from(("email", "slack", "pagerduty", "webhook", "teams", "x" * 32, "x" * 33))
        | _short.map("{:.32}".format),
        "recipients": st.lists(_recipient, min_size=1, max_size=3),
        "template": st.none() | _long_text,
    }
)
_entity = st.fixed_dictionaries({"project": _name, "domain": _name, "name": _name, "version": _long_text})
_rules = st.lists(_rule, max_size=3).map(lambda own: {"notifications": [*own, *EVERYBODY]})
_events = st.fixed_dictionaries(
    {
        "execution": st.fixed_dictionaries({"project": _short, "domain": _name, "name": _short}),
        "phase": st.sampled_from(("FAILED", "SUCCEEDED", "ABORTED", "TIMED_OUT")),
        "occurred_at": _time,
        "options": _rules,
    },
    optional={
        "launch_plan": _entity,
        "workflow": _entity,
        "principal": _long_text,
        "labels": st.dictionaries(_any_text, _long_text, max_size=3),
        "url": _long_text,
        "started_at": _time,
        "error": st.fixed_dictionaries({"code": _any_text, "message": _long_text, "kind": _any_text}),
    },
)
_headers = st.lists(st.tuples(_any_text, st.none() | st.binary(max_size=20)), max_size=3)


@given(data=st.lists(st.tuples(_events, _headers), min_size=6, max_size=10))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_what_decoding_accepts_is_sent_or_rejected(ledger: Ledger, data: Sequence[tuple[Any, Any]]) -> None:
    messages = [Raw([*native(event).headers, *headers], native(event).value) for event, headers in data]
    result = await go_through(ledger, messages)

    assert not [one.reason for one in result.rejected if "internal error" in one.reason]
    for entry in result.recorded:  # what was written can be read
        assert await ledger.history.event(entry.event.key) is not None
