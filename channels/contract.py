"""The interface that every channel implements.

Its method `send` sends one message. It returns a receipt, or raises an error that says whether to retry the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import orjson

if TYPE_CHECKING:  # for types only: the process that renders operators' templates does not import pydantic
    from pydantic import BaseModel

    from channels.common.drawing import Block

Content = Mapping[str, Any]
"""The content of a message: the JSON object that a template rendered. The class of each channel documents the keys that
it needs."""


ThreadBy = Literal["launch_plan", "execution"]
"""Which messages belong to one thread: those about all executions of a launch plan, or about a single execution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierMessage:
    """An earlier message of the same thread, which was sent or may have arrived."""

    reference: Mapping[str, str]
    """The `reference` in the message's receipt; empty if the message may have arrived but has no receipt."""
    content: Content


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """The thread that a message belongs to. The messages of a thread are sent one after another, in the order of their
    events.
    """

    key: str
    """Identifies the thread. All messages to one address about one launch plan (or execution) have the same key.
    PagerDuty gets the key as dedup key."""
    earlier: tuple[EarlierMessage, ...] = ()
    """The messages of the thread since the last resolved notice, oldest first. If there are many, only the oldest and
    the newest are kept."""
    resolves: bool = False
    """True if the message is a resolved notice: it reports a success, which closes the thread."""


NOTE = 1000
"""Maximum number of characters of a message's note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message to send."""

    key: str
    """The delivery's key, which is the same at every attempt. It is part of a mail's Message-ID and of a Slack
    message's metadata. If the message has no thread, PagerDuty uses it as dedup key."""
    recipients: tuple[str, ...]
    """The addresses to send to, as returned by `Channel.address`. Only mail sends to more than one address."""
    content: Content
    created_at: datetime
    """The time at which the delivery was created, in UTC. The time is the same at every attempt; mail uses it as the
    Date header."""
    released_at: datetime | None = None
    """When a message that was held back was released, in UTC: mail then uses this time as the Date header. None if the
    message was never held."""
    note: str = ""
    """What the reader should know beside the content, such as `held 22:00-07:00 (quiet hours of contact ml-team)`; may be
    empty. Plain text in one line, of at most `NOTE` characters. The channel escapes it, and shows it near the top."""
    thread: Thread | None = None
    """The thread that the message belongs to; None if it belongs to no thread."""
    in_doubt: bool = False
    """True if an earlier attempt may have arrived. Before the channel sends again, it asks the provider whether the
    message is there, if the provider supports this."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """The trace headers of this attempt (W3C `traceparent` and `tracestate`), which are sent to providers that
    propagate traces; may be empty."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The provider's answer to a message. The ledger stores it with the attempt. It never contains a token, a key or a
    whole body.
    """

    status: str
    """The provider's status or error code: `250`, `429`, `channel_not_found`."""
    text: str = ""
    """The start of the answer's text, at most `EXCERPT` characters."""


EXCERPT = 500
"""Maximum number of characters that are stored of the text in a provider's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Returned by `send` if the provider accepted the message."""

    answer: Answer
    reference: Mapping[str, str] = field(default_factory=dict)
    """Identifies the message at the provider, so that later messages can refer to it: the Message-ID of a mail, the
    channel and ts of a Slack message, or PagerDuty's dedup key."""
    failures: Mapping[str, ChannelError] = field(default_factory=dict)
    """Mapping from each recipient that the mail relay did not accept to the error; empty for channels other than mail.
    """


