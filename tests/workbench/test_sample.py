"""`dispatcher preview` shows messages as their readers would see them, and reports template errors with their place."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from channels.registry import BUILT_IN, CHANNEL_TYPES
from dispatcher.config.settings import load
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.preview.html import plain_text, to_html
from dispatcher.preview.terminal import to_panel
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.workbench.sample import SampleRenderer
from tests.support.service import command


def on_terminal(channel: str, content: Any) -> str:
    """The message as `dispatcher preview` prints it on a colour terminal."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="truecolor")
    console.print(to_panel(channel, CHANNEL_TYPES[channel], content))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("phase", sorted(TERMINAL))
@pytest.mark.parametrize("channel", BUILT_IN)
def test_the_terminal_preview_names_the_launch_plan_and_the_phase(channel: str, phase: Phase) -> None:
    printed = on_terminal(channel, Renderer(CHANNEL_TYPES).render(channel, sample_event(phase)))
    assert "train.daily" in printed
    assert ("failed" in printed) == (phase is Phase.FAILED)


def test_slacks_terminal_preview_has_the_phases_colour_the_link_and_the_error_unescaped() -> None:
    printed = on_terminal("slack", Renderer(CHANNEL_TYPES).render("slack", sample_event(Phase.FAILED)))
    assert "\x1b[38;2;224;30;90m▌" in printed
    assert "https://flyte.example.com/console/projects/flytesnacks" in printed
    assert "bad learning rate: <lr> &" in printed


def test_slacks_terminal_preview_shows_the_text_only_if_there_are_no_blocks() -> None:
    assert "the text" in on_terminal("slack", {"text": "the text", "attachments": []})
    assert "fallback" not in on_terminal("slack", {"text": "fallback", "blocks": [{"type": "divider"}]})


def test_rich_markup_in_the_data_is_printed_as_text() -> None:
    block = {
        "type": "section",
        "text": {"type": "mrkdwn", "text": "[bold red]x[/] [link=https://evil.example]y[/link]"},
    }
    assert "[bold red]x[/] [link=https://evil.example]y[/link]" in on_terminal("slack", {"text": "", "blocks": [block]})


keys = st.sampled_from(
    ["type", "text", "blocks", "attachments", "fields", "elements", "payload", "links", "url", "href"]
)
values = st.sampled_from(["header", "section", "context", "actions", "button", "mrkdwn", "divider", "not a url", "[/]"])
trees = st.recursive(values | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(keys, inner))


@settings(deadline=None)
@given(st.dictionaries(keys, trees), st.sampled_from(["slack", "pagerduty"]))
def test_whatever_content_a_template_produces_every_preview_shows_it(content: dict[str, Any], channel: str) -> None:
    assert on_terminal(channel, content)
    assert to_html(channel, CHANNEL_TYPES[channel], content)
    assert plain_text(CHANNEL_TYPES[channel], content)


def as_html(content: Any) -> str:
    return str(to_html("slack", CHANNEL_TYPES["slack"], content))


def as_text(content: Any) -> str:
    return plain_text(CHANNEL_TYPES["slack"], content)


@pytest.mark.parametrize("form", [as_html, as_text])
def test_slacks_text_is_shown_if_the_message_has_only_attachments(form: Any) -> None:
    attachment = {"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "inside"}}]}
    preview = form({"text": "the text", "attachments": [attachment]})
    assert "the text" in preview
    assert "inside" in preview
    assert "the text" not in form({"text": "the text", "blocks": attachment["blocks"]})


async def test_a_failing_template_is_reported_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "own" / "email").mkdir(parents=True)
    (tmp_path / "own" / "email" / "subject.txt.j2").write_text("a\n{{ nonsense }}")
    config = tmp_path / "dispatcher.yaml"
    config.write_text(yaml.safe_dump({"http": {}, "templates": {"path": ["own"]}}))
    status, out, err = await command("preview", "--channel", "email", "--config", str(config))
    assert (status, out) == (1, "")
    assert "subject.txt.j2:2: 'nonsense' is undefined" in err
    assert "Traceback" not in err


def test_a_sample_has_the_severity_that_a_matching_route_gives_to_the_recipient(tmp_path: Path) -> None:
    routes = [
        {"name": "info", "match": {"phase": "ABORTED"}, "notify": ["ml-team"], "severity": "info"},
        {
            "name": "critical",
            "match": {"phase": "FAILED", "domain": "p*"},
            "notify": ["ml-team"],
            "severity": "critical",
        },
    ]
    (tmp_path / "routes.yaml").write_text(yaml.safe_dump({"routes": routes}))
    file = tmp_path / "dispatcher.yaml"
    services = {name: {"routing_key": "0" * 32} for name in ("ml", "other")}
    given = {
        "rules": {"routes": ["routes.yaml"]},
        "contacts": {"ml-team": {"pagerduty": ["ml"]}},
        "channels": {"pagerduty": {"services": services}},
    }
    file.write_text(yaml.safe_dump(given))
    renderer = SampleRenderer(load(file))

    def severity(phase: Phase, recipient: str) -> str:
        content: Any = renderer.render("pagerduty", sample_event(phase), recipient).content
        return str(content["payload"]["severity"])

    assert severity(Phase.FAILED, "ml") == "critical"
    assert severity(Phase.ABORTED, "ml") == "info"
    assert severity(Phase.FAILED, "other") == severity(Phase.TIMED_OUT, "ml") == "error"
