"""The `http:` settings: the address on which the service listens, and the permissions of its callers."""

from __future__ import annotations

import codecs
import errno
import hashlib
import importlib.util
import ipaddress
import re
from collections.abc import Iterator
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from channels.common.comma_list import comma_list
from channels.common.network import HttpUrl, check_http_url, host_and_port
from channels.common.secret import ExistingFile, HeaderToken, HeaderTokenFile, Secret, SecretFile, reject_both, reveal
from channels.common.tls import check_certificate
from dispatcher.model.rate_limit import Rate, parse_rate
from dispatcher.parsing.duration import Duration
from dispatcher.parsing.validation_errors import message_of

MIN_TOKEN_LENGTH = 16
"""Minimum number of characters of a token. A shorter token could be guessed."""

_BASE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")
GROUP = "group:"
"""Begins the name of a group, in the settings, that could be taken for a mail address."""


class Scope(StrEnum):
    """A permission that a caller can have."""

    PUBLISH = "publish"
    """Post events."""
    READ = "read"
    """View events, deliveries and the messages that were sent."""
    OPERATE = "operate"
    """Redrive, cancel and dismiss deliveries, and replay or dismiss rejected messages."""


def _listen_address(text: str) -> str:
    host_and_port(text, lowest=0)
    return text


def _base_path(text: str) -> str:
    path = text.rstrip("/")
    if path and (not _BASE_PATH.fullmatch(path) or {".", ".."} & {*path.split("/")}):
        raise ValueError("write a path of letters, digits and - _ . ~, such as /notifications")
    return path


def _public_url(text: str) -> str:
    if any(sign in text for sign in "<>\"'|?#"):  # links in messages can't carry them
        raise ValueError("write the address that browsers open, without < > \" ' | ? #")
    return check_http_url(text).rstrip("/") if text else ""


def _proxy(text: str) -> str:
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("write a proxy's address or network, such as 10.0.3.7 or 10.0.3.0/24") from None
    if network.prefixlen == 0:
        raise ValueError("this trusts every client, so each could claim any address: name the proxies' network")
    return text


def read_session_keys(file: Path) -> list[bytes]:
    """Return the keys in `http.session_key_file`, one per line. Raises OSError if the file can't be read or has no keys;
    `strerror` says why.
    """
    keys = file.read_bytes().removeprefix(codecs.BOM_UTF8).split()
    if not keys or any(b"\0" in key for key in keys):  # NUL: UTF-16, where each line would begin with the same bytes
        raise OSError(errno.EINVAL, "it needs one key per line, in UTF-8: make each with `openssl rand -hex 32`")
    return keys


def _session_keys(file: Path) -> Path:
    try:
        read_session_keys(file)
    except OSError as error:
        raise ValueError(f"{file} can't be used: {error.strerror}") from None
    return file


class Token(BaseModel):
    """A caller's token and its scopes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The pattern avoids \w, because the compiled pattern would then take 6 MiB of memory.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")
    """The caller's name in logs and in the console."""
    token: HeaderToken | None = None
    token_file: HeaderTokenFile | None = None
    scopes: Annotated[frozenset[Scope], BeforeValidator(comma_list)] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_a_token(self) -> Self:
        reject_both("token", self.token, self.token_file)
        if self.token is None and self.token_file is None:
            raise ValueError("give token or token_file")
        try:
            self.reveal()
        except OSError as error:
            raise ValueError(str(error.strerror)) from None
        return self

    def reveal(self) -> str:
        """Return the token's current text; don't keep it. Raises OSError if the token's file can't be read, or if the
        token is too short.
        """
        secret = reveal(self.token, self.token_file) or ""
        if len(secret) < MIN_TOKEN_LENGTH:
            raise OSError(
                errno.EINVAL,
                f"a token has {MIN_TOKEN_LENGTH} characters at least: make one with `openssl rand -hex 32`",
            )
        return secret


class Tls(BaseModel):
    """Files with the certificate and its key (PEM). If the files change, the next connection uses their new content."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cert_file: ExistingFile
    key_file: ExistingFile

    @model_validator(mode="after")
    def _is_a_pair(self) -> Self:
        check_certificate(self.cert_file, self.key_file)
        return self


class Oidc(BaseModel):
    """The OpenID Connect provider for logins, and the scopes that its users and groups get."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: HttpUrl
    """The provider's issuer URL. The provider's configuration is read from `/.well-known/openid-configuration` below
    this URL."""
    client_id: str = Field(min_length=1)
    client_secret: Secret | None = None
    client_secret_file: SecretFile | None = None
    scopes: Annotated[tuple[str, ...], BeforeValidator(comma_list)] = ("openid", "profile", "email")
    """OAuth scopes to request from the provider. Some providers send a person's groups only if an additional scope is
    requested."""
    groups_claim: str = "groups"
    """Name of the id_token's claim that lists a person's groups."""
    read: Annotated[tuple[str, ...], BeforeValidator(comma_list)] = ()
    """Groups and mail addresses of the people who get the scope `read`. An entry with an `@` is a mail address. A group
    that has an `@` in its name is written `group:NAME`."""
    operate: Annotated[tuple[str, ...], BeforeValidator(comma_list)] = ()
    """Groups and mail addresses, as in `read`, of the people who get the scopes `read` and `operate`."""

    def people(self, scope: Literal[Scope.READ, Scope.OPERATE]) -> frozenset[tuple[Literal["group", "address"], str]]:
        """Return the groups and mail addresses in `read` or `operate`."""
        entries = self.operate if scope is Scope.OPERATE else self.read
        return frozenset(
            ("address", entry) if "@" in entry and not entry.startswith(GROUP) else ("group", entry.removeprefix(GROUP))
            for entry in entries
        )

    @property
    def fingerprint(self) -> str:
        """A hash of the settings that grant scopes. If one of them changes, existing sessions become invalid."""
        return hashlib.sha256(repr((self.issuer, self.client_id, self.read, self.operate)).encode()).hexdigest()

    @model_validator(mode="after")
    def _usable(self) -> Self:
        reject_both("client_secret", self.client_secret, self.client_secret_file)
        if self.client_secret is None and self.client_secret_file is None:
            raise ValueError("give client_secret or client_secret_file")
        address = urlsplit(self.issuer)
        if address.query or address.fragment:
            raise ValueError("issuer is a URL without a query (OpenID Connect Discovery 1.0, section 3)")
        if address.scheme != "https" and not is_loopback(address.hostname or ""):
            raise ValueError("issuer must be https: otherwise anyone on the network path could log in as anybody")
        if not self.read and not self.operate:
            raise ValueError("name groups or mail addresses in read or operate, or nobody could do anything")
        if importlib.util.find_spec("authlib") is None or importlib.util.find_spec("httpx") is None:
            raise ValueError("oidc needs the extra: pip install 'flyte-notification-dispatcher[oidc]'")
        return self


