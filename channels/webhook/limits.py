"""The limits on webhooks' messages. They are the dispatcher's choice."""

from __future__ import annotations

from channels.contract import ContentForm

BODY = 256 * 1024
"""Maximum number of bytes of a request's body."""

FORM = ContentForm(max_bytes=BODY)
