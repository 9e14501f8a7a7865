"""What a relay's words mean: the kind of error, and what the operator or the user should change.

Codes by RFC 5321 (4.2.3), RFC 4954 (logins) and RFC 3463 (the enhanced codes in their text).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from channels.contract import EXCERPT, Answer, ChannelError, Later, Never

_ENHANCED = re.compile(r"\b[245]\.\d{1,3}\.\d{1,3}\b")
CLOSING = 421
WANTS_A_LOGIN = frozenset({530, 534, 535, 538})
"""The login is what is wrong: mended in the settings, so the mail waits."""
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
        501: "the address is malformed: mend it in the rule",
        550: "no such mailbox: mend the address in the rule",
        551: "the mailbox has moved: mend the address in the rule",
        552: "too many recipients, or its mailbox is full",
        553: "the address is not allowed: mend it in the rule",
        554: "the relay doesn't carry mail for this address",
    },
    "mail": {
        552: "the mail is larger than it takes: shorten the template, or raise the relay's limit",
        550: "its filter wants neither this sender nor this content: ask its operator",
        554: "its filter wants neither this sender nor this content: ask its operator",
    },
}
_REFINED = {
    ("sender", "5.2.2"): "its mailbox is full",
    ("recipient", "5.2.1"): "the mailbox is switched off: mend the address in the rule",
    ("recipient", "5.2.2"): "the mailbox is full",
    ("recipient", "5.7.1"): "the relay may not carry mail there for us: let it, or log in",
    ("mail", "5.2.2"): "the mailbox is full",
    ("sender", "5.7.60"): "the login may not send as channels.email.from",
}
"""Where the enhanced code says more than the code."""


def answer(code: int, text: str) -> Answer:
    return Answer(str(code), excerpt(text))


def excerpt(text: str) -> str:
    """One line that any terminal and any database takes."""
    words = " ".join(text.split())[:EXCERPT]
    return words if words.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in words)


def said(code: int, text: str) -> str:
    return f"{code} {excerpt(text)}"


def refused(what: str, code: int, text: str) -> ChannelError:
    """The error for a refusal of the `sender`, a `recipient` or the `mail` itself."""
    words = f"{said(code, text)}{_because(what, code, text)}"
    if code == CLOSING:
        return Later(f"the relay closes: {words}", answer=answer(code, text), everyone=True)
    if code in WANTS_A_LOGIN:
        return Later(f"the relay takes nothing from us: {words}", answer=answer(code, text), everyone=True)
    # 552 to a recipient means too many of them, and is to be taken for 452 (RFC 5321, 4.5.3.1.10).
    if 400 <= code < 500 or (what == "recipient" and code == 552):
        return Later(f"the relay did not take the {what} yet: {words}", answer=answer(code, text))
    return Never(f"the relay refused the {what}: {words}", answer=answer(code, text))


def login_refused(where: str, code: int, text: str, *, token: bool) -> Later:
    """A login that failed is mended in the settings or at the relay, so the mail waits."""
    words = f"{said(code, text)}{_because('login', code, text)}"
    if token and code == 535:
        words = f"{said(code, text)}; check channels.email.oauth: its scope, and that the mailbox grants access to it"
    return Later(f"{where} refused the login: {words}", answer=answer(code, text), everyone=True)


def most_hopeful(failures: Mapping[str, ChannelError]) -> ChannelError:
    """All recipients failed: one that may still succeed speaks for all, else all speak."""
    for failure in failures.values():
        if isinstance(failure, Later):
            return failure
    first = next(iter(failures.values()))
    if len(failures) == 1:
        return first
    return Never(
        "; ".join(f"{recipient}: {failure.reason}" for recipient, failure in failures.items()), answer=first.answer
    )


def _because(what: str, code: int, text: str) -> str:
    found = _ENHANCED.search(text)
    refined = _REFINED.get((what, found[0])) if found is not None else None
    advice = refined or _ADVICE[what].get(code)
    return f"; {advice}" if advice else ""
