"""A mail's style sheet, written into its tags when a template is loaded: mail programs read no other reliably.

`email/style.css` holds for all HTML templates of the mail, partials too. css-inline knows HTML, but no Jinja:
so what is Jinja's is hidden from it, in a comment where it stands between tags (a table may hold comments,
but no text) and in a word elsewhere, and put back afterwards. A template's own `<style>` is inlined too and stays,
for the rules that can't be inlined, as those for dark mode.
"""

from __future__ import annotations

import re

import css_inline

_JINJA = re.compile(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
_HIDDEN = re.compile(r"<!--jinja(\d+)-->|jinja(\d+)end")
_TAG = re.compile(r"<(/?[a-zA-Z][a-zA-Z0-9]*)\b")
_WORDS = re.compile(
    r"<(title|style|textarea)\b.*?</\1\s*>|<[a-zA-Z/](?:[^<>\"']|\"[^\"]*\"|'[^']*')*>", re.DOTALL | re.IGNORECASE
)
"""Where a comment would be text: inside a tag, and in elements that hold only text."""
_BODY = re.compile(r"<body\b", re.IGNORECASE)
_ROWS = {"tr": "<table><tbody>|</tbody></table>", "td": "<table><tbody><tr>|</tr></tbody></table>"}


class NotInlined(Exception):
    """Read as HTML the template has other tags than those that are written in it."""


def inline(source: str, css: str) -> str:
    """The template with the rules in its tags; they go before a tag's own `style`, which wins.

    Raises NotInlined where a tag isn't closed in the template, or stands where HTML doesn't allow it.
    """
    if not css.strip() or "<" not in source:
        return source
    hidden: list[str] = []
    plain = _hide(source, hidden)
    tags = _TAG.findall(plain)
    if _BODY.search(plain):
        inlined = _inliner(css).inline(plain)
        start, end = _BODY.search(inlined), _BODY.search(plain)
        if start and end:  # the head stays as it is written, so that lines keep their numbers
            inlined = plain[: end.start()] + inlined[start.start() :]
    else:
        before, _, after = _ROWS.get(next(iter(tags), "").lower(), "<div>|</div>").partition("|")
        inlined = _inliner("").inline_fragment(f"{before}{plain}{after}", css)
        inlined = inlined.strip().removeprefix(before).removesuffix(after)
    if "tbody" not in tags:  # HTML puts it there by itself
        inlined = inlined.replace("<tbody>", "").replace("</tbody>", "")
    if [tag.lower() for tag in _TAG.findall(inlined)] != [tag.lower() for tag in tags]:
        raise NotInlined(
            "email/style.css has no effect here: a tag isn't closed in this file, or stands in the wrong place"
        )
    return _HIDDEN.sub(lambda found: hidden[int(found[1] or found[2])], inlined)


def _inliner(css: str) -> css_inline.CSSInliner:
    return css_inline.CSSInliner(extra_css=css, keep_style_tags=True, load_remote_stylesheets=False)


def _hide(source: str, hidden: list[str]) -> str:
    """Jinja's parts become `jinja0end`, and comments where they stand between tags."""

    def word(found: re.Match[str]) -> str:
        hidden.append(found[0])
        return f"jinja{len(hidden) - 1}end"

    worded = _JINJA.sub(word, source)
    pieces: list[str] = []
    end = 0
    for place in _WORDS.finditer(worded):
        pieces += [_commented(worded[end : place.start()]), place[0]]
        end = place.end()
    return "".join([*pieces, _commented(worded[end:])])


def _commented(text: str) -> str:
    return _HIDDEN.sub(lambda found: f"<!--jinja{found[2]}-->", text)
