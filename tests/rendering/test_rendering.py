"""The built-in messages, and that every event renders to a message that its provider accepts."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels.common.text import ELLIPSIS, cut
from channels.registry import BUILT_IN, CHANNEL_TYPES
from channels.slack.mrkdwn import cut_mrkdwn, escape_mrkdwn
from dispatcher.model.delivery import Outage
from dispatcher.model.event import EntityId, Event, ExecutionError, ExecutionId
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.preview.html import plain_text, to_html
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.rendering.text import clean
from tests.support.builders import NOW, an_event
from tests.support.messages import (
    SLACK_MARKUP,
    Tags,
    check_snapshots,
    hostile_text,
    message_files,
    names,
    slack_strings,
)

RENDERER = Renderer(CHANNEL_TYPES, console_url="https://flyte.example.com/console")


@pytest.mark.parametrize("phase", sorted(TERMINAL))
@pytest.mark.parametrize("channel", BUILT_IN)
def test_the_built_in_messages_equal_their_snapshots(channel: str, phase: Phase) -> None:
    """REWRITE_SNAPSHOTS=1 rewrites the snapshots; the difference is then reviewed like code."""
    content = RENDERER.render(channel, sample_event(phase))
    assert CHANNEL_TYPES[channel].form.problems(content) == []
    check_snapshots(phase.lower(), channel, content)


@pytest.mark.parametrize("channel", BUILT_IN)
def test_a_fallback_message_says_who_could_not_be_notified_and_why(channel: str) -> None:
    why = "#dev could not be notified through slack: is_archived"
    content = RENDERER.render(channel, sample_event(Phase.FAILED), undelivered=why)
    for name, text in message_files(channel, content).items():
        assert why in text or name.endswith("eml")
    headline = {"email": "subject", "pagerduty": "payload", "teams": "body"}.get(channel, "text")
    assert "Not delivered: " in str(content[headline])
    assert "Not delivered" not in str(RENDERER.render(channel, sample_event(Phase.FAILED)))


def test_mail_and_pagerduty_have_times_in_the_configured_zone_and_slack_and_teams_in_the_readers() -> None:
    renderer = Renderer(CHANNEL_TYPES, timezone=ZoneInfo("Europe/Berlin"))
    shown = {name: orjson.dumps(renderer.render(name, sample_event(Phase.FAILED))).decode() for name in BUILT_IN}
    for channel in ("email", "pagerduty"):
        assert "2026-11-20 10:14:21 UTC+01:00" in shown[channel]
    assert "<!date^1795166061^{date_short_pretty} at {time_secs}|2026-11-20 09:14:21 UTC>" in shown["slack"]
    assert "{{DATE(2026-11-20T09:14:21Z, SHORT)}} {{TIME(2026-11-20T09:14:21Z)}}" in shown["teams"]
    assert "UTC+01:00" not in shown["slack"] + shown["teams"]


@pytest.mark.parametrize(
    ("channel", "words"), [("slack", "2026-11-20 09:14:21 UTC"), ("teams", "2026-11-20 09:14 UTC")]
)
def test_previews_show_the_readers_time_in_utc(channel: str, words: str) -> None:
    kind, content = CHANNEL_TYPES[channel], RENDERER.render(channel, sample_event(Phase.FAILED))
    for preview in (plain_text(kind, content), str(to_html(channel, kind, content))):
        assert words in preview
        assert "date" not in preview.casefold()


@pytest.mark.parametrize("channel", ["slack", "webhook"])
def test_a_resolved_notice_says_what_it_resolves(channel: str) -> None:
    success = sample_event(Phase.SUCCEEDED)
    outage = Outage(3, success.occurred_at - timedelta(hours=5))
    content = RENDERER.render(channel, success, outage=outage)
    assert CHANNEL_TYPES[channel].form.problems(content) == []
    shown = plain_text(CHANNEL_TYPES[channel], content)
    for words in ("train.daily succeeded", "after 3 failures", f"{outage.since:%H:%M}", "5 hours"):
        assert words in shown
    one = RENDERER.render(channel, success, outage=outage._replace(failures=1))
    assert "after 1 failure" in str(one["text"])
    assert "down" not in str(RENDERER.render(channel, success))


@pytest.mark.parametrize("channel", ["email", "slack", "pagerduty", "teams"])
def test_a_message_links_to_the_executions_logs(channel: str) -> None:
    logs = "https://logs.example.com/{project}/{domain}/{name}"
    linked = Renderer(CHANNEL_TYPES, logs_url=logs).render(channel, sample_event(Phase.FAILED))
    assert "https://logs.example.com/flytesnacks/production/akx7b9q2vjt5fm4c8h2d" in str(linked)
    assert "Open the logs" in str(linked)
    assert "Open the logs" not in str(RENDERER.render(channel, sample_event(Phase.FAILED)))


zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
times = st.datetimes(
    datetime(1, 1, 2),  # noqa: DTZ001 - the zone is another argument; events with earlier times are refused
    datetime(9999, 12, 30),  # noqa: DTZ001
    timezones=zones,
)
MANY_LABELS = {f"label-{number}": "<&" * 100 for number in range(2000)}


@st.composite
def events(draw: Any) -> Event:
    return Event.model_validate(
        {
            "execution": {"project": draw(names), "domain": draw(names), "name": draw(names)},
            "phase": draw(st.sampled_from(sorted(TERMINAL))),
            "occurred_at": draw(times),
            "started_at": draw(st.none() | times),
            "launch_plan": draw(
                st.none()
                | st.builds(
                    lambda name, version: {"project": "p", "domain": "d", "name": name, "version": version},
                    names,
                    hostile_text.filter(lambda version: "\0" not in version),  # an event with it is refused
                )
            ),
            "principal": draw(hostile_text),
            "labels": draw(st.dictionaries(hostile_text, hostile_text, max_size=3) | st.just(MANY_LABELS)),
            "url": draw(hostile_text | st.builds("https://flyte.example.com/{}".format, hostile_text)),
            "error": draw(
                st.none()
                | st.fixed_dictionaries(
                    {"code": hostile_text, "message": hostile_text, "kind": st.sampled_from(["USER", "SYSTEM", "x"])}
                )
            ),
        }
    )


TEAMS_DATE = re.compile(r"\{\{(DATE|TIME)\([\d:TZ-]+(, SHORT)?\)\}\}")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(events(), hostile_text)
def test_every_event_renders_to_a_valid_message_without_injected_markup(event: Event, undelivered: str) -> None:
    mail = RENDERER.render("email", event, undelivered=undelivered)
    slack = RENDERER.render("slack", event, undelivered=undelivered)
    page = RENDERER.render("pagerduty", event, undelivered=undelivered)
    card = RENDERER.render("teams", event, undelivered=undelivered)
    body = RENDERER.render("webhook", event, undelivered=undelivered)

    assert (
        CHANNEL_TYPES["email"].form.problems(mail),
        CHANNEL_TYPES["slack"].form.problems(slack),
        CHANNEL_TYPES["pagerduty"].form.problems(page),
    ) == ([], [], [])
    assert (CHANNEL_TYPES["teams"].form.problems(card), CHANNEL_TYPES["webhook"].form.problems(body)) == ([], [])
    for text in _fact_values(card):
        values = TEAMS_DATE.sub("", re.sub(r"\\.", "", text))
        assert not re.search(r"[`*_~\[\]()]", values), "Markdown"
    tags = Tags()
    tags.feed(str(mail["html"]))
    assert set(tags.seen) <= {"html", "head", "meta", "title", "style", "body", "div", "table", "tr", "td", "a", "pre"}
    assert all(link.startswith("https://") for link in tags.links)
    for text in slack_strings(slack, "mrkdwn"):
        for markup in SLACK_MARKUP.findall(text):
            assert re.fullmatch(r"<(https?://[^|<>\s]+|!date\^-?\d+\^[^|<>]+)\|[^<>]*>", markup), markup
        assert "<" not in SLACK_MARKUP.sub("", text), "an incomplete link"
        assert text.count("```") % 2 == 0, "an open code block"
    assert not {"\r", "\n"} & set(mail["subject"])
    for channel, content in (("slack", slack), ("pagerduty", page), ("teams", card), ("webhook", body)):
        preview = Tags()
        preview.feed(str(to_html(channel, CHANNEL_TYPES[channel], content)))
        assert "script" not in preview.seen
        assert "img" not in preview.seen
        assert plain_text(CHANNEL_TYPES[channel], content)


def _fact_values(card: Any) -> list[str]:
    """The texts of the built-in card that Teams reads as Markdown."""
    return [fact["value"] for part in card["body"] if part["type"] == "FactSet" for fact in part["facts"]]


def test_a_webhooks_body_names_the_execution_even_if_no_page_of_it_is_known() -> None:
    body = Renderer(CHANNEL_TYPES).render("webhook", an_event())
    assert body["execution"] == {
        "project": "flytesnacks",
        "domain": "production",
        "name": "akx7b9q2vjt5fm4c8h2d",
    }


def test_an_event_with_the_required_fields_only_renders_without_gaps() -> None:
    for channel in BUILT_IN:
        shown = orjson.dumps(RENDERER.render(channel, an_event())).decode()
        for gap in ("None", "()", "[]", "''", ": ,", "undefined"):
            assert gap not in shown


@pytest.mark.parametrize("channel", BUILT_IN)
def test_the_message_names_the_failed_node(channel: str) -> None:
    shown = orjson.dumps(RENDERER.render(channel, an_event(error={"message": "failed at Node[n1-dn0]. boom"}))).decode()
    assert re.search(r"[Ff]ailed[ _]node[^<]*(<[^>]*>)*[^<]*n1-dn0", shown)


@given(st.text(), st.integers(2, 60))
def test_a_cut_text_fits_its_limit_and_ends_in_an_ellipsis(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert len(short.encode("utf-16-le", "surrogatepass")) // 2 <= limit
    assert short == text or short.endswith(ELLIPSIS)


def test_cut_splits_neither_a_grapheme_nor_an_entity() -> None:
    assert cut("ab👩‍👩‍👧‍👦cd", 8) == f"ab{ELLIPSIS}"
    assert cut("AT&T, Bell and others", 5) == f"AT&T{ELLIPSIS}"
    assert cut_mrkdwn(escape_mrkdwn("aaaa&bbbb"), 8) == f"aaaa{ELLIPSIS}"


@pytest.mark.parametrize("limit", range(10, 50))
def test_cut_mrkdwn_leaves_no_incomplete_link_or_open_code_block(limit: int) -> None:
    short = cut_mrkdwn("see <https://x.example|a page> and ```the code of it``` there", limit)
    assert len(short) <= limit
    assert short.count("<") == short.count(">")
    assert short.count("```") % 2 == 0
    assert ELLIPSIS in short


def test_the_largest_event_renders_within_every_limit() -> None:
    most = "&" * 255
    launch_plan = {"project": "p", "domain": "d", "name": most, "version": "&" * 9999}
    frame = f'  File "{most}", line 1, in f\n    {most * 9}'
    event = Event(
        execution=ExecutionId(project=most, domain=most, name=most),
        phase=Phase.FAILED,
        occurred_at=NOW,
        launch_plan=EntityId(**launch_plan),
        workflow=EntityId(**launch_plan),
        principal="&" * 9999,
        labels={f"{number}{most}": "&" * 9999 for number in range(100)},
        url=f"https://x.example/{'x' * 1400}",
        error=ExecutionError(message="Node[n0] " + "&" * 200_000 + f"\n{frame}" * 9, code=most * 9, kind="SYSTEM"),
    )
    for channel in BUILT_IN:
        assert CHANNEL_TYPES[channel].form.problems(RENDERER.render(channel, event)) == []


@given(st.text(), st.integers(2, 80))
def test_text_escaped_for_slack_has_no_markup_at_any_length(text: str, limit: int) -> None:
    for escaped in (escape_mrkdwn(text), cut_mrkdwn(escape_mrkdwn(text), limit)):
        assert not set("<>") & set(escaped)
        assert re.sub(r"&(amp|lt|gt);", "", escaped).count("&") == 0


@given(st.text())
def test_cleaned_text_has_no_control_characters_or_bidirectional_overrides(text: str) -> None:
    cleaned = clean(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", cleaned)
    cleaned.encode()


def test_times_from_other_zones_are_shown_in_utc() -> None:
    facts = an_event().model_dump() | {
        "occurred_at": "2026-11-20T14:14:21+05:00",
        "started_at": "2026-11-20T14:13:21+05:00",
    }
    elsewhere = Event.model_validate(facts)
    shown = RENDERER.render("email", elsewhere)["text"]
    assert "Finished    2026-11-20 09:14:21 UTC" in shown
    assert "Duration    1 minute\n" in shown


def test_thousands_of_labels_and_a_megabyte_of_error_render_within_the_mails_limits() -> None:
    event = an_event(labels={f"label{number}": "x" * 100 for number in range(5000)}, error={"message": "y" * 1_000_000})
    assert CHANNEL_TYPES["email"].form.problems(RENDERER.render("email", event)) == []
    assert CHANNEL_TYPES["email"].form.problems(RENDERER.render("email", event, template="{{ error }}")) == []


def test_channels_that_nobody_registered_share_one_compiled_document() -> None:
    event = sample_event(Phase.FAILED)
    for name in ("matrix", "../../x", "Slack"):
        assert RENDERER.render(name, event) == RENDERER.render("webhook", event)
    documents = RENDERER._built_in._documents  # noqa: SLF001 - no result shows that the cache grows with each name
    assert {channel for channel, _ in documents} <= {*BUILT_IN, ""}


def test_only_one_thread_renders_at_a_time() -> None:
    rendering, overlap = threading.Lock(), threading.Event()

    def severity(_: Event) -> None:
        if not rendering.acquire(blocking=False):
            overlap.set()
            return
        overlap.wait(0.2)
        rendering.release()

    renderer = Renderer(CHANNEL_TYPES, severity=severity)
    events = [an_event(name=name) for name in ("first", "second")]
    with ThreadPoolExecutor(2) as threads:
        messages = list(threads.map(lambda event: renderer.render("pagerduty", event), events))
    assert not overlap.is_set()
    assert ["first" in str(messages[0]), "second" in str(messages[1])] == [True, True]
