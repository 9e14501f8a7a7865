"""A launch plan's own mail template: Flyte's thirteen variables are filled in, and nothing else is evaluated."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from channels.registry import CHANNEL_TYPES
from dispatcher.model.phase import Phase
from dispatcher.rendering.flyte_template import as_text
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event
from tests.support.builders import a_launch_plan, an_event

RENDERER = Renderer(CHANNEL_TYPES)
FLYTE_VARIABLES = (
    "project",
    "domain",
    "name",
    "phase",
    "error",
    *(
        f"{entity}.{part}"
        for entity in ("workflow", "launch_plan")
        for part in ("project", "domain", "name", "version")
    ),
)


def test_flytes_thirteen_variables_are_filled_in_with_and_without_spaces() -> None:
    assert len(FLYTE_VARIABLES) == 13
    template = "".join(f"{{{{ {name} }}}}|{{{{{name}}}}}|" for name in FLYTE_VARIABLES)
    html = RENDERER.render("email", sample_event(Phase.FAILED), template=template)["html"]
    values = html.split("|")[:-1]
    assert values[::2] == values[1::2]
    assert values[0] == "flytesnacks"
    assert values[6] == "failed"
    assert values[8].startswith(" The execution failed with error: [Traceback")
    assert "&lt;module&gt;" in values[8]
    assert "{{" not in html


def test_values_are_escaped_and_never_filled_in_or_evaluated() -> None:
    event = an_event(launch_plan=a_launch_plan(name="{{ domain }}"), error={"message": "<b>{{ name }}</b>"})
    html = RENDERER.render("email", event, template="{{ launch_plan.name }} {{ 7 * 7 }} {{error}}")["html"]
    assert html.startswith("{{ domain }} {{ 7 * 7 }} ")
    assert "[&lt;b&gt;{{ name }}&lt;/b&gt;]" in html


def test_the_error_of_an_aborted_execution_is_empty_as_in_flyteadmins_mails() -> None:
    cause = {"code": "ABORTED", "message": "Execution aborted by sam: wrong data", "kind": "USER"}
    html = RENDERER.render("email", an_event(Phase.ABORTED, error=cause), template="{{ phase }}.{{ error }}")["html"]
    assert html == "aborted."


@pytest.mark.parametrize("template", ["{{error}}" * 5000, "x" * 200_000, "{{ error }}" * 13 + "x" * 99_000])
def test_the_built_in_template_is_used_if_the_filled_in_one_is_too_large(template: str) -> None:
    event = an_event(error={"message": "x" * 90_000})
    with capture_logs() as logs:
        assert RENDERER.render("email", event, template=template) == RENDERER.render("email", event)
    assert (logs[0]["log_level"], logs[0]["execution"]) == ("error", event.key)


def test_a_template_without_text_gets_the_built_in_text_and_an_empty_one_the_built_in_mail() -> None:
    event = an_event()
    built_in = RENDERER.render("email", event)
    assert RENDERER.render("email", event, template="<img src='https://x/y.png'>")["text"] == built_in["text"]
    assert RENDERER.render("email", event, template=" \n") == built_in


def test_other_channels_ignore_the_template() -> None:
    event = an_event()
    assert RENDERER.render("slack", event, template="<b>x</b>") == RENDERER.render("slack", event)


def test_the_text_part_has_the_htmls_words_lines_and_links() -> None:
    html = (
        "<html><head><title>T</title><style>p {color: red}</style></head><body><h1>Failed&nbsp;&eacute;</h1>"
        "<p>See <a class=x href='https://runbook.example/1'>the runbook</a>,<br>then 1 &lt; 2.</p><script>x</script></body>"
    )
    assert as_text(html) == "Failed é\nSee the runbook (https://runbook.example/1),\nthen 1 < 2.\n"


fragments = st.sampled_from(
    [
        "<",
        ">",
        "<p>",
        "</p",
        "<br",
        "{{",
        "}}",
        "{{error}}",
        "{{ name }}",
        "\ud800",
        "\0",
        "<style>",
        "<a href=",
        "&",
        "é",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(fragments | st.text(max_size=5), max_size=30).map("".join), st.integers(1, 3000))
def test_every_template_renders_to_a_mail_that_can_be_sent(template: str, times: int) -> None:
    mail = RENDERER.render("email", sample_event(Phase.FAILED), template=template * times)
    assert CHANNEL_TYPES["email"].form.problems(mail) == []
