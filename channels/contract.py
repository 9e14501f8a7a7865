"""The interface that every channel implements: `send` takes one message and returns a receipt, or raises an error that
says whether to retry it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel

Content = Mapping[str, Any]
"""A rendered template: JSON data. Each channel's class documents the keys that it expects."""


ThreadBy = Literal["launch_plan", "execution"]
"""What one thread covers: all executions of a launch plan, or a single execution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierMessage:
    """A message that was sent earlier in the same thread, or is in doubt."""

    reference: Mapping[str, str]
    """The `reference` of the message's receipt; empty if the message is in doubt."""
    content: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """The thread that a message belongs to. Its messages are sent one after another, in the order of their events."""

    key: str
    """Identifies the thread: the same for all messages to one address about one launch plan (or execution). PagerDuty
    uses it as the dedup key."""
    earlier: tuple[EarlierMessage, ...] = ()
    """The messages since the last resolved notice, oldest first; if there are many, only the first and the last."""
    resolves: bool = False
    """True for a resolved notice: the message reports a success, which closes the thread."""
    superseded: bool = False
    """True if the message is outdated. A failure is outdated if the launch plan has succeeded since, and the thread has
    neither a waiting resolved notice nor a newer failure. A resolved notice is outdated if a newer failure was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to send."""

    key: str
    """The delivery's key, the same at every attempt. It is part of the Message-ID and of the metadata in Slack. If the
    message has no thread, PagerDuty uses it as the dedup key."""
    recipients: tuple[str, ...]
    """Addresses that `Channel.address` returned. Only a mail has more than one."""
    content: Content
    created_at: datetime
    """When the delivery was created, in UTC. It is the same at every attempt and is used as the Date of a mail."""
    thread: Thread | None = None
    """None if the message belongs to no thread."""
    in_doubt: bool = False
    """True if an earlier attempt may have arrived. The channel then searches the provider, if it can, before it sends
    again."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """Trace headers of this attempt, W3C `traceparent` and `tracestate`, for providers that propagate traces; may be
    empty."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The provider's answer, stored with the attempt. It never contains a token, a key or a whole body."""

    status: str
    """The provider's code: `250`, `429`, `channel_not_found`."""
    text: str = ""
    """The start of the provider's text, at most `EXCERPT` characters."""


EXCERPT = 500
"""Maximum number of characters that are kept of a provider's text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that the provider accepted the message."""

    answer: Answer
    reference: Mapping[str, str] = field(default_factory=dict)
    """Identifies the message at the provider, so that later messages can refer to it: its Message-ID, Slack's channel
    and ts, or PagerDuty's dedup key."""
    failures: Mapping[str, ChannelError] = field(default_factory=dict)
    """The recipients that the mail relay did not accept, each with its error; empty for other channels."""


class ChannelError(Exception):
    """The message was not sent, or is in doubt. `str()` is a sentence for the operator, without secrets and bodies."""

    def __init__(self, reason: str, *, answer: Answer | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


class Later(ChannelError):
    """A temporary failure: retry the same message later.

    `retry_after` is the provider's `Retry-After`, before which no retry is made. `provider_wide` is true if the whole
    provider fails (unreachable, overloaded, refusing our credentials), and false if only this destination does.
    """

    def __init__(
        self,
        reason: str,
        *,
        answer: Answer | None = None,
        retry_after: timedelta | None = None,
        provider_wide: bool = False,
    ) -> None:
        super().__init__(reason, answer=answer)
        self.retry_after = retry_after
        self.provider_wide = provider_wide


class Never(ChannelError):
    """A permanent failure: retrying is useless until a person changes something."""


class UnknownRecipient(Never):
    """This channel can't reach the recipient; another channel may (`fallback: email`).

    `reachable_by`: the channel and the recipient to use instead; None if they are not known.
    """

    def __init__(
        self, reason: str, *, answer: Answer | None = None, reachable_by: tuple[str, str] | None = None
    ) -> None:
        super().__init__(reason, answer=answer)
        self.reachable_by = reachable_by


class InDoubt(ChannelError):
    """The connection failed after the message was sent: the message may have arrived."""


@dataclass(frozen=True, slots=True)
class WirePreview:
    """The exact bytes that `send` would transmit, with secrets masked."""

    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one step of `Channel.check`."""

    message: str
    """A sentence without secrets that says what works, or what is wrong and which setting to change."""
    ok: bool = True


class Channel(Protocol):
    """A way to send messages to recipients through one provider.

    The constructor opens no connection. `send` may be called concurrently, and each call ends within the channel's own
    timeouts. A cancelled `send` must not leave a connection in a state that breaks the next `send`.
    """

    def address(self, recipient: str) -> str:
        """Return the address for a rule's recipient: resolve an alias of the settings, or validate it; no I/O.

        The address is stored and shown to users, so an alias for a secret is returned unresolved.
        Raises UnknownRecipient if this channel can't reach the recipient.
        """

    def destination(self, recipients: tuple[str, ...]) -> str:
        """Return the name of the destination, such as a Slack channel or a PagerDuty service.

        Each destination has its own rate limit and circuit breaker. Empty if all recipients share one rate limit.
        """

    def thread_by(self, address: str) -> ThreadBy | None:
        """Return what a thread at this address covers; None if messages to it form no threads."""

    def wire_preview(self, message: Message) -> WirePreview:
        """Return what `send` would transmit for this message; no I/O."""

    async def send(self, message: Message) -> Receipt:
        """Send the message. Raises only Later, Never, UnknownRecipient or InDoubt."""

    async def check(self) -> Sequence[Finding]:
        """Test the connection, the login and the permissions without notifying anyone.

        Raises nothing; ends within the channel's own timeouts.
        """

    async def aclose(self) -> None:
        """Close all connections. Every `send` has returned or was cancelled before this call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelType:
    """A type of channel: the model of its settings, and the function that creates a channel from them."""

    config: type[BaseModel]
    open: Callable[[Any], Channel]
    """Takes an instance of `config` and returns the channel; opens no connection."""
    rate: str = "none"
    """The default rate limit for each destination, such as `1/s` or `120/min`, according to the provider's limits;
    `none` means no limit."""
    burst: int = 1
    """Maximum number of messages that may be sent at once after an idle period."""
    template: Path | None = None
    """The template file of a channel that another package provides. If it is None, the JSON template of webhooks is
    used."""
