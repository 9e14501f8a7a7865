"""Template sets select templates by project, domain, launch plan, label and recipient, in the order of the settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from channels.registry import CHANNEL_TYPES
from dispatcher.errors import SettingsError
from dispatcher.model.delivery import Delivery
from dispatcher.model.phase import Phase
from dispatcher.planning.contents import Contents
from dispatcher.planning.planner import Planner
from dispatcher.rendering.compiled import TemplateError
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.rendering.template_set import TemplateSet
from dispatcher.rules import Rule
from tests.support.builders import NOW, a_rule

FAILED = sample_event(Phase.FAILED)


def template_folder(folder: Path, text: str, file: str = "email/subject.txt.j2") -> Path:
    """Write one template with the given text into the folder, and return the folder."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("conditions", "applies"),
    [
        ({"project": ["flytesnacks"]}, True),
        ({"project": ["other", "flyte*"]}, True),
        ({"project": "other, flyte*"}, False),
        ({"project": ["flyte"]}, False),
        ({"domain": ["prod*"]}, True),
        ({"domain": ["staging"]}, False),
        ({"launch_plan": ["train.*"]}, True),
        ({"launch_plan": ["train"]}, False),
        ({"labels": {"team": "data-*"}}, True),
        ({"labels": {"team": "ops"}}, False),
        ({"labels": {"squad": "*"}}, False),
        ({"phase": "FAILED", "error": {"message": "learning rate"}}, True),
        ({"phase": "SUCCEEDED"}, False),
        ({"mode": "manual", "parent": "none"}, True),
        ({"not": {"mode": "child"}}, True),
        ({"not": {"labels": {"team": "data-*"}}}, False),
        ({"not": {"labels": {"team": "ops"}}, "recipient": "jane@*"}, True),
        ({"recipient": ["*@EXAMPLE.com"]}, True),
        ({"recipient": ["#alerts"]}, False),
        ({"project": ["flytesnacks"], "domain": ["staging"]}, False),
        ({"project": ["flytesnacks"], "labels": {"team": "data-science"}, "recipient": ["jane@*"]}, True),
    ],
)
def test_a_template_set_applies_if_all_its_conditions_match(
    tmp_path: Path, conditions: dict[str, Any], applies: bool
) -> None:
    template_set = TemplateSet.model_validate({**conditions, "path": [template_folder(tmp_path, "mine")]})
    mail = Renderer(CHANNEL_TYPES, template_sets=[template_set]).render("email", FAILED, recipient="Jane@example.com")
    assert (mail["subject"] == "mine") is applies


def test_what_is_not_known_matches_nothing(tmp_path: Path) -> None:
    template_set = TemplateSet.model_validate(
        {"not": {"labels": {"tier": "3"}}, "path": [template_folder(tmp_path, "mine")]}
    )
    renderer = Renderer(CHANNEL_TYPES, template_sets=[template_set])
    unlabelled = FAILED.model_copy(update={"labels": {}})
    assert renderer.render("email", unlabelled)["subject"] == "mine"
    assert renderer.render("email", unlabelled.model_copy(update={"looked_up": False}))["subject"] != "mine"


def test_for_each_file_the_first_set_that_applies_wins_then_the_path_then_the_built_in(tmp_path: Path) -> None:
    first = TemplateSet(project=("flyte*",), path=(template_folder(tmp_path / "1", "first"),))
    second = TemplateSet(domain=("*",), path=(template_folder(tmp_path / "2", "second", "email/text.txt.j2"),))
    third = TemplateSet(launch_plan=("*",), path=(template_folder(tmp_path / "3", "third"),))
    common = template_folder(template_folder(tmp_path / "4", "common"), "common", "email/text.txt.j2")
    for template_sets, expected in (
        ([first, second, third], ("first", "second")),
        ([third, second, first], ("third", "second")),
        ([first], ("first", "common")),
        ([], ("common", "common")),
    ):
        mail = Renderer(CHANNEL_TYPES, [common], template_sets=template_sets).render("email", FAILED)
        assert (mail["subject"], mail["text"]) == expected
        assert mail["html"] == Renderer(CHANNEL_TYPES).render("email", FAILED)["html"]


def test_if_a_template_of_a_set_fails_the_built_in_one_is_used(tmp_path: Path) -> None:
    template_set = TemplateSet(recipient=("#*",), path=(template_folder(tmp_path, "{{ nonsense }}"),))
    renderer = Renderer(CHANNEL_TYPES, template_sets=[template_set])
    assert renderer.render("email", FAILED, recipient="#a") == Renderer(CHANNEL_TYPES).render("email", FAILED)
    (problem,) = renderer.check()
    assert (problem.file, problem.line) == (tmp_path / "email" / "subject.txt.j2", 1)
    with pytest.raises(TemplateError, match="nonsense"):
        renderer.draft("email", FAILED, recipient="#a")
    assert renderer.draft("email", FAILED, recipient="a") == Renderer(CHANNEL_TYPES).render("email", FAILED)


