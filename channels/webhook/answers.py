"""What a receiver's answer means for a message, and what an operator can do about it.

The meaning of each HTTP status follows RFC 9110, 15, RFC 8470, 5.2 (425) and RFC 6585, 4 (429).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from channels.common.retry_after import retry_after
from channels.common.secret import mask, secrets_of_url
from channels.contract import EXCERPT, Answer, ChannelError, InDoubt, Later, Misconfigured, Never

if TYPE_CHECKING:
    from channels.common.http import Response


class Fault(Enum):
    """Who must act before the message can be sent. It decides about the outcome."""

    BUSY = "busy"
    """The receiver takes no message for now: the same message is sent again later."""
    OURS = "ours"
    """Something refuses the dispatcher itself, whatever it sends: the message waits until a person has acted."""
    TARGET = "target"
    """The target's URL, secret or receiver must be changed: the message is dead."""
    MESSAGE = "message"
    """The receiver refuses this message: it is dead."""
    UNKNOWN = "unknown"
    """The message may have arrived: the same message is sent again."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of a table of answers."""

    statuses: Container[int]
    """The HTTP statuses that the row applies to."""
    fault: Fault
    reason: str
    """The reason, with `{name}` for the target and `{status}` for the status."""
    words: str = ""
    """The row applies only if the answer's text contains these words."""


STATUSES = (
    Meaning({408, 425, 429}, Fault.BUSY, "{name} takes no more for now: {status}"),
    Meaning(range(500, 600), Fault.BUSY, "{name} is in trouble: {status}"),
    Meaning({407}, Fault.OURS, "{name} can't be reached: the proxy wants a login (407): write it in HTTP_PROXY"),
    Meaning({401, 403}, Fault.TARGET, "{name} doesn't let us in ({status}): check its URL, secret and headers"),
    Meaning({404}, Fault.TARGET, "{name} has nothing at this URL (404): check its URL"),
    Meaning({410}, Fault.TARGET, "{name} is gone for good (410): take it out of the settings and rules"),
    Meaning(
        range(300, 400), Fault.TARGET, "{name} sends us elsewhere ({status}), where we don't follow: give the final URL"
    ),
    Meaning({413}, Fault.MESSAGE, "{name} finds the message too large (413): shorten the template"),
    Meaning(range(400, 500), Fault.MESSAGE, "{name} refused: {status}; check its URL and the template"),
)
"""The meaning of each status other than 2xx. The first row that fits applies."""
_NO_MEANING = Meaning(range(1000), Fault.UNKNOWN, "{name} gave an answer that means nothing to us: {status}")


def error_for(response: Response, name: str, answer: Answer, table: Iterable[Meaning] = STATUSES) -> ChannelError:
    """Return the error for a response that is no success. `name`: the target's name in the reason. `answer`: what the
    ledger may store of the response.

    The error is never `provider_wide`, because it concerns only this target.
    """
    status = response.status
    fitting = (row for row in table if status in row.statuses and row.words in response.text)
    meaning = next(fitting, _NO_MEANING)
    reason = meaning.reason.format(name=name, status=status)
    match meaning.fault:
        case Fault.BUSY:
            return Later(reason, answer=answer, retry_after=retry_after(response.headers))
        case Fault.OURS:
            return Misconfigured(reason, answer=answer, provider_wide=False)
        case Fault.TARGET | Fault.MESSAGE:
            return Never(reason, answer=answer)
        case Fault.UNKNOWN:
            return InDoubt(reason, answer=answer)


def masked_answer(response: Response, url: str, secrets: Iterable[str] = ()) -> Answer:
    """Return the server's answer for the ledger. The URL, its parts and the other secrets are masked in its text."""
    masked = mask(" ".join(response.text.split()), [*secrets_of_url(url), *secrets])
    return Answer(str(response.status), masked[:EXCERPT])


OUTCOMES = """
| webhook | 2xx | 408, 425, 429, 5xx, no connection | 3xx, other 4xx (including 410), an address that the guard forbids | no answer, an incomplete answer |
"""
