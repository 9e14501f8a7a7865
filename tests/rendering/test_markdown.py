"""Values in the elements that Teams reads as Markdown, against a CommonMark parser."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from channels.registry import CHANNEL_TYPES
from channels.teams.markdown import escape_markdown, unescape
from dispatcher.model.phase import Phase
from dispatcher.rendering.renderer import Renderer
from dispatcher.rendering.samples import sample_event

COMMONMARK = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
"""With HTML and tables, which Teams doesn't support today."""
TEXTS = {"inline", "text", "softbreak", "hardbreak", "paragraph_open", "paragraph_close", "text_special"}


def shown(markdown: str) -> str:
    """The text that a reader sees, in words. Fails if the Markdown contains anything but text."""
    tokens = [token for block in COMMONMARK.parse(markdown) for token in (block, *(block.children or ()))]
    assert {token.type for token in tokens} <= TEXTS, markdown
    return " ".join("".join(_content(token) for token in tokens).split())


def _content(token: Token) -> str:
    return "" if token.type == "inline" else token.content if "text" in token.type else "\n"


@pytest.mark.parametrize(
    "text",
    [
        "<https://evil.example|click>",
        "<https://evil.example>",
        "[click](https://evil.example)",
        "&lt;b&gt; &#60;i&#62; &nbsp;",
        "<b>bold</b> <at>team</at>",
        "- a",
        "  + a\n  + b",
        "* a\n* b",
        "1. a",
        "23) b",
        "one\r2. two\r3. three",
        "# heading",
        "heading\n===",
        "heading\n---",
        "- - -",
        "> quotation",
        "    code\n\tcode",
        "```\ncode\n```",
        "~~~\ncode",
        "a | b\n--|--\n1 | 2",
        "| a |\n|:-:|\n",
        "**bold** _italic_ ~~gone~~ `code`",
        "back\\slash\\\nbreak",
        "1.10.2",
        "a & b < c",
    ],
)
def test_a_value_is_shown_as_it_is(text: str) -> None:
    assert shown(escape_markdown(text)) == " ".join(text.split())
    assert shown(f"Label: {escape_markdown(text)}") == " ".join(f"Label: {text}".split())


@given(st.text(alphabet="-+*#=>|:_~`\\<>[]()&;!1. \t\r\nax", max_size=40))
@example("\n    - a")
@example("a\n    b")
def test_any_value_is_shown_as_it_is(text: str) -> None:
    assert shown(escape_markdown(text)) == " ".join(text.split())
    assert unescape(escape_markdown(text)).split() == text.split(), "previews show the same"


def test_a_principal_and_a_label_are_text_on_the_card() -> None:
    hostile = "<https://evil.example|click>"
    event = sample_event(Phase.FAILED).model_copy(update={"principal": hostile, "labels": {"team": "&lt;b&gt;"}})
    (facts,) = [
        part["facts"] for part in Renderer(CHANNEL_TYPES).render("teams", event)["body"] if part["type"] == "FactSet"
    ]
    values = {fact["title"]: shown(fact["value"]) for fact in facts}
    assert (values["Started by"], values["Labels"]) == (hostile, "team: &lt;b&gt;")
