"""What webhooks and Teams share: targets behind aliases, the way to them, and what an HTTP status means.

A target's URL lets whoever knows it post, so it is a secret: outside this package it is known by its alias alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyNetwork, SecretStr

from channels.common.comma_list import listed
from channels.common.retry_after import retry_after
from channels.common.secret import SecretFile, SecretUrl, reveal
from channels.common.ssrf import Guard
from channels.contract import EXCERPT, Answer, ChannelError, Finding, InDoubt, Later, Never

if TYPE_CHECKING:
    from channels.common.http import Post, Reply

MASK = "********"
SHORTEST_SECRET = 4
"""Characters: what is shorter is not looked for in answers, it would be found in any."""


Item = TypeVar("Item")
Listed = Annotated[tuple[Item, ...], BeforeValidator(listed)]


class HookTarget(SecretUrl):
    """Where an alias leads."""


class HookOptions(BaseModel):
    """How far the guard opens, and how patient we are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_networks: Listed[IPvAnyNetwork] = ()
    """Addresses that may be posted to though they are private, local or reserved: `10.20.0.0/16`."""
    allow_http: bool = False
    """Also without TLS: whoever listens on the way then reads all, and learns the URL."""
    timeout: float = Field(20, gt=0, le=100)
    """Seconds to wait for an answer."""
    ca_file: SecretFile | None = None
    """Certificates to trust besides the system's, PEM: a company's own authority."""


class Hooks:
    """The way to targets. Opens nothing before something is posted."""

    def __init__(self, guard: Guard, options: HookOptions) -> None:
        self.guard = guard
        self._options = options
        self._opened: Post | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], name: str) -> Reply:
        """Hand the body over, once. `name`: what to call the target in errors.

        Raises Never where the guard forbids it, Later where nothing was handed over, Unknown where that is in doubt.
        """
        return await self._post.post(url, body, headers, name)

    async def check(self, targets: Mapping[str, HookTarget]) -> Sequence[Finding]:
        """Connects to each target and says nothing: any word would be a message."""
        async with asyncio.TaskGroup() as group:
            reaching = [group.create_task(self._check(name, target)) for name, target in targets.items()]
        return [task.result() for task in reaching]

    async def _check(self, name: str, target: HookTarget) -> Finding:
        try:
            await self._post.reach(url_of(target, name), name)
        except ChannelError as error:
            return Finding(error.reason, ok=False)
        return Finding(f"{name} is reached; whether it takes messages, send-test tells")

    async def aclose(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    @property
    def _post(self) -> Post:
        from channels.common.http import Post  # noqa: PLC0415 - aiohttp is kept out of the command line's start

        if self._opened is None:
            self._opened = Post(self.guard, self._options.timeout, ca_file=self._options.ca_file)
        return self._opened


def url_of(target: HookTarget, name: str) -> str:
    """The target's URL, for the moment of use only. Raises Later where its file can't be read."""
    return revealed(target.url, target.url_file, f"{name}: url_file") or ""


def revealed(value: SecretStr | None, file: SecretFile | None, called: str) -> str | None:
    """The secret, read anew. Raises Later, naming what it is called, where its file can't be read."""
    try:
        return reveal(value, file)
    except OSError as error:
        raise Later(f"{called} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Later(f"{called} is no UTF-8 text") from None


def answer_of(reply: Reply, url: str, secrets: Iterable[str] = ()) -> Answer:
    """The server's words, without the URL, its parts and the other secrets that it repeats."""
    text = " ".join(reply.text.split())
    parts = urlsplit(url)
    told = [url, parts.path, *parts.path.split("/"), parts.query, *(value for _, value in parse_qsl(parts.query))]
    for secret in sorted([*told, *secrets], key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    return Answer(str(reply.status), text[:EXCERPT])


def meaning(status: int, name: str, answer: Answer, headers: Mapping[str, str]) -> ChannelError:
    """What an answer that is no 2xx means (RFC 9110, 15). The way is open, so it is this target's trouble alone."""
    match status:
        case 408 | 425 | 429:
            wish = retry_after(headers)
            return Later(f"{name} takes no more for now: {status}", answer=answer, retry_after=wish)
        case _ if 500 <= status <= 599:
            return Later(f"{name} is in trouble: {status}", answer=answer, retry_after=retry_after(headers))
        case 410:
            return Never(f"{name} is gone for good (410): take it out of the settings and rules", answer=answer)
        case 401 | 403:
            return Never(f"{name} doesn't let us in ({status}): check its URL, secret and headers", answer=answer)
        case 413:
            return Never(f"{name} finds the message too large (413): shorten the template", answer=answer)
        case _ if 400 <= status <= 499:
            return Never(f"{name} refused: {status}; check its URL and the template", answer=answer)
        case _ if 300 <= status <= 399:
            return Never(
                f"{name} sends us elsewhere ({status}), where we don't follow: give the final URL", answer=answer
            )
        case _:
            return InDoubt(f"{name} gave an answer that means nothing to us: {status}", answer=answer)
