"""Writes the rules of a mail's style sheet into the tags of its HTML when a template is loaded.

Mail programs support `style` attributes more reliably than any other CSS. `email/style.css` applies to all HTML
templates of the mail, also to partials. The library css-inline parses HTML but not Jinja. So Jinja's expressions are
replaced with placeholders before the call and restored after it. A placeholder between tags is a comment, because a
table may contain comments but no text. Elsewhere a placeholder is a word. A template's own `<style>` is inlined and
also kept, because some rules can't be inlined, such as the rules for dark mode.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import css_inline

_JINJA = re.compile(r"\{#.*?(?:#\}|\Z)|\{%.*?(?:%\}|\Z)|\{\{.*?(?:\}\}|\Z)", re.DOTALL)
_PLACEHOLDER = re.compile(r"<!--jinja(\d+)-->|jinja(\d+)end")
_TAG = re.compile(r"<(/?[a-zA-Z][a-zA-Z0-9]*)\b")
_NO_COMMENT = re.compile(
    r"<(title|style|textarea)\b.*?(?:</\1\s*>|\Z)|<[a-zA-Z/](?:[^<>\"']|\"[^\"]*\"|'[^']*')*+>",
    re.DOTALL | re.IGNORECASE,
)
"""Matches the places where a comment would be read as text: inside a tag, and in elements that contain only text."""
_BODY = re.compile(r"<body\b", re.IGNORECASE)
_TABLE_AROUND = {"tr": "<table><tbody>|</tbody></table>", "td": "<table><tbody><tr>|</tr></tbody></table>"}
"""Mapping from a fragment's first tag to the table that must surround the fragment so that the HTML is valid. `|` marks
the fragment's place in the table."""


class NotInlined(Exception):
    """The HTML parser would change the template's tags, so inlining would damage the template."""


def inline(source: str, css: str) -> str:
    """Return the template with the style sheet's rules written into its tags. A tag's own `style` wins over the style
    sheet.

    Raises NotInlined if a tag isn't closed in the template, or HTML doesn't allow the tag in its place.
    """
    if not css.strip() or "<" not in source:
        return source
    hidden: list[str] = []
    plain = _hide(source, hidden)
    tags = _TAG.findall(plain)
    if _BODY.search(plain):
        inlined = _inliner(css).inline(plain)
        start, end = _BODY.search(inlined), _BODY.search(plain)
        if start and end:  # keep the original text before <body>, so that line numbers stay the same
            inlined = plain[: end.start()] + inlined[start.start() :]
    else:
        before, _, after = _TABLE_AROUND.get(next(iter(tags), "").lower(), "<div>|</div>").partition("|")
        inlined = _inliner("").inline_fragment(f"{before}{plain}{after}", css)
        inlined = inlined.strip().removeprefix(before).removesuffix(after)
    if "tbody" not in tags:  # remove the <tbody> that the parser adds to tables without it
        inlined = inlined.replace("<tbody>", "").replace("</tbody>", "")
    if [tag.lower() for tag in _TAG.findall(inlined)] != [tag.lower() for tag in tags]:
        raise NotInlined(
            "email/style.css has no effect here: a tag isn't closed in this file, or is in the wrong place"
        )
    return _PLACEHOLDER.sub(lambda found: hidden[int(found[1] or found[2])], inlined)


def _inliner(css: str) -> css_inline.CSSInliner:
    import css_inline  # noqa: PLC0415 - takes 2 MiB, which a service without mails does not need

    return css_inline.CSSInliner(extra_css=css, keep_style_tags=True, load_remote_stylesheets=False)


def _hide(source: str, hidden: list[str]) -> str:
    """Replace each Jinja expression with a placeholder: `<!--jinja0-->` between tags, `jinja0end` elsewhere. Append the
    original expressions to `hidden`.
    """

    def placeholder(found: re.Match[str]) -> str:
        hidden.append(found[0])
        return f"jinja{len(hidden) - 1}end"

    replaced = _JINJA.sub(placeholder, source)
    pieces: list[str] = []
    end = 0
    for place in _NO_COMMENT.finditer(replaced):
        pieces += [_as_comments(replaced[end : place.start()]), place[0]]
        end = place.end()
    return "".join([*pieces, _as_comments(replaced[end:])])


def _as_comments(text: str) -> str:
    return _PLACEHOLDER.sub(lambda found: f"<!--jinja{found[2]}-->", text)