class HttpConfig(BaseModel):
    """Settings of the HTTP server, which serves event intake, the health pages and the console."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listen: Annotated[str, AfterValidator(_listen_address)] = "127.0.0.1:8080"
    """The address to listen on, as HOST:PORT. Port 0 means any free port."""
    base_path: Annotated[str, AfterValidator(_base_path)] = ""
    """The path below which browsers find the dispatcher, such as `/notifications`, if a proxy serves it on a host that
    it shares with other programs. Empty if it has a host of its own."""
    public_url: Annotated[str, AfterValidator(_public_url)] = ""
    """The address at which people's browsers reach the dispatcher, with its base path, such as
    `https://flyte.example.com/notifications`. Digests and summaries link to the console there. Empty: no links."""
    token: HeaderToken | None = None
    """Bearer token for publishers. It has the same effect as an entry of `tokens` with the scope `publish`."""
    token_file: HeaderTokenFile | None = None
    tokens: tuple[Token, ...] = ()
    """Callers with their tokens and scopes. If `listen` is not a loopback address, `token`, `tokens` or `oidc` is
    required. If it is a loopback address and none of them is set, every program on this machine has full access."""
    oidc: Oidc | None = None
    """Login at the console through an OpenID Connect provider, in addition to the login with a token."""
    console: bool = False
    """Serve the console and its API."""
    metrics: Literal["guarded", "open"] = "guarded"
    """Access to `/metrics`. `guarded`: callers need the scope `read`. `open`: callers need no authentication."""
    rate: Annotated[Rate, BeforeValidator(parse_rate)] = Field("2000/s", validate_default=True)
    """Maximum request rate of each caller. A request beyond this rate gets status 429."""
    trusted_proxies: Annotated[tuple[Annotated[str, AfterValidator(_proxy)], ...], BeforeValidator(comma_list)] = ()
    """Addresses and networks of proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` headers are trusted."""
    tls: Tls | None = None
    session: Duration = Field(timedelta(hours=8), ge=timedelta(minutes=1), le=timedelta(days=30))
    """How long a login at the console is valid."""
    session_key_file: Annotated[ExistingFile, AfterValidator(_session_keys)] | None = None
    """File with the keys that sign session cookies, one per line. The first key signs new cookies. Cookies that were
    signed with any of the keys are accepted. All replicas need the same file. Without a file, each process generates a
    key, so a restart ends all sessions."""

    @property
    def address(self) -> tuple[str, int]:
        return host_and_port(self.listen, lowest=0)

    @property
    def takes_events(self) -> bool:
        """True if somebody may post events."""
        callers = list(self.callers())
        without_tokens = self.loopback and not callers and self.oidc is None
        return without_tokens or any(Scope.PUBLISH in caller.scopes for caller in callers)

    @property
    def loopback(self) -> bool:
        """True if only programs on this machine can connect."""
        return is_loopback(self.address[0])

    def callers(self) -> Iterator[Token]:
        """Yield all callers that have a token, including the publisher with `http.token`."""
        if self.token is not None or self.token_file is not None:
            yield Token(
                name="publisher", token=self.token, token_file=self.token_file, scopes=frozenset({Scope.PUBLISH})
            )
        yield from self.tokens

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        reject_both("token", self.token, self.token_file)
        try:
            callers = list(self.callers())
        except ValidationError as error:  # only http.token can be invalid here: `tokens` was validated before
            raise ValueError(message_of(error.errors()[0])) from None
        if len({caller.name for caller in callers}) < len(callers):
            raise ValueError("each of tokens needs a unique name; `publisher` is the name of http.token")
        if not callers and self.oidc is None and not self.loopback:
            raise ValueError(
                "listen is not a loopback address: set token or token_file, or tokens, or anyone could publish events"
            )
        if not callers and self.oidc is None and self.trusted_proxies:
            raise ValueError("trusted_proxies needs tokens: a proxy's clients are not programs on this machine")
        if (
            callers
            and self.console
            and self.oidc is None
            and not any(Scope.READ in caller.scopes for caller in callers)
        ):
            raise ValueError("console needs one of tokens with the scope read, or nobody could open it")
        return self


def is_loopback(host: str) -> bool:
    """True if the host, which is a name or an IP address, is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
