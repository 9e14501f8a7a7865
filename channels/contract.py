"""What every channel promises: one message in; a receipt out, or an error that says what to do next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel

Content = Mapping[str, Any]
"""What the templates made: JSON data, in the form that the channel's own module documents."""


ThreadBy = Literal["launch_plan", "execution"]
"""What one conversation is about: all that becomes of a launch plan, or of one execution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierMessage:
    """A message of the same conversation that has arrived, or may have."""

    reference: Mapping[str, str]
    """Its receipt's; empty where it only may have arrived."""
    content: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """What a message belongs to. Its messages go out one after another, in the order of what they tell."""

    key: str
    """The same for all messages about one matter to one address: PagerDuty's dedup key."""
    earlier: tuple[EarlierMessage, ...] = ()
    """What was said since all was last well, oldest first; of many only the first and the last."""
    resolves: bool = False
    """This message says that all is well again, which ends what the earlier ones began."""
    over: bool = False
    """This message comes too late: of a failure after which all is well again, with nothing left to be sent that says
    so; or of a recovery after which something newer has failed, and been told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to hand over."""

    key: str
    """The same at every attempt: becomes Message-ID, Slack metadata, and PagerDuty's dedup key of what stands alone."""
    recipients: tuple[str, ...]
    """Addresses as `Channel.address` gave them; more than one only by mail."""
    content: Content
    created_at: datetime
    """When the message was made, in UTC: the mail's Date, the same at every attempt."""
    thread: Thread | None = None
    """None where it stands alone."""
    in_doubt: bool = False
    """An earlier attempt may have arrived: look before repeating, where the provider allows it."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """W3C's `traceparent` and `tracestate` of this attempt, for a provider that carries traces on; empty without."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The provider's own words, kept with the attempt. Never holds a token, a key or a whole body."""

    status: str
    """The code it answered with: `250`, `429`, `channel_not_found`."""
    text: str = ""
    """An excerpt of what it said, at most `EXCERPT` characters."""


EXCERPT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The provider has taken the message."""

    answer: Answer
    reference: Mapping[str, str] = field(default_factory=dict)
    """What a later message needs to refer to this one: Message-ID, channel and ts, dedup key."""
    failures: Mapping[str, ChannelError] = field(default_factory=dict)
    """Mail only: the recipients that were not accepted, each with its own error."""


class ChannelError(Exception):
    """The message was not taken. `str()` is a sentence for the operator, free of secrets and bodies."""

    def __init__(self, reason: str, *, answer: Answer | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


class Later(ChannelError):
    """Not now: the same message may succeed later.

    `retry_after` is the provider's own wish, a floor under the back-off. `everyone` is true where the
    whole provider is meant (unreachable, overloaded, refusing our credentials) and not this one destination.
    """

    def __init__(
        self,
        reason: str,
        *,
        answer: Answer | None = None,
        retry_after: timedelta | None = None,
        everyone: bool = False,
    ) -> None:
        super().__init__(reason, answer=answer)
        self.retry_after = retry_after
        self.everyone = everyone


class Never(ChannelError):
    """Repeating is useless: a person has to change something first."""


class UnknownRecipient(Never):
    """This channel has no such recipient; another channel may have (`fallback: email`).

    `by`: the channel and the recipient that are meant, where that is certain.
    """

    def __init__(self, reason: str, *, answer: Answer | None = None, by: tuple[str, str] | None = None) -> None:
        super().__init__(reason, answer=answer)
        self.by = by


class InDoubt(ChannelError):
    """The connection died after the message was handed over: it may have arrived."""


@dataclass(frozen=True, slots=True)
class WirePreview:
    """The exact bytes that `send` would hand over, secrets masked."""

    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried, and how it went."""

    says: str
    """What is well, or what is wrong and what to change; a sentence free of secrets."""
    ok: bool = True


class Channel(Protocol):
    """One way to reach people.

    Constructing one opens nothing. `send` is safe to call concurrently; each call ends within the
    channel's own time-outs. A cancelled `send` leaves no connection behind that could spoil the next one.
    """

    def address(self, recipient: str) -> str:
        """The address that a rule's recipient stands for, by alias or as it is; no I/O.

        The result is stored and shown: an alias for a secret stays an alias.
        Raises Unserved where this channel can't reach such a recipient.
        """

    def destination(self, recipients: tuple[str, ...]) -> str:
        """What the provider's rate limits count by: a Slack channel, a service. Empty: it counts all alike."""

    def thread_by(self, address: str) -> ThreadBy | None:
        """What a conversation with this address is about; None where each message there stands alone."""

    def wire_preview(self, message: Message) -> WirePreview:
        """What `send` would hand over for this message; no I/O."""

    async def send(self, message: Message) -> Receipt:
        """Hand the message over. Raises Later, Never (or Unserved) or Unknown, and nothing else."""

    async def check(self) -> Sequence[Finding]:
        """Try what can be tried without telling anybody: reach the provider, log in, look at the rights.

        Raises nothing; ends within the channel's own time-outs.
        """

    async def aclose(self) -> None:
        """Close what is open; in-flight sends have ended or been cancelled before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelType:
    """A kind of channel: its options, and how one is made. Making one opens nothing."""

    config: type[BaseModel]
    open: Callable[[Any], Channel]
    rate: str = "none"
    """What the provider takes for one destination, where the settings don't say (`1/s`, `120/min`)."""
    burst: int = 1
    """So many may go at once after a quiet while."""
    template: Path | None = None
    """A channel of another package's: its document template. Without one it gets the webhooks' JSON."""
