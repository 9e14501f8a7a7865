"""A custom template replaces the built-in file of the same name. A bad one is reported; the message is still sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from channels.registry import BUILT_IN, CHANNEL_TYPES
from dispatcher.errors import SettingsError
from dispatcher.model.phase import Phase
from dispatcher.rendering.compiled import TemplateError
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from tests.support.builders import an_event

FAILED = sample_event(Phase.FAILED)


def renderer_with(folder: Path, file: str, text: str) -> Renderer:
    """A Renderer with one custom template."""
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text(text)
    return Renderer(CHANNEL_TYPES, [folder])


def test_the_built_in_templates_have_no_problem() -> None:
    assert Renderer(CHANNEL_TYPES).check() == []


def test_a_custom_template_replaces_the_built_in_one(tmp_path: Path) -> None:
    renderer = renderer_with(tmp_path, "email/subject.txt.j2", "{{ what }}: {{ phase }}")
    assert renderer.check() == []
    assert renderer.render("email", FAILED)["subject"] == "train.daily: failed"
    assert renderer.render("email", FAILED)["html"] == Renderer(CHANNEL_TYPES).render("email", FAILED)["html"]


def test_text_that_is_cut_twice_is_escaped_once(tmp_path: Path) -> None:
    renderer = renderer_with(tmp_path, "slack/message.yaml", "text: \"{{ 'a & b' | cut(50) | cut(40) }}\"")
    assert renderer.render("slack", FAILED)["text"] == "a &amp; b"


@pytest.mark.parametrize(
    ("file", "text", "line", "expected"),
    [
        ("email/subject.txt.j2", "x\n{{ nonsense }}", 2, "'nonsense' is undefined"),
        ("email/subject.txt.j2", "{{ 1 // 0 }}", 1, "by zero"),
        ("email/subject.txt.j2", "{{ labels.squad }}", 1, "no attribute 'squad'"),
        ("email/subject.txt.j2", " ", 0, "the mail has no subject"),
        ("email/text.txt.j2", "{% if %}", 1, "Expected an expression"),
        ("email/html.html.j2", "{% from 'email/nowhere.html.j2' import row %}", 0, "no such template"),
        ("email/html.html.j2", "{{ '&' * 30000 }}", 0, "Gmail would clip it"),
        ("email/html.html.j2", "{% include 'email/html.html.j2' %}", 1, "does it include or call itself?"),
        ("email/subject.txt.j2", "{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}", 0, "is nested too deeply"),
        ("webhook/body.yaml", "text: '{{ \"x\" * 9 }}'\nmore: [*x]", 2, "alias"),
        ("slack/message.yaml", "text: a\nattachments: [", 3, "broken YAML"),
        ("slack/message.yaml", "text: '{{ oops'", 1, "unexpected end of template"),
        ("slack/message.yaml", "text: a\nblocks:\n  - {type: header, text: '{{ launch_plan[7] }}'}", 3, "no element 7"),
        ("slack/message.yaml", "- a list", 1, "a mapping was expected"),
        ("slack/message.yaml", "", 1, "one YAML document was expected"),
        ("slack/message.yaml", "text: '{{ \"\" }}'", 1, "everything in it came out empty"),
        ("slack/message.yaml", "text: a\n1: b", 2, "the key 1 is not text: quote it"),
        ("slack/message.yaml", "text: a\nblocks:\n  - {since: 2026-11-20}", 3, "since: a date where text is expected"),
        (
            "pagerduty/event.yaml",
            "{event_action: trigger, payload: {summary: x, source: y, severity: bad}}",
            0,
            "severity",
        ),
    ],
)
def test_a_template_that_cannot_work_is_reported_with_its_line_and_the_built_in_one_is_used(
    tmp_path: Path, file: str, text: str, line: int, expected: str
) -> None:
    renderer = renderer_with(tmp_path, file, text)
    channel = file.split("/", maxsplit=1)[0]

    problem = renderer.check()[0]
    assert problem.line == line
    assert expected in problem.message
    if "nowhere" not in text and expected != "the mail has no subject":
        assert problem.file == tmp_path / file

    event = an_event()
    with capture_logs() as logs:
        assert renderer.render(channel, event) == Renderer(CHANNEL_TYPES).render(channel, event)
    assert [(entry["log_level"], entry["channel"], entry["execution"]) for entry in logs] == [
        ("error", channel, event.key)
    ]
    assert expected in logs[0]["reason"]


@pytest.mark.parametrize(
    ("file", "text", "line", "expected"),
    [
        ("email/text.txt.j2", "a\n{% if phase == 'never' %}\n{{ proyect }}\n{% endif %}", 3, "did you mean 'project'?"),
        ("email/text.txt.j2", "{{ name }}{% if not error.sumary %}x{% endif %}", 1, "did you mean 'error.summary'?"),
        (
            "slack/message.yaml",
            "text: a\nblocks:\n- when: ''\n  text: '{{ durration }}'",
            4,
            "did you mean 'duration'?",
        ),
    ],
)
def test_an_unknown_name_is_reported_in_a_branch_that_no_sample_reaches(
    tmp_path: Path, file: str, text: str, line: int, expected: str
) -> None:
    (problem,) = renderer_with(tmp_path, file, text).check()
    assert (problem.file, problem.line) == (tmp_path / file, line)
    assert expected in problem.message


def test_names_that_a_template_defines_are_not_reported(tmp_path: Path) -> None:
    text = "{% set error = {'sumary': 1} %}{% for error in range(2) %}{{ error.any }}{% endfor %}{{ loopy() }}"
    text += "{% macro loopy() %}{{ what }}{% endmacro %}"
    assert [
        problem.message
        for problem in renderer_with(tmp_path, "email/text.txt.j2", text).check()
        if "error." in problem.message
    ] == []


def test_every_file_with_a_problem_is_reported(tmp_path: Path) -> None:
    renderer_with(tmp_path / "a", "email/text.txt.j2", "{{ nonsense }}")
    renderer_with(tmp_path / "b", "email/subject.txt.j2", "{% if %}")
    renderer = Renderer(
        CHANNEL_TYPES,
        [
            tmp_path / "a",
            tmp_path / "b",
        ],
    )
    assert sorted(problem.file.name for problem in renderer.check()) == ["subject.txt.j2", "text.txt.j2"]


def test_a_draft_uses_the_custom_template_even_if_the_provider_would_refuse_the_message(tmp_path: Path) -> None:
    renderer = renderer_with(tmp_path / "a", "slack/message.yaml", "text: hi\nblocks: [{type: header}]")
    assert renderer.draft("slack", FAILED) == {"text": "hi", "blocks": [{"type": "header"}]}
    assert renderer.render("slack", FAILED) == Renderer(CHANNEL_TYPES).render("slack", FAILED)

    broken = renderer_with(tmp_path / "b", "slack/message.yaml", "text: '{{ nonsense }}'")
    with pytest.raises(TemplateError, match=r"message\.yaml:1: 'nonsense' is undefined"):
        broken.draft("slack", FAILED)


@pytest.mark.parametrize("channel", BUILT_IN)
def test_a_draft_with_the_built_in_templates_equals_the_message_to_send(channel: str) -> None:
    assert Renderer(CHANNEL_TYPES).draft(channel, FAILED) == Renderer(CHANNEL_TYPES).render(channel, FAILED)


def test_a_template_has_no_access_to_python_or_files(tmp_path: Path) -> None:
    for number, escape in enumerate(
        (
            "{{ error.__class__.__mro__ }}",
            "{{ ''.__class__ }}",
            "{{ error['__class__'] }}",
            "{{ range(10 ** 9) | list }}",
            "{{ labels.clear() }}",
            "{{ labels.__class__ }}",
            "{{ error.summary.__class__ }}",
            "{% macro shown() %}{% endmacro %}{{ shown._func.__globals__ }}",
            "{% macro shown() %}{{ ''.__class__ }}{% endmacro %}{{ shown() }}",
            "{% include '../../pyproject.toml' %}",
        )
    ):
        renderer = renderer_with(tmp_path / str(number), "email/subject.txt.j2", escape)
        assert renderer.check()
        assert renderer.render("email", FAILED) == Renderer(CHANNEL_TYPES).render("email", FAILED)


def test_a_missing_template_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such folder"):
        Renderer(CHANNEL_TYPES, [tmp_path / "nowhere"])
