"""Digests and summaries in every channel: exact counts, within the provider's limits, whatever their members are."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from channels.contract import ChannelType
from channels.registry import BUILT_IN, CHANNEL_TYPES
from dispatcher.model.hold import HoldReason
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.model.summary import MAX_GROUPS, MAX_LISTED, Group, Summary
from dispatcher.preview.html import plain_text, to_html
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_summary
from dispatcher.rendering.summary_context import EXTENTS, Links, summary_context
from dispatcher.rendering.template_set import TemplateSet
from tests.support.builders import NOW
from tests.support.messages import SLACK_MARKUP, Tags, check_snapshots, hostile_text, names, slack_strings

RENDERER = Renderer(
    CHANNEL_TYPES,
    timezone=ZoneInfo("Europe/Berlin"),
    console_url="https://flyte.example.com/console",
    dispatcher_url="https://notify.example.com/flyte",
)
DIGEST = sample_summary(HoldReason.DIGEST)


@pytest.mark.parametrize("reason", [HoldReason.DIGEST, HoldReason.SILENCE])
@pytest.mark.parametrize("channel", BUILT_IN)
def test_the_built_in_digests_and_summaries_equal_their_snapshots(channel: str, reason: HoldReason) -> None:
    content = RENDERER.render_summary(channel, sample_summary(reason))
    assert CHANNEL_TYPES[channel].form.problems(content) == []
    check_snapshots("digest" if reason is HoldReason.DIGEST else "summary", channel, content)


@pytest.mark.parametrize("channel", BUILT_IN)
def test_every_channel_tells_counts_causes_times_executions_and_where_the_rest_is(channel: str) -> None:
    night = sample_summary(HoldReason.WINDOW)
    content = RENDERER.render_summary(channel, night, undelivered="#dev could not be notified: is_archived")
    shown = plain_text(CHANNEL_TYPES[channel], content)
    assert "297 failed, 2 timed out, 1 aborted, 7 others, 1 undelivered during quiet hours" in shown
    assert "Not delivered: " in str(content)
    for words in ("291", "train.daily", "learning rate", "quiet hours of contact ml-team", "280", "is_archived"):
        assert words in shown
    assert night.groups[0].executions[0].rpartition("/")[2] in shown
    assert f"https://notify.example.com/flyte/console/deliveries?included_in={night.key}" in shown


def _large(number: int = 5000) -> Summary:
    """A digest of this many members in as many groups as there can be, with names as long as they can be."""
    name = "&_<" * 84
    each = number // MAX_GROUPS
    group = replace(DIGEST.groups[0], cause_name="`*&<" * 50, number=each)
    groups = [
        replace(
            group,
            launch_plan=f"{name}/{name}/{at:03}{name}",
            executions=[f"{name}/{name}/{one:02}{name}" for one in range(min(each, MAX_LISTED))],
        )
        for at in range(MAX_GROUPS)
    ]
    return replace(DIGEST, number=number, groups=groups, more=0, notices=0, by="&" * 2000)


@pytest.mark.parametrize("channel", BUILT_IN)
def test_a_digest_of_5000_members_is_within_the_limits_and_its_counts_add_up(channel: str) -> None:
    summary = _large()
    assert sum(group.number for group in summary.groups) == summary.number
    renderer = Renderer(CHANNEL_TYPES, console_url="https://flyte.example.com/" + "x" * 400)
    content = renderer.render_summary(channel, summary, undelivered="why " * 1000)
    assert CHANNEL_TYPES[channel].form.problems(content) == []
    assert "5000 failed in 15 minutes" in plain_text(CHANNEL_TYPES[channel], content)


def test_a_digest_lists_as_much_as_fits() -> None:
    short = [replace(group, executions=[f"p/d/a{at}" for at in range(MAX_LISTED)]) for group in DIGEST.groups[:1]]
    many = replace(DIGEST, groups=[replace(short[0], launch_plan=f"p/d/{at}") for at in range(40)], number=40 * 291 + 8)
    text = str(RENDERER.render_summary("email", many)["text"])
    assert text.count("\n- ") == EXTENTS[1].groups * 10
    assert f"{20 * 291 + 7} others are not listed here." in text
    unlinked = str(Renderer(CHANNEL_TYPES).render_summary("email", many)["html"])
    assert unlinked.count(", a") == EXTENTS[0].groups * (EXTENTS[0].executions - 1)
    linked = Renderer(CHANNEL_TYPES, console_url="https://flyte.example.com/" + "x" * 1000)
    html = str(linked.render_summary("email", many)["html"])
    assert len(html) < 100_000
    assert html.count('class="link"') == EXTENTS[2].groups * EXTENTS[2].executions


@st.composite
def groups(draw: Any) -> Group:
    place, plan, cause = f"{draw(names)}/{draw(names)}", draw(names | st.just("")), draw(hostile_text)
    executions = [f"{place}/{name}" for name in draw(st.lists(names, min_size=1, max_size=MAX_LISTED))]
    return Group(
        launch_plan=f"{place}/{plan}" if plan else "",
        phase=draw(st.sampled_from(sorted(TERMINAL))),
        cause="v1:1" if cause else "",
        cause_name=cause,
        number=draw(st.integers(0, 5000)) + len(executions),
        first_at=NOW - timedelta(hours=1),
        last_at=NOW,
        executions=executions,
    )


@st.composite
def summaries(draw: Any) -> Summary:
    found = draw(st.lists(groups(), max_size=12))
    more, notices = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    return Summary(
        key="0123456789abcdef",
        reason=draw(st.sampled_from(HoldReason)),
        by=draw(hostile_text),
        since=NOW - timedelta(seconds=draw(st.integers(0, 10**6))),
        until=NOW,
        number=sum(group.number for group in found) + more + notices,
        groups=found,
        more=more,
        resolved=draw(st.integers(0, 9)),
        notices=notices,
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(summaries(), hostile_text)
def test_every_digest_renders_to_a_valid_message_without_injected_markup(summary: Summary, undelivered: str) -> None:
    contents = {name: RENDERER.render_summary(name, summary, undelivered=undelivered) for name in BUILT_IN}
    assert {name: CHANNEL_TYPES[name].form.problems(content) for name, content in contents.items()} == {
        name: [] for name in BUILT_IN
    }
    tags = Tags()
    tags.feed(str(contents["email"]["html"]))
    known = {"html", "head", "meta", "title", "style", "body", "div", "table", "tr", "td", "a", "b", "span"}
    assert set(tags.seen) <= known
    assert all(link.startswith("https://") for link in tags.links)
    for text in slack_strings(contents["slack"], "mrkdwn"):
        for markup in SLACK_MARKUP.findall(text):
            assert re.fullmatch(r"<(https?://[^|<>\s]+|!date\^-?\d+\^[^|<>]+)\|[^<>]*>", markup), markup
        assert "<" not in SLACK_MARKUP.sub("", text), "an incomplete link"
    assert not {"\r", "\n"} & set(contents["email"]["subject"])
    for name, content in contents.items():
        preview = Tags()
        preview.feed(str(to_html(name, CHANNEL_TYPES[name], content)))
        assert not {"script", "img"} & set(preview.seen)
    facts = summary_context(summary, EXTENTS[1], Links()).summary
    assert sum(group.number for group in facts.groups) + facts.more + facts.notices == summary.number
    assert all(group.number == len(group.executions) + group.more for group in facts.groups)


def test_a_channel_without_a_template_of_its_own_for_digests_tells_them_in_the_one_for_events(tmp_path: Path) -> None:
    template = tmp_path / "ntfy.yaml"
    template.write_text(
        'title: "{{ symbol }} {{ what }} {{ done }}"\nmessage: "{{ project }}/{{ domain }} {{ error.summary }}"'
    )
    kind = CHANNEL_TYPES["webhook"]
    own = ChannelType(config=kind.config, open=kind.open, template=template)
    bare = ChannelType(config=kind.config, open=kind.open)
    renderer = Renderer({"ntfy": own, "bare": bare})
    content = renderer.render_summary("ntfy", DIGEST)
    assert content["title"] == "❌ 297 failed, 2 timed out, 1 aborted, 7 others, 1 undelivered in 15 minutes"
    assert str(content["message"]).startswith("flytesnacks/production train.daily: 291 failed (ValueError: learning")
    assert renderer.check() == []
    webhooks = renderer.render_summary("webhook", DIGEST)
    assert renderer.render_summary("bare", DIGEST) == renderer.render_summary("unknown", DIGEST) == webhooks


def test_an_operators_template_of_digests_is_used_unless_it_fails(tmp_path: Path) -> None:
    (tmp_path / "slack").mkdir()
    file = tmp_path / "slack" / "summary.yaml"
    renderer = Renderer(CHANNEL_TYPES, [tmp_path])
    file.write_text(
        "text: '{{ summary.number }}'\nblocks:\n  - for: one in summary.groups\n    type: section\n    text: {type: mrkdwn, text: '{{ one.number }}'}"
    )
    content = renderer.render_summary("slack", DIGEST)
    assert (content["text"], len(content["blocks"])) == ("308", 4)
    assert renderer.draft_summary("slack", DIGEST) == content
    assert renderer.check() == []
    file.write_text(
        "text: '{{ summary.numbers }}'\nblocks:\n  - for: one in summary.group\n    type: '{{ one }}{{ two }}'"
    )
    changed = Renderer(CHANNEL_TYPES, [tmp_path])
    assert [(one.line, one.message.partition(";")[0]) for one in changed.check()] == [
        (1, "'summary.numbers' is undefined"),
        (3, "'summary.group' is undefined"),
        (4, "'two' is undefined"),
    ]
    with capture_logs() as logs:
        assert changed.render_summary("slack", DIGEST) == Renderer(CHANNEL_TYPES).render_summary("slack", DIGEST)
    assert [entry["event"] for entry in logs] == ["a template failed: the built-in one is used instead"]


def test_template_sets_with_keys_of_events_do_not_apply_to_digests(tmp_path: Path) -> None:
    for name in ("board", "project"):
        (tmp_path / name / "email").mkdir(parents=True)
        (tmp_path / name / "email" / "summary_subject.txt.j2").write_text(name)
    sets = [
        TemplateSet.model_validate({"project": "*", "path": [tmp_path / "project"]}),
        TemplateSet.model_validate({"recipient": "*@board.example.com", "path": [tmp_path / "board"]}),
    ]
    renderer = Renderer(CHANNEL_TYPES, template_sets=sets)
    assert renderer.render_summary("email", DIGEST, recipient="a@board.example.com")["subject"] == "board"
    assert "297 failed" in str(renderer.render_summary("email", DIGEST, recipient="a@example.com")["subject"])


def test_a_digest_of_one_place_names_it_and_takes_the_worst_phases_colour() -> None:
    aborted = replace(
        DIGEST, groups=[group for group in DIGEST.groups if group.phase == Phase.ABORTED], more=0, notices=0
    )
    context = summary_context(aborted, EXTENTS[0], Links())
    assert (context.project, context.domain, context.what, context.severity) == (
        "flytesnacks",
        "production",
        "1 aborted",
        "warning",
    )
    elsewhere = replace(aborted.groups[0], launch_plan="flytesnacks/staging/x")
    both = summary_context(
        replace(aborted, groups=[*aborted.groups, elsewhere]), EXTENTS[0], Links(), severity="critical"
    )
    assert (both.project, both.domain, both.severity) == ("flytesnacks", "*", "critical")
    assert orjson.dumps(RENDERER.render_summary("slack", aborted)).decode().count("None") == 0
