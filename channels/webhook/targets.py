"""Targets for the channels webhook and teams: their settings, the requests to them, and errors for HTTP statuses.

A target is a URL in the settings, which rules name by an alias. The URL is a secret, because anyone who knows it can
post to it: other packages see only the alias.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyNetwork, SecretStr

from channels.common.comma_list import comma_list
from channels.common.retry_after import retry_after
from channels.common.secret import SecretFile, SecretUrl, reveal
from channels.common.ssrf import SsrfGuard
from channels.contract import EXCERPT, Answer, ChannelError, Finding, InDoubt, Later, Never

if TYPE_CHECKING:
    from channels.common.http import HttpClient, Response

MASK = "********"
MIN_SECRET_LENGTH = 4
"""Minimum number of characters of a secret that is masked in answers. A shorter secret would also match ordinary text.
"""


Item = TypeVar("Item")
CommaList = Annotated[tuple[Item, ...], BeforeValidator(comma_list)]


class Target(SecretUrl):
    """The URL of a receiver. Rules name the receiver by its alias, which is the key in the settings."""


class TargetOptions(BaseModel):
    """Settings that apply to the requests to all targets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_networks: CommaList[IPvAnyNetwork] = ()
    """Private, local or reserved networks to which messages may be sent, such as `10.20.0.0/16`."""
    allow_http: bool = False
    """If true, http URLs are allowed. Without TLS, anyone on the network path can read the messages and the URL."""
    timeout: float = Field(20, gt=0, le=100)
    """Maximum number of seconds for one request, from connecting to the end of the answer."""
    ca_file: SecretFile | None = None
    """A PEM file with certificates to trust in addition to the system's certificates, such as the certificate of your
    company's certificate authority."""


class Targets:
    """Sends requests to targets. No connection is opened before the first request."""

    def __init__(self, guard: SsrfGuard, options: TargetOptions) -> None:
        self.guard = guard
        self._options = options
        self._client: HttpClient | None = None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], name: str) -> Response:
        """Send the body once, without a retry. `name`: the target's name in error messages.

        Raises `Never` if the guard forbids the URL, `Later` if nothing was sent, `InDoubt` if the body may have
        arrived.
        """
        return await self._http.post(url, body, headers, name)

    async def check(self, targets: Mapping[str, Target]) -> Sequence[Finding]:
        """Connect to each target without sending a request, because receivers would take any request as a message."""
        async with asyncio.TaskGroup() as group:
            checks = [group.create_task(self._check(name, target)) for name, target in targets.items()]
        return [task.result() for task in checks]

    async def _check(self, name: str, target: Target) -> Finding:
        try:
            await self._http.test_connection(url_of(target, name), name)
        except ChannelError as error:
            return Finding(error.reason, ok=False)
        return Finding(f"{name} is reached; run send-test to find out whether it takes messages")

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()

    @property
    def _http(self) -> HttpClient:
        # Imported late: at the top of the file, aiohttp would slow down every command.
        from channels.common.http import HttpClient  # noqa: PLC0415

        if self._client is None:
            self._client = HttpClient(self.guard, self._options.timeout, ca_file=self._options.ca_file)
        return self._client


def url_of(target: Target, name: str) -> str:
    """Return the target's URL. Do not store it. Raises `Later` if its file can't be read."""
    return reveal_or_later(target.url, target.url_file, f"{name}: url_file") or ""


def reveal_or_later(value: SecretStr | None, file: SecretFile | None, name: str) -> str | None:
    """Return the secret, as `reveal` does. If its file can't be read, raise `Later` with `name` in the reason."""
    try:
        return reveal(value, file)
    except OSError as error:
        raise Later(f"{name} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Later(f"{name} is no UTF-8 text") from None


def masked_answer(response: Response, url: str, secrets: Iterable[str] = ()) -> Answer:
    """Return the server's answer. The URL, parts of the URL and the other secrets are masked in its text."""
    text = " ".join(response.text.split())
    parts = urlsplit(url)
    url_parts = [url, parts.path, *parts.path.split("/"), parts.query, *(value for _, value in parse_qsl(parts.query))]
    for secret in sorted([*url_parts, *secrets], key=len, reverse=True):
        if len(secret) >= MIN_SECRET_LENGTH:
            text = text.replace(secret, MASK)
    return Answer(str(response.status), text[:EXCERPT])


def error_for_status(status: int, name: str, answer: Answer, headers: Mapping[str, str]) -> ChannelError:
    """Return the error for an HTTP status other than 2xx (RFC 9110, 15).

    The error is never `provider_wide`, because it concerns only this target.
    """
    match status:
        case 408 | 425 | 429:
            return Later(f"{name} takes no more for now: {status}", answer=answer, retry_after=retry_after(headers))
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