class ChannelError(Exception):
    """The message was not sent, or it is unknown whether it was sent.

    `str()` gives the reason as a sentence for the operator, which contains no secrets and no bodies.
    """

    def __init__(self, reason: str, *, answer: Answer | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.answer = answer


class Later(ChannelError):
    """A temporary failure: the worker retries the same message later.

    `retry_after`: the minimum time to wait before the retry, from the provider's header `Retry-After`. `provider_wide`:
    true if the provider fails for all destinations (it is unreachable or overloaded, or refuses our credentials), false
    if only this destination fails.
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


class Misconfigured(Later):
    """The provider refuses the dispatcher itself: its credentials, scopes, quota, or EHLO name.

    The message waits until a person has corrected the settings or the account. `reason` says what to correct. If the
    provider refuses every message for that reason, the error is `provider_wide`, and the channel's circuit breaker
    opens. Otherwise, for example if a scope is missing that only some messages need, only the destination waits.
    """

    def __init__(
        self,
        reason: str,
        *,
        answer: Answer | None = None,
        retry_after: timedelta | None = None,
        provider_wide: bool = True,
    ) -> None:
        super().__init__(reason, answer=answer, retry_after=retry_after, provider_wide=provider_wide)


class Never(ChannelError):
    """A permanent failure: a retry would fail again until a person changes something."""


class UnknownRecipient(Never):
    """This channel can't reach the recipient, but another channel may reach it (setting `fallback: email`).

    `reachable_by`: the channel and the recipient to use instead; None if they are not known.
    """

    def __init__(
        self, reason: str, *, answer: Answer | None = None, reachable_by: tuple[str, str] | None = None
    ) -> None:
        super().__init__(reason, answer=answer)
        self.reachable_by = reachable_by


class InDoubt(ChannelError):
    """It is unknown whether the message arrived: for example, the connection failed after the message was sent."""


@dataclass(frozen=True, slots=True)
class WirePreview:
    """The bytes that `send` would transmit, with secrets masked."""

    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one test that `Channel.check` makes."""

    message: str
    """A sentence that says what works, or what is wrong and which setting to change. It contains no secrets."""
    ok: bool = True
    warning: bool = False
    """True if the test succeeded, but a person should change something. `dispatcher check` then succeeds too."""


class Channel(Protocol):
    """Sends messages to recipients through one provider.

    The constructor opens no connection. `send` may be called concurrently, and each call ends within the channel's own
    timeouts. If a call of `send` is cancelled, it must not leave a connection in a state that breaks the next call.
    """

    def address(self, recipient: str) -> str:
        """Return the address for a rule's recipient: look up an alias in the settings, or validate the recipient. Does
        no I/O.

        The address is stored and shown to users, so an alias for a secret is returned as it is. Raises
        `UnknownRecipient` if this channel can't reach the recipient.
        """

    def destination(self, recipients: tuple[str, ...]) -> str:
        """Return the name of the destination, such as a Slack channel or a PagerDuty service.

        Each destination has its own rate limit and circuit breaker. The name is empty if all recipients share one rate
        limit.
        """
        return recipients[0]

    def thread_by(self, address: str) -> ThreadBy | None:
        """Return whether messages to this address form a thread for each launch plan or for each execution; None if
        they form no threads.
        """
        del address
        return None

    def wire_preview(self, message: Message) -> WirePreview:
        """Return the bytes that `send` would transmit for this message. Does no I/O."""

    async def send(self, message: Message) -> Receipt:
        """Send the message. Raises only `Later`, `Never`, `UnknownRecipient` or `InDoubt`."""

    async def check(self) -> Sequence[Finding]:
        """Test the connection, the login and the permissions without notifying anyone.

        The method raises nothing, and ends within the channel's own timeouts.
        """

    async def aclose(self) -> None:
        """Close all connections. The caller makes sure that no `send` is running."""


Place = tuple[str | int, ...]
"""The path of a value in a document: the keys and indices that lead from the document's root to the value."""


@dataclass(frozen=True, slots=True)
class Markup:
    """A provider's markup language."""

    escape: Callable[[object], str]
    """Escapes a value, so that it is shown as it is. It is called with every value that a template inserts."""
    cut: Callable[[str, int], str] | None = None
    """Cuts escaped text to a number of UTF-16 units, without a torn piece of markup at its end. If it is None, the
    filter `cut` cuts a value before the value is escaped."""
    unescape: Callable[[str], str] | None = None
    """Returns a text as its reader sees it, without the escapes. If it is None, previews show a headline in this markup
    language with its escapes."""


class TextKind(NamedTuple):
    """How one text of a document is rendered."""

    limit: int
    """Maximum length in UTF-16 units. A longer text is cut."""
    markup: Markup | None = None
    """The markup language of the text; None for plain text."""


def any_text(place: Place, parent: Mapping[str, Any]) -> TextKind:
    """Every text is plain, and has at most 20,000 UTF-16 units. This limit is the dispatcher's choice."""
    del place, parent
    return TextKind(20_000)


def no_problems(content: Content) -> Iterable[str]:
    del content
    return ()


class MailLimits(NamedTuple):
    """Maximum lengths of a mail's parts: of `subject` and `text` in UTF-16 units, of `html` in bytes."""

    subject: int
    text: int
    html: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentForm:
    """The form of a channel's content, and the provider's limits on it.

    Content is a *document*, one JSON object that a YAML template renders; or a *mail*, which has the keys `subject`,
    `text` and `html`, and `about` if the launch plan is known. All channels whose content is a mail share the templates
    in the folder `email/`.

    The process that renders operators' templates imports the modules of the two functions. So the functions must stand
    at the top level of their modules, and these modules should import little.
    """

    mail: MailLimits | None = None
    """Set if the content is a mail, None if it is a document."""
    text_kind: Callable[[Place, Mapping[str, Any]], TextKind] = any_text
    """Returns how a text of a document is rendered, given the place of the text and the mapping around it."""
    max_bytes: int | None = None
    """Maximum size of the content as JSON; None means no limit."""
    lint: Callable[[Content], Iterable[str]] = no_problems
    """Yields why the provider would refuse the content, one sentence for each reason."""

    def problems(self, content: Content) -> list[str]:
        """Return why the provider would refuse the content, one sentence for each reason; empty if it would not."""
        try:
            body = orjson.dumps(content)
        except TypeError as error:
            return [f"the message is no JSON: {error}"]
        too_large = self.max_bytes is not None and len(body) > self.max_bytes
        return [*([f"it is larger than {self.max_bytes} bytes"] if too_large else []), *self.lint(content)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelType:
    """A type of channel: all that the dispatcher needs to know of a channel before it is open.

    Only `config` and `open` must be given. With the defaults, the content is a JSON object as for webhooks.
    """

    config: type[BaseModel]
    """The channel's own options in the settings. The dispatcher itself uses two of them, if there are any: `fallback`,
    the channel that serves recipients whom this one can't reach (`none`: no channel does), and `change_events`."""
    open: Callable[[Any], Channel]
    """Creates the channel from an instance of `config`, and opens no connection."""
    title: str = ""
    """The channel's name for readers. If it is empty, the name in the settings is used."""
    rate: str = "none"
    """The default rate limit for each destination, such as `1/s` or `120/min`, chosen according to the provider's
    limits. `none` means no limit."""
    burst: int = 1
    """Maximum number of messages that a destination may get at once after an idle period."""
    groups_recipients: bool = False
    """True if one message may go to several recipients. All recipients of a rule then share a message."""
    pages: bool = False
    """True if a failure's message opens an incident, for which people are paged. An outdated failure is then dropped
    before `send`."""
    form: ContentForm = ContentForm()
    document: str = "message.yaml"
    """Name of the document's template in the channel's folder, which is one of the template folders."""
    template: Path | None = None
    """The default template file, if another package provides the channel. It is used if no template folder has the
    channel's document. If it is None too, the JSON template of webhooks is used."""
    change_event: Callable[[Mapping[str, Any]], Content] | None = None
    """Makes a change event's content from the variables of templates. A change event reports that a launch plan has run
    in a new version; the option `change_events` switches them on. None: the channel has none."""
    severities: bool = False
    """True if the content has a severity. The channel's options then include `severities`, which gives one to an event."""
    headline: tuple[str, ...] = ("text",)
    """The keys that lead to the text in the content that a reader sees first."""
    draw: Callable[[Content], Iterable[Block]] | None = None
    """Returns what a reader sees, for previews. If it is None, the content is shown as JSON. The content comes from a
    template, so any value may be missing or have another type."""
    style: str = ""
    """CSS for the drawing in a page. The drawing is in an element with the class `drawing` and the channel's name."""
    example: Mapping[str, Any] | None = None
    """Options with which a preview works without settings. If it is None, a preview needs the channel's settings."""
    example_recipient: str = ""
    """The recipient of previews, if the settings have no alias."""
    aliases: str = ""
    """The name of the option that maps aliases, which rules may use as recipients; empty if there is none."""
    outcomes: str = ""
    """Rows of the table in docs/channels.md, as Markdown: which answers of the provider have which outcome."""
