"""A launch plan's own mail template, as Flyte's documentation promises it and flyteadmin never did.

It comes from the author of a launch plan, not from the operator: thirteen variables in one pass, values
escaped for HTML, and nothing else is evaluated (flyteadmin `notifications/email.go` lists the variables).
"""

from __future__ import annotations

import re

from markupsafe import escape

from dispatcher.rendering.context import Context
from dispatcher.rendering.text import cut

LONGEST_ERROR = 8000
LONGEST = 50_000
"""Characters of a template; it came with a launch plan, so it may be anything."""
_VARIABLE = re.compile(r"\{\{ ?([a-z_.]{1,40}) ?\}\}")
_TAG = re.compile(r"<[^>]*>")
_BLOCK_END = re.compile(r"<(?:br|/p|/div|/tr|/li|/h\d)\b[^>]*>", re.IGNORECASE)


def substitute(template: str, context: Context) -> str:
    """The template's HTML with the variables filled in; an unknown one stays as it is written."""
    values = _values(context)
    return _VARIABLE.sub(lambda match: values.get(match[1], match[0]), template[:LONGEST])


def as_text(html: str) -> str:
    """The same for readers without HTML."""
    plain = _TAG.sub("", _BLOCK_END.sub("\n", html))
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&#34;", '"'), ("&#39;", "'"), ("&amp;", "&")):
        plain = plain.replace(entity, character)
    return plain.strip() + "\n"


def _values(context: Context) -> dict[str, str]:
    values = {name: getattr(context, name) for name in ("project", "domain", "name", "phase")}
    message = cut(context.error.message, LONGEST_ERROR)
    values["error"] = f" The execution failed with error: [{message}]." if message else ""
    for entity in ("workflow", "launch_plan"):
        for part in ("project", "domain", "name", "version"):
            values[f"{entity}.{part}"] = getattr(getattr(context, entity), part)
    return {name: str(escape(value)) for name, value in values.items()}
