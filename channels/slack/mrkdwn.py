"""Escapes and cuts texts in mrkdwn, Slack's markup language (docs.slack.dev, "Formatting text")."""

from __future__ import annotations

import re

from channels.common.text import ELLIPSIS, first_graphemes, fits
from channels.contract import Markup

_FENCE = "```"
_TORN = re.compile(r"(?:&[a-z]{0,3}|<[^<>]*)$")


def escape_mrkdwn(text: object) -> str:
    """Escape a value, so that data can't contain mentions, links or code fences."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace(_FENCE, "'''")


def cut_mrkdwn(text: str, limit: int) -> str:
    """Cut a text to `limit` UTF-16 units. The result contains no part of an entity or link, and no code block without
    its end.
    """
    if fits(text, limit):
        return text
    short = _without_torn_markup(text, limit)
    if short.count(_FENCE) % 2:
        short = _without_torn_markup(text, limit - len(_FENCE))
    closing = _FENCE if short.count(_FENCE) % 2 else ""
    return short + ELLIPSIS + closing


def unescape_mrkdwn(text: str) -> str:
    """Replace Slack's entities for `&`, `<` and `>` with these characters."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _without_torn_markup(text: str, limit: int) -> str:
    return _TORN.sub("", first_graphemes(text, limit - len(ELLIPSIS))).rstrip().rstrip("`")


MRKDWN = Markup(escape_mrkdwn, cut_mrkdwn, unescape_mrkdwn)
