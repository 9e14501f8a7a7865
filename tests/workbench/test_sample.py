"""What `dispatcher preview` shows is what would be sent, and it says where a template is wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.preview.html import draw, plain_text
from dispatcher.preview.terminal import picture
from dispatcher.rendering import Renderer
from dispatcher.rendering.renderer import CHANNELS, sample_event
from tests.support.service import command


def shown(channel: str, content: Any) -> str:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="truecolor")
    console.print(picture(channel, content))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("phase", sorted(TERMINAL))
@pytest.mark.parametrize("channel", CHANNELS)
def test_the_picture_shows_what_ran_and_how_it_ended(channel: str, phase: Phase) -> None:
    drawn = shown(channel, Renderer().render(channel, sample_event(phase)))
    assert "train.daily" in drawn
    assert ("failed" in drawn) == (phase is Phase.FAILED)


def test_slacks_picture_has_the_phases_colour_the_link_and_the_data_as_it_is() -> None:
    drawn = shown("slack", Renderer().render("slack", sample_event(Phase.FAILED)))
    assert "\x1b[38;2;224;30;90m▌" in drawn
    assert "https://flyte.example.com/console/projects/flytesnacks" in drawn
    assert "bad learning rate: <lr> &" in drawn


def test_slacks_picture_shows_the_text_where_slack_would_show_it() -> None:
    assert "told twice" in shown("slack", {"text": "told twice", "attachments": []})
    assert "fallback" not in shown("slack", {"text": "fallback", "blocks": [{"type": "divider"}]})


def test_data_is_no_markup_in_the_picture() -> None:
    block = {
        "type": "section",
        "text": {"type": "mrkdwn", "text": "[bold red]x[/] [link=https://evil.example]y[/link]"},
    }
    assert "[bold red]x[/] [link=https://evil.example]y[/link]" in shown("slack", {"text": "", "blocks": [block]})


words = st.sampled_from(
    ["type", "text", "blocks", "attachments", "fields", "elements", "payload", "links", "url", "href"]
)
kinds = st.sampled_from(["header", "section", "context", "actions", "button", "mrkdwn", "divider", "not a url", "[/]"])
trees = st.recursive(kinds | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(words, inner))


@settings(deadline=None)
@given(st.dictionaries(words, trees), st.sampled_from(["slack", "pagerduty"]))
def test_anything_that_an_operators_template_makes_can_be_drawn(content: dict[str, Any], channel: str) -> None:
    assert shown(channel, content)
    assert draw(channel, content)
    assert plain_text(channel, content)


@pytest.mark.parametrize("form", [draw, plain_text])
def test_slacks_text_is_seen_where_the_message_has_attachments_alone(form: Any) -> None:
    attachment = {"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "inside"}}]}
    alone = str(form("slack", {"text": "told twice", "attachments": [attachment]}))
    assert "told twice" in alone
    assert "inside" in alone
    assert "told twice" not in str(form("slack", {"text": "told twice", "blocks": attachment["blocks"]}))


async def test_a_template_that_fails_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "own" / "email").mkdir(parents=True)
    (tmp_path / "own" / "email" / "subject.txt.j2").write_text("a\n{{ nonsense }}")
    config = tmp_path / "dispatcher.yaml"
    config.write_text(yaml.safe_dump({"http": {}, "templates": {"path": ["own"]}}))
    status, out, err = await command("preview", "--channel", "email", "--config", str(config))
    assert (status, out) == (1, "")
    assert "subject.txt.j2:2: 'nonsense' is undefined" in err
    assert "Traceback" not in err
