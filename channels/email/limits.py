"""The limits on mails."""

from __future__ import annotations

from collections.abc import Iterator

from channels.contract import Content, ContentForm, MailLimits

SUBJECT = 200
"""Maximum length of a subject. RFC 5322 (2.1.1) allows 998 characters in a line, but mail programs show fewer."""
TEXT = 60_000
HTML = 100_000
"""Maximum number of bytes of the HTML part. Gmail cuts off mails that are larger than 102 kB."""


def lint(content: Content) -> Iterator[str]:
    subject, text, html = (str(content.get(part, "")) for part in ("subject", "text", "html"))
    if not subject.strip():
        yield "the mail has no subject"
    if any(character in subject for character in "\r\n\0"):
        yield "the subject contains a line break"
    if not text.strip():
        yield "the mail has no text part"
    if not html.strip():
        yield "the mail has no HTML part"
    if len(html.encode()) > HTML:
        yield f"the HTML part is larger than {HTML} bytes: Gmail would clip it"


FORM = ContentForm(mail=MailLimits(SUBJECT, TEXT, HTML), lint=lint)
