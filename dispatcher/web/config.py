"""The `http:` section: where the service listens, and who may ask it for what."""

from __future__ import annotations

import hashlib
import importlib.util
import ipaddress
from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from channels.common.comma_list import listed
from channels.common.secret import SecretFile, one_of, reveal
from dispatcher.model.rate_limit import Rate, parse_rate
from dispatcher.parsing.duration import Duration

SHORTEST = 16
"""Characters of a token: a shorter one could be guessed."""


class Scope(StrEnum):
    """What a caller may ask for."""

    PUBLISH = "publish"
    """Post events."""
    READ = "read"
    """See events, deliveries and what was sent."""
    OPERATE = "operate"
    """Redrive deliveries and replay events."""


class Token(BaseModel):
    """One caller's token and what it may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")  # with \w its automaton would take 6 MiB
    """Who it is, as logs and the console say it."""
    token: SecretStr | None = None
    token_file: SecretFile | None = None
    scopes: Annotated[frozenset[Scope], BeforeValidator(listed)] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_a_token(self) -> Self:
        one_of("token", self.token, self.token_file)
        try:
            secret = self.reveal()
        except OSError as error:
            raise ValueError(f"token_file can't be read: {error.strerror}") from None
        if secret is None:
            raise ValueError("give token or token_file")
        if len(secret) < SHORTEST:
            raise ValueError(f"a token has {SHORTEST} characters at least: make one with `openssl rand -hex 32`")
        return self

    def reveal(self) -> str | None:
        """The token itself, for the moment of use. Raises OSError where its file can't be read."""
        return reveal(self.token, self.token_file)


class Tls(BaseModel):
    """A certificate and its key, PEM; read again at the next connection when they change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert_file: SecretFile
    key_file: SecretFile


class Oidc(BaseModel):
    """A provider of OpenID Connect at which people log in, and which of them may do what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str = Field(pattern=r"^https?://[^\s/]+(/\S*)?$")
    """As the provider names itself; its configuration is at `/.well-known/openid-configuration` below."""
    client_id: str = Field(min_length=1)
    client_secret: SecretStr | None = None
    client_secret_file: SecretFile | None = None
    scopes: Annotated[tuple[str, ...], BeforeValidator(listed)] = ("openid", "profile", "email")
    """What is asked for; some providers want one more for groups."""
    groups_claim: str = "groups"
    """The claim that lists a person's groups."""
    read: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Groups and mail addresses that may look."""
    operate: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Groups and mail addresses that may also redrive and replay."""

    @property
    def mark(self) -> str:
        """Changes with what a login was allowed by: sessions from before are over then."""
        return hashlib.sha256(repr((self.issuer, self.client_id, self.read, self.operate)).encode()).hexdigest()

    @model_validator(mode="after")
    def _usable(self) -> Self:
        one_of("client_secret", self.client_secret, self.client_secret_file)
        if self.client_secret is None and self.client_secret_file is None:
            raise ValueError("give client_secret or client_secret_file")
        address = urlsplit(self.issuer)
        if address.scheme != "https" and not is_loopback(address.hostname or ""):
            raise ValueError("issuer must be https: whoever is on the way could log in as anybody")
        if not self.read and not self.operate:
            raise ValueError("name groups or mail addresses in read or operate, or nobody could do anything")
        if importlib.util.find_spec("authlib") is None or importlib.util.find_spec("httpx") is None:
            raise ValueError("oidc needs the extra: pip install 'flyte-notification-dispatcher[oidc]'")
        return self


class HttpConfig(BaseModel):
    """The HTTP intake, the health pages and the console."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:8080", pattern=r"^.+:\d{1,5}$")
    """HOST:PORT; port 0 takes a free one."""
    token: SecretStr | None = None
    """Bearer token that publishers must show: short for one of `tokens` with the scope `publish`."""
    token_file: SecretFile | None = None
    tokens: tuple[Token, ...] = ()
    """Who may ask for what. Where `listen` is not loopback there must be one; where it is and there is none, this
    machine's users may do everything."""
    oidc: Oidc | None = None
    """Where people log in at the console, beside tokens."""
    console: bool = False
    """Serve the console and its API."""
    metrics: Literal["guarded", "open"] = "guarded"
    """`guarded`: for the scope `read`; `open`: for everybody who reaches the port."""
    rate: Annotated[Rate, BeforeValidator(lambda value: parse_rate(value) if isinstance(value, str) else value)] = (
        Field("2000/s", validate_default=True)
    )
    """Requests that each caller has; past it, 429."""
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(listed)] = ()
    """Addresses and networks whose `X-Forwarded-For` and `X-Forwarded-Proto` hold."""
    tls: Tls | None = None
    session: Duration = Field(timedelta(hours=8), ge=timedelta(minutes=1), le=timedelta(days=30))
    """How long a login at the console lasts."""
    session_key_file: SecretFile | None = None
    """What signs the logins; several replicas need the same. A line a key: the first signs, all are taken. Without it
    each process makes its own, and a restart ends all logins."""

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def loopback(self) -> bool:
        """Whether this machine alone reaches us."""
        return is_loopback(self.address[0])

    def callers(self) -> Iterator[Token]:
        """Everybody with a token, the short form among them."""
        if self.token is not None or self.token_file is not None:
            yield Token(
                name="publisher", token=self.token, token_file=self.token_file, scopes=frozenset({Scope.PUBLISH})
            )
        yield from self.tokens

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        one_of("token", self.token, self.token_file)
        try:
            callers = list(self.callers())
        except ValidationError as error:  # of the short form
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        if len({caller.name for caller in callers}) < len(callers):
            raise ValueError("each of tokens needs a name of its own; `publisher` is who shows http.token")
        if not callers and self.oidc is None and not self.loopback:
            raise ValueError(
                "listen is not a loopback address: set token or token_file, or tokens, or anyone could publish events"
            )
        if not callers and self.oidc is None and self.trusted_proxies:
            raise ValueError("trusted_proxies needs tokens: a proxy's clients are not this machine's programs")
        if (
            callers
            and self.console
            and self.oidc is None
            and not any(Scope.READ in caller.scopes for caller in callers)
        ):
            raise ValueError("console needs one of tokens with the scope read, or nobody could look at it")
        return self


def is_loopback(host: str) -> bool:
    """Whether a host, as URLs and settings name it, is this machine and no other."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
