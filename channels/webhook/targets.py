"""Targets for the channels webhook and teams: their settings, and the requests to them.

A target is a URL in the settings, which rules name by an alias. The URL is a secret, because anyone who knows it can
post to it: other packages see only the alias.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyNetwork, SecretStr

from channels.common.comma_list import comma_list
from channels.common.secret import SecretFile, SecretUrl, reveal
from channels.common.ssrf import Forbidden, SsrfGuard
from channels.common.tls import CaFile
from channels.contract import ChannelError, Finding, Misconfigured

if TYPE_CHECKING:
    from channels.common.http import HttpClient, Response

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
    ca_file: CaFile | None = None
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
            direct = await self._http.test_connection(url_of(target, name), name)
        except ChannelError as error:
            return Finding(error.reason, ok=False)
        reached = "is reached" if direct else "is behind the proxy of HTTPS_PROXY, which is reached"
        return Finding(f"{name} {reached}; run send-test to find out whether it takes messages")

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


def check_targets(targets: Mapping[str, Target], guard: SsrfGuard) -> None:
    """Raise `ValueError` if the guard forbids the URL of a target."""
    for name, target in targets.items():
        try:
            guard.check_url(reveal(target.url, target.url_file) or "")
        except Forbidden as error:
            raise ValueError(f"targets.{name}: {error}") from None


def url_of(target: Target, name: str) -> str:
    """Return the target's URL. Do not store it. Raises `Misconfigured` if its file can't be read."""
    return reveal_or_wait(target.url, target.url_file, f"{name}: url_file") or ""


def reveal_or_wait(value: SecretStr | None, file: SecretFile | None, name: str) -> str | None:
    """Return the secret, as `reveal` does. If its file can't be read, raise `Misconfigured` with `name` in the reason."""
    try:
        return reveal(value, file)
    except OSError as error:
        raise Misconfigured(f"{name} can't be read: {error.strerror}", provider_wide=False) from None
