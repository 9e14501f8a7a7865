"""Some messages look different: by project, domain, launch plan, label and recipient, in an order that is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dispatcher.model.phase import Phase
from dispatcher.planning.planner import Planner
from dispatcher.rendering import Override, Renderer, TemplateError
from dispatcher.rendering.renderer import sample_event
from tests.support.builders import NOW, a_rule

FAILED = sample_event(Phase.FAILED)


def subject(folder: Path, text: str, file: str = "email/subject.txt.j2") -> Path:
    """A folder with one template, that says `text`."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({"project": ["flytesnacks"]}, True),
        ({"project": "other, flyte*"}, True),
        ({"project": ["flyte"]}, False),
        ({"domain": ["prod*"]}, True),
        ({"domain": ["staging"]}, False),
        ({"launch_plan": ["train.*"]}, True),
        ({"launch_plan": ["train"]}, False),
        ({"labels": {"team": "data-*"}}, True),
        ({"labels": {"team": "ops"}}, False),
        ({"labels": {"squad": "*"}}, False),
        ({"recipient": ["*@EXAMPLE.com"]}, True),
        ({"recipient": ["#alerts"]}, False),
        ({"project": ["flytesnacks"], "domain": ["staging"]}, False),
        ({"project": ["flytesnacks"], "labels": {"team": "data-science"}, "recipient": ["jane@*"]}, True),
    ],
)
def test_an_override_holds_where_all_that_it_says_is_true(tmp_path: Path, when: dict[str, Any], holds: bool) -> None:
    override = Override.model_validate({**when, "path": [subject(tmp_path, "mine")]})
    made = Renderer(overrides=[override]).render("email", FAILED, recipient="Jane@example.com")
    assert (made["subject"] == "mine") is holds


def test_the_first_that_holds_and_has_the_file_wins_then_the_path_then_the_built_in(tmp_path: Path) -> None:
    first = Override(project=("flyte*",), path=(subject(tmp_path / "1", "first"),))
    second = Override(domain=("*",), path=(subject(tmp_path / "2", "second", "email/text.txt.j2"),))
    third = Override(launch_plan=("*",), path=(subject(tmp_path / "3", "third"),))
    common = subject(subject(tmp_path / "4", "common"), "common", "email/text.txt.j2")
    for overrides, made in (
        ([first, second, third], ("first", "second")),
        ([third, second, first], ("third", "second")),
        ([first], ("first", "common")),
        ([], ("common", "common")),
    ):
        mail = Renderer([common], overrides=overrides).render("email", FAILED)
        assert (mail["subject"], mail["text"]) == made
        assert mail["html"] == Renderer().render("email", FAILED)["html"]


def test_an_override_that_fails_costs_no_message(tmp_path: Path) -> None:
    override = Override(recipient=("#*",), path=(subject(tmp_path, "{{ nonsense }}"),))
    renderer = Renderer(overrides=[override])
    assert renderer.render("email", FAILED, recipient="#a") == Renderer().render("email", FAILED)
    (problem,) = renderer.check()
    assert (problem.file, problem.line) == (tmp_path / "email" / "subject.txt.j2", 1)
    with pytest.raises(TemplateError, match="nonsense"):
        renderer.draft("email", FAILED, recipient="#a")
    assert renderer.draft("email", FAILED, recipient="a") == Renderer().render("email", FAILED)


def test_an_override_without_a_condition_or_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="says of nothing when it holds"):
        Override(path=(tmp_path,))
    with pytest.raises(ValidationError, match="path"):
        Override(project=("p",), path=())
    with pytest.raises(TemplateError, match=r"templates\.match\.0\.path: no such folder"):
        Renderer(overrides=[Override(project=("p",), path=(tmp_path / "nowhere",))])


def planner(renderer: Renderer) -> tuple[Planner, list[str]]:
    """A planner over that renderer, and the recipients for whom it rendered."""
    rendered: list[str] = []

    def render(channel: str, event: Any, *, recipient: str = "", **more: Any) -> Any:
        rendered.append(recipient)
        return renderer.render(channel, event, recipient=recipient, **more)

    return Planner({"email": str.lower, "slack": str.lower}, {}, render, look=renderer.look), rendered


def test_a_mail_is_split_by_look_and_each_look_is_rendered_once(tmp_path: Path) -> None:
    override = Override(recipient=("boss@*", "cto@*"), path=(subject(tmp_path, "for the boss"),))
    making, rendered = planner(Renderer(overrides=[override]))
    mails = making.plan(FAILED, [a_rule("a@x.com", "boss@x.com", "b@x.com", "cto@x.com"), a_rule("c@x.com")], now=NOW)
    usual = Renderer().render("email", FAILED)["subject"]
    assert [(mail.recipients, mail.content["subject"]) for mail in mails] == [
        (("a@x.com", "b@x.com"), usual),
        (("boss@x.com", "cto@x.com"), "for the boss"),
        (("c@x.com",), usual),
    ]
    assert rendered == ["a@x.com", "boss@x.com"]
    assert len({mail.key for mail in mails}) == 3


def test_without_a_match_by_recipient_a_list_stays_one_mail_and_a_channel_is_rendered_once(tmp_path: Path) -> None:
    override = Override(project=("flytesnacks",), path=(subject(tmp_path, "of the project"),))
    making, rendered = planner(Renderer(overrides=[override]))
    made = making.plan(FAILED, [a_rule("a@x.com", "b@x.com"), a_rule("#a", "#b", channel="slack")], now=NOW)
    assert [delivery.recipients for delivery in made] == [("a@x.com", "b@x.com"), ("#a",), ("#b",)]
    assert made[0].content["subject"] == "of the project"
    assert rendered == ["a@x.com", "#a"]
