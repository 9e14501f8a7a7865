"""Turns a relay's reply into the error that a send raises."""

from __future__ import annotations

from collections.abc import Mapping

from channels.contract import EXCERPT, Answer, ChannelError, Later, Misconfigured, Never, UnknownRecipient
from channels.email.answers import Fault, Step, sort

CLOSING = 421


def answer(code: int, text: str) -> Answer:
    return Answer(str(code), excerpt(text))


def excerpt(text: str) -> str:
    """Return the start of the text, at most `EXCERPT` characters, as one line without unprintable characters."""
    line = " ".join(text.split())[:EXCERPT]
    return line if line.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in line)


def refusal_error(step: Step, code: int, text: str) -> ChannelError:
    """Return the error for a reply with which the relay refuses the sender, a recipient or the mail."""
    rule, reply = sort(step, code, text), _with_advice(step, code, text)
    if rule.fault is Fault.OURS:
        return Misconfigured(f"the relay takes nothing from us: {reply}", answer=answer(code, text))
    if code == CLOSING:
        return Later(f"the relay closes: {reply}", answer=answer(code, text), provider_wide=True)
    if rule.fault is Fault.LIMIT or 400 <= code < 500:
        return Later(f"the relay did not take the {step} yet: {reply}", answer=answer(code, text))
    refused = UnknownRecipient if step == "recipient" else Never
    return refused(f"the relay refused the {step}: {reply}", answer=answer(code, text))


def connection_refused(where: str, step: Step, code: int, text: str) -> Later:
    """Return the error for a reply with which the relay refuses the connection, EHLO or STARTTLS."""
    reply = _with_advice(step, code, text)
    if sort(step, code, text).fault is Fault.OURS:
        return Misconfigured(f"{where} takes nothing from us: {reply}", answer=answer(code, text))
    return Later(f"{where} does not take mail now: {reply}", answer=answer(code, text), provider_wide=True)


def login_refused(where: str, step: Step, code: int, text: str) -> Later:
    """Return the error for a refused login."""
    reason = f"{where} refused the login: {_with_advice(step, code, text)}"
    if sort(step, code, text).fault is Fault.OURS:
        return Misconfigured(reason, answer=answer(code, text))
    return Later(reason, answer=answer(code, text), provider_wide=True)


def most_retryable(failures: Mapping[str, ChannelError]) -> ChannelError:
    """Return one error for all failed recipients.

    It is the first `Later` if there is one, because the mail is then retried; else an error that contains all reasons.
    """
    for failure in failures.values():
        if isinstance(failure, Later):
            return failure
    first = next(iter(failures.values()))
    if len(failures) == 1:
        return first
    refused = UnknownRecipient if all(isinstance(one, UnknownRecipient) for one in failures.values()) else Never
    return refused(
        "; ".join(f"{recipient}: {failure.reason}" for recipient, failure in failures.items()), answer=first.answer
    )


def _with_advice(step: Step, code: int, text: str) -> str:
    advice = sort(step, code, text).advice
    return f"{code} {excerpt(text)}" + (f"; {advice}" if advice else "")
