"""Fills in a launch plan's own mail template. Flyte documents such templates, but flyteadmin ignores them.

The launch plan's author is not trusted. So only thirteen variables are replaced, in one pass, and their values are
escaped for HTML. Nothing else in the template is evaluated. Source of the variables: flyteadmin's
`notifications/email.go`.
"""

from __future__ import annotations

import re
from html import unescape

from markupsafe import escape

from channels.common.text import cut
from dispatcher.rendering.context import Context
from dispatcher.rendering.text import clean

LONGEST_ERROR = 8000
_NAMES = frozenset(
    {
        *("project", "domain", "name", "phase", "error"),
        *(
            f"{entity}.{part}"
            for entity in ("workflow", "launch_plan")
            for part in ("project", "domain", "name", "version")
        ),
    }
)
"""The names of the thirteen variables that a launch plan's mail template can use."""
_VARIABLE = re.compile(r"\{\{ ?([a-z_.]{1,40}) ?\}\}")
_JINJA_OPENING = re.compile(r"\{(?=[{%#]|\Z)")
_JINJA_ERROR = (
    f'" The execution failed with error: [" ~ (error.message | cut({LONGEST_ERROR})) ~ "]."'
    ' if error.message and phase != "aborted" else ""'
)
_BRACKETS = re.compile(r"<([^<>]*)>")
_TAG_NAME = re.compile(r"/?[a-z][a-z0-9]*|!", re.IGNORECASE)
_HREF = re.compile(r"\bhref\s*=\s*[\"']?(https?://[^\s\"'<>]+)", re.IGNORECASE)
_INVISIBLE = frozenset({"head", "script", "style", "title"})
_LINE_BREAKS = frozenset(
    {"br", "hr", "/p", "/div", "/tr", "/li", "/pre", "/table", *(f"/h{level}" for level in range(1, 7))}
)
_BLANKS = re.compile(r"[ \t\xa0]+")
_WHITE_SPACE = re.compile(r"\s{2,}")


class TooLarge(Exception):
    """The filled-in template is larger than a mail's HTML may be."""


def substitute(template: str, context: Context, *, budget: int) -> str:
    """Fill in the template's variables and return the HTML. A name in braces that is no known variable is left
    unchanged.

    Raises TooLarge as soon as the result has more than `budget` bytes.
    """
    template, values = clean(template), _values(context)
    pieces: list[str] = []
    end = 0
    for variable in _VARIABLE.finditer(template):
        for piece in (template[end : variable.start()], values.get(variable[1], variable[0])):
            budget -= len(piece.encode())
            pieces.append(piece)
        if budget < 0:
            raise TooLarge
        end = variable.end()
    if len(template[end:].encode()) > budget:
        raise TooLarge
    return "".join([*pieces, template[end:]])


def as_text(html: str) -> str:
    """Convert HTML to plain text, for mail programs that show no HTML. Returns an empty text if the HTML contains no
    text.
    """
    pieces: list[str] = []
    invisible = href = ""
    end = 0
    for tag in _BRACKETS.finditer(html):
        found = _TAG_NAME.match(tag[1])
        if found is None:
            continue
        name = found[0].lower()
        if not invisible:
            pieces.append(html[end : tag.start()])
        if invisible:
            invisible = "" if name == f"/{invisible}" else invisible
        elif name in _INVISIBLE:
            invisible = name
        elif name in _LINE_BREAKS:
            pieces.append("\n")
        elif name == "a":
            link = _HREF.search(tag[1])
            href = f" ({link[1]})" if link else ""
        elif name == "/a":
            pieces.append(href)
        end = tag.end()
    if not invisible:
        pieces.append(html[end:])
    text = _WHITE_SPACE.sub(_without_gap, _BLANKS.sub(" ", clean(unescape("".join(pieces))))).strip()
    return f"{text}\n" if text else ""


def _without_gap(white_space: re.Match[str]) -> str:
    """Return one empty line for white space with at least one empty line, and other white space unchanged."""
    return "\n\n" if white_space[0].count("\n") > 1 else white_space[0]


def as_jinja(template: str) -> str:
    """Convert a launch plan's mail template to a Jinja template. Flyte's variables become Jinja variables; everything
    else becomes plain text.
    """
    pieces: list[str] = []
    end = 0
    for variable in _VARIABLE.finditer(template):
        if variable[1] in _NAMES:
            value = _JINJA_ERROR if variable[1] == "error" else variable[1]
            pieces += [_plain_text(template[end : variable.start()]), f"{{{{ {value} }}}}"]
            end = variable.end()
    return "".join([*pieces, _plain_text(template[end:])])


def _plain_text(text: str) -> str:
    return _JINJA_OPENING.sub("{{ '{' }}", text)


def _values(context: Context) -> dict[str, str]:
    values = {name: getattr(context, name) for name in ("project", "domain", "name", "phase")}
    # An event of an aborted execution has no error, so flyteadmin's mail says nothing; FlyteAdmin supplies the cause.
    message = cut(context.error.message, LONGEST_ERROR) if context.phase != "aborted" else ""
    values["error"] = f" The execution failed with error: [{message}]." if message else ""
    for entity in ("workflow", "launch_plan"):
        for part in ("project", "domain", "name", "version"):
            values[f"{entity}.{part}"] = getattr(getattr(context, entity), part)
    return {name: str(escape(value)) for name, value in values.items()}
