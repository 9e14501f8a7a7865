"""Interprets a relay's reply: which error to raise, and what the operator or the rule's author should change.

Reply codes are defined in RFC 5321, 4.2.3, and in RFC 4954 for logins. Some replies also contain an enhanced status
code (RFC 3463).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from channels.contract import EXCERPT, Answer, ChannelError, Later, Never

_ENHANCED_CODE = re.compile(r"\b[245]\.\d{1,3}\.\d{1,3}\b")
CLOSING = 421
LOGIN_FAILED = frozenset({530, 534, 535, 538})
"""Reply codes which mean that the login is missing or wrong. The mail is retried, because the operator can fix the
login in the settings."""
_ADVICE = {
    "login": {
        454: "its login service is out of order",
        504: "it doesn't take this mechanism: set channels.email.auth",
        534: "it wants another mechanism, or a password made for applications",
        535: "check channels.email.username and password",
        538: "it wants the login encrypted: set channels.email.security to starttls or tls",
    },
    "sender": {
        452: "it is short of space",
        530: "it wants a login, or STARTTLS first: see channels.email.username and security",
        535: "check channels.email.username and password",
        550: "check channels.email.from and envelope_from: the login must be allowed to use them",
        552: "the mail is larger than it takes: shorten the template, or raise the relay's limit",
        553: "check channels.email.from and envelope_from: the login must be allowed to use them",
        555: "it doesn't know a parameter that it had offered itself: tell its operator",
    },
    "recipient": {
        450: "its mailbox is busy, or it is greylisted",
        451: "it is greylisted, or the relay can't check it now",
        452: "too many recipients, or its mailbox is full",
        501: "the address is malformed: fix it in the rule",
        550: "no such mailbox: fix the address in the rule",
        551: "the mailbox has moved: fix the address in the rule",
        552: "too many recipients, or its mailbox is full",
        553: "the address is not allowed: fix it in the rule",
        554: "the relay doesn't carry mail for this address",
    },
    "mail": {
        552: "the mail is larger than it takes: shorten the template, or raise the relay's limit",
        550: "its filter wants neither this sender nor this content: ask its operator",
        554: "its filter wants neither this sender nor this content: ask its operator",
    },
}
_ENHANCED_ADVICE = {
    ("sender", "5.2.2"): "its mailbox is full",
    ("recipient", "5.2.1"): "the mailbox is switched off: fix the address in the rule",
    ("recipient", "5.2.2"): "the mailbox is full",
    ("recipient", "5.7.1"): "the relay may not carry mail there for us: let it, or log in",
    ("mail", "5.2.2"): "the mailbox is full",
    ("sender", "5.7.60"): "the login may not send as channels.email.from",
}
"""Mapping from a pair (what was refused, enhanced status code) to advice, which is more specific than the advice for
the reply code."""


def answer(code: int, text: str) -> Answer:
    return Answer(str(code), excerpt(text))


def excerpt(text: str) -> str:
    """Return the start of the text, at most `EXCERPT` characters, as one line without unprintable characters."""
    line = " ".join(text.split())[:EXCERPT]
    return line if line.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in line)


def code_and_text(code: int, text: str) -> str:
    return f"{code} {excerpt(text)}"


def refusal_error(what: str, code: int, text: str) -> ChannelError:
    """Return the error for a reply with which the relay refuses `what`: the `sender`, a `recipient` or the `mail`."""
    reply = f"{code_and_text(code, text)}{_advice(what, code, text)}"
    if code == CLOSING:
        return Later(f"the relay closes: {reply}", answer=answer(code, text), provider_wide=True)
    if code in LOGIN_FAILED:
        return Later(f"the relay takes nothing from us: {reply}", answer=answer(code, text), provider_wide=True)
    # After a RCPT command, 552 means too many recipients. It must be treated like 452 (RFC 5321, 4.5.3.1.10).
    if 400 <= code < 500 or (what == "recipient" and code == 552):
        return Later(f"the relay did not take the {what} yet: {reply}", answer=answer(code, text))
    return Never(f"the relay refused the {what}: {reply}", answer=answer(code, text))


def login_refused(where: str, code: int, text: str, *, token: bool) -> Later:
    """Return the error for a refused login. The mail is retried, because the operator can fix the login.

    `token`: true if the login used a token instead of a password.
    """
    advice = _advice("login", code, text)
    if token and code == 535:
        advice = "; check channels.email.oauth: its scope, and that the mailbox grants access to it"
    reply = f"{code_and_text(code, text)}{advice}"
    return Later(f"{where} refused the login: {reply}", answer=answer(code, text), provider_wide=True)


def most_retryable(failures: Mapping[str, ChannelError]) -> ChannelError:
    """Return one error for all failed recipients.

    It is the first `Later` if there is one, because the mail is then retried; else a `Never` that contains all reasons.
    """
    for failure in failures.values():
        if isinstance(failure, Later):
            return failure
    first = next(iter(failures.values()))
    if len(failures) == 1:
        return first
    return Never(
        "; ".join(f"{recipient}: {failure.reason}" for recipient, failure in failures.items()), answer=first.answer
    )


def _advice(what: str, code: int, text: str) -> str:
    enhanced_code = _ENHANCED_CODE.search(text)
    specific = _ENHANCED_ADVICE.get((what, enhanced_code[0])) if enhanced_code is not None else None
    advice = specific or _ADVICE[what].get(code)
    return f"; {advice}" if advice else ""
