"""The mail's style sheet is inlined into the tags, and Jinja's expressions are unchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from channels.registry import CHANNEL_TYPES
from dispatcher.model.phase import TERMINAL, Phase
from dispatcher.rendering.folders import built_in_folder
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from dispatcher.rendering.styles import NotInlined, inline

CSS = ".a { color: red } .b { margin: 0 }"
FAILED = sample_event(Phase.FAILED)


@pytest.mark.parametrize(
    ("source", "inlined"),
    [
        ('<p class="a">{{ x }}</p>', '<p class="a" style="color: red;">{{ x }}</p>'),
        ("plain {{ text }}", "plain {{ text }}"),
        ('{% if a < b %}<b class="a">&amp;</b>{% endif %}', '{% if a < b %}<b class="a" style="color: red;">&amp;</b>{% endif %}'),
        ('<i class="a" style="color: {{ c }}"></i>', '<i class="a" style="color: {{ c }}"></i>'),
        ('<a class="a" href="{{ "a>b" }}">y</a>', '<a class="a" href="{{ "a>b" }}" style="color: red;">y</a>'),
        ('{% macro m() %}<tr><td class="b">x</td></tr>{% endmacro %}', '{% macro m() %}<tr><td class="b" style="margin: 0;">x</td></tr>{% endmacro %}'),
        ('<td class="b">{{ x }}</td>', '<td class="b" style="margin: 0;">{{ x }}</td>'),
        ('<table>{% for r in rows %}<tr><td class="a">{{ r }}</td></tr>{% endfor %}{{ more() }}</table>',
         '<table>{% for r in rows %}<tr><td class="a" style="color: red;">{{ r }}</td></tr>{% endfor %}{{ more() }}</table>'),
    ],
)  # fmt: skip
def test_rules_are_inlined_into_tags_and_jinja_is_unchanged(source: str, inlined: str) -> None:
    assert inline(source, CSS) == inlined


@pytest.mark.parametrize(
    "source", ["<table class='a'>", "</td></tr>", "<table><p class='a'>moved</p></table>", "<b><i></b></i>"]
)
def test_html_that_a_browser_would_repair_is_not_inlined(source: str) -> None:
    with pytest.raises(NotInlined):
        inline(source, CSS)


def test_the_built_in_mail_has_inlined_styles_and_unchanged_line_numbers() -> None:
    html = str(Renderer(CHANNEL_TYPES).render("email", FAILED)["html"])
    assert 'class="title strong" style="' in html
    assert 'style="color: #616061;padding: 3px 12px 3px 0;' in html
    assert "@media (prefers-color-scheme: dark)" in html
    unstyled = [tag for tag in re.findall(r'<[a-z]+ [^>]*class="[^>]*>', html) if "style=" not in tag]
    assert unstyled == []
    source = (built_in_folder() / "email" / "html.html.j2").read_text()
    inlined = inline(source, (built_in_folder() / "email" / "style.css").read_text())
    line = source[: source.index("error.frames")].count("\n")
    assert inlined[: inlined.index("error.frames")].count("\n") == line


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_the_built_in_mail_loads_nothing_and_supports_light_and_dark(phase: Phase) -> None:
    html = str(Renderer(CHANNEL_TYPES).render("email", sample_event(phase))["html"])
    assert not re.search(r"<(img|link|script)\b|url\(|@import", html)
    assert '<meta name="color-scheme" content="light dark">' in html
    assert len(html.encode()) < 20_000


def test_a_custom_style_sheet_changes_the_built_in_mail(tmp_path: Path) -> None:
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "style.css").write_text(".button { background: #00aa00 }")
    renderer = Renderer(CHANNEL_TYPES, [tmp_path])
    assert renderer.check() == []
    html = str(renderer.render("email", FAILED)["html"])
    assert 'class="button" href="https://flyte.example.com' in html
    assert 'style="background: #00aa00;"' in html


def test_a_custom_template_that_cannot_be_inlined_is_used_and_reported(tmp_path: Path) -> None:
    (tmp_path / "email").mkdir()
    (tmp_path / "email" / "top.html.j2").write_text("<html><body><table class='page'>")
    (tmp_path / "email" / "html.html.j2").write_text(
        "{% include 'email/top.html.j2' %}<tr><td>{{ what }}</td></tr></table></body></html>"
    )
    renderer = Renderer(CHANNEL_TYPES, [tmp_path])
    assert renderer.draft("email", FAILED)["html"].startswith("<html><body><table class='page'>")
    assert renderer.check() == []
    assert {problem.file.name for problem in renderer.mail_client_problems()} == {"top.html.j2", "html.html.j2"}
    assert all("email/style.css has no effect here" in problem.message for problem in renderer.mail_client_problems())