def test_a_template_set_without_a_condition_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="would apply to every message"):
        TemplateSet(path=(tmp_path,))
    with pytest.raises(ValidationError, match="path"):
        TemplateSet(project=("p",), path=())
    with pytest.raises(SettingsError, match=r"templates\.match\.0\.path: no such folder"):
        Renderer(CHANNEL_TYPES, template_sets=[TemplateSet(project=("p",), path=(tmp_path / "nowhere",))])


def test_a_contacts_folders_go_before_the_template_sets_and_its_zone_before_the_settings(tmp_path: Path) -> None:
    own = template_folder(tmp_path / "own", "own {{ finished.local }} {{ severity }}")
    common = template_folder(tmp_path / "2", "common", "email/text.txt.j2")
    template_set = TemplateSet(
        domain=("*",), path=(template_folder(template_folder(tmp_path / "1", "set"), "set", "email/text.txt.j2"),)
    )
    options: dict[str, Any] = {"template_sets": [template_set], "contact_folders": {"contacts.ml.templates": (own,)}}
    renderer = Renderer(CHANNEL_TYPES, [common], timezone=ZoneInfo("Europe/Berlin"), **options)
    contact: dict[str, Any] = {"folders": (own,), "zone": ZoneInfo("Asia/Tokyo"), "severity": "critical"}
    for _ in range(2):  # the variables of the last event are kept
        mail = renderer.render("email", FAILED, recipient="a@x.com", **contact)
        assert (mail["subject"], mail["text"]) == ("own 2026-11-20 18:14:21 UTC+09:00 critical", "set")
        mail = renderer.render("email", FAILED, recipient="b@x.com")
        assert (mail["subject"], mail["text"]) == ("set", "set")
        assert "UTC+01:00" in mail["html"]
    assert renderer.draft("email", FAILED, **contact)["subject"] == "own 2026-11-20 18:14:21 UTC+09:00 critical"
    assert renderer.check() == []
    template_folder(own, "{{ nonsense }}")
    (problem,) = Renderer(CHANNEL_TYPES, **options).check()
    assert problem.file == own / "email" / "subject.txt.j2"
    with pytest.raises(SettingsError, match=r"^contacts\.ml\.templates: no such folder: nowhere"):
        Renderer(CHANNEL_TYPES, contact_folders={"contacts.ml.templates": (Path("nowhere"),)})


def planned(renderer: Renderer, *rules: Rule) -> tuple[Sequence[Delivery], list[str]]:
    """The deliveries of FAILED with their content, and the list of recipients for which the renderer rendered."""
    rendered: list[str] = []

    def render(channel: str, event: Any, *, recipient: str = "", **more: Any) -> Any:
        rendered.append(recipient)
        return renderer.render(channel, event, recipient=recipient, **more)

    planner = Planner(
        {"email": str.lower, "slack": str.lower}, {}, grouped=frozenset({"email"}), template_set=renderer.template_set
    )
    contents = Contents(render, renderer.template_set)
    return contents.fill(FAILED, planner.plan(FAILED, rules, now=NOW)), rendered


def test_a_mail_is_split_by_template_set_and_each_set_is_rendered_once(tmp_path: Path) -> None:
    template_set = TemplateSet(recipient=("boss@*", "cto@*"), path=(template_folder(tmp_path, "for the boss"),))
    rules = [a_rule("a@x.com", "boss@x.com", "b@x.com", "cto@x.com"), a_rule("c@x.com")]
    mails, rendered = planned(Renderer(CHANNEL_TYPES, template_sets=[template_set]), *rules)
    usual = Renderer(CHANNEL_TYPES).render("email", FAILED)["subject"]
    assert [(mail.recipients, (mail.content or {})["subject"]) for mail in mails] == [
        (("a@x.com", "b@x.com"), usual),
        (("boss@x.com", "cto@x.com"), "for the boss"),
        (("c@x.com",), usual),
    ]
    assert rendered == ["a@x.com", "boss@x.com"]
    assert len({mail.key for mail in mails}) == 3


def test_without_recipient_conditions_a_list_stays_one_mail_and_a_channel_is_rendered_once(tmp_path: Path) -> None:
    template_set = TemplateSet(project=("flytesnacks",), path=(template_folder(tmp_path, "of the project"),))
    rules = [a_rule("a@x.com", "b@x.com"), a_rule("#a", "#b", channel="slack")]
    deliveries, rendered = planned(Renderer(CHANNEL_TYPES, template_sets=[template_set]), *rules)
    assert [delivery.recipients for delivery in deliveries] == [("a@x.com", "b@x.com"), ("#a",), ("#b",)]
    assert (deliveries[0].content or {})["subject"] == "of the project"
    assert rendered == ["a@x.com", "#a"]
