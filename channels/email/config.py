"""The settings of the mail channel: relays, logins, sender and signature."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AnyUrl,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from channels.common.comma_list import comma_list
from channels.common.network import check_host
from channels.common.secret import ExistingFile, HeaderTokenFile, Secret, SecretFile, reject_both
from channels.common.tls import CaFile, check_certificate
from channels.email.addresses import hello_name, mail_address, split_sender

NULL_SENDER = "<>"
"""The null reverse-path: an envelope sender which means that no bounces are sent (RFC 5321, 4.5.5)."""
_PORTS = {"none": 25, "starttls": 587, "tls": 465}
_BREAKS = re.compile(r"[\r\n\0\v\f\x1c-\x1e\x85\u2028\u2029]")
_LOGIN_OPTIONS = frozenset({"username", "password", "password_file", "auth", "oauth"})
"""The settings of a login. If an entry of `relays` contains none of these settings, the entry inherits all of them from
the section."""


class OAuthConfig(BaseModel):
    """Where XOAUTH2 access tokens come from: a file that another program renews, or a token endpoint
    (client-credentials flow).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_file: HeaderTokenFile | None = None
    """A file that contains an access token. The file is read at each login."""
    token_url: AnyUrl | None = None
    """The URL of the token endpoint (RFC 6749, 4.4). The URL must use https, except on a loopback address."""
    client_id: str = ""
    client_secret: Secret | None = None
    client_secret_file: SecretFile | None = None
    scope: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        reject_both("client_secret", self.client_secret, self.client_secret_file)
        if (self.token_file is None) == (self.token_url is None):
            raise ValueError("give token_file, or token_url with client_id and client_secret_file")
        if self.token_url is None:
            return self
        if not self.client_id or (self.client_secret is None and self.client_secret_file is None):
            raise ValueError("token_url needs client_id, and client_secret or client_secret_file")
        if self.token_url.scheme != "https" and not _loopback(self.token_url.host or ""):
            raise ValueError("token_url must be https, or the client's secret would go in the clear")
        return self


class DkimConfig(BaseModel):
    """The key that signs every mail with DKIM (RFC 6376)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    selector: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")
    """The selector of the DKIM key. The public key must be published in the TXT record `SELECTOR._domainkey.DOMAIN`."""
    domain: str = ""
    """The domain that signs the mails. If empty, the domain of the address in `from` signs."""
    key_file: ExistingFile
    """A PEM file with an RSA key without a passphrase. The key must have at least 1024 bits; 2048 are recommended (RFC
    8301)."""

    @model_validator(mode="after")
    def _can_sign(self) -> Self:
        if importlib.util.find_spec("dkim") is None:
            raise ValueError("signing needs dkimpy: pip install 'flyte-notification-dispatcher[dkim]'")
        from channels.email.dkim import read_key  # noqa: PLC0415 - dkimpy may not be installed

        read_key(self.key_file)
        return self


class RelayConfig(BaseModel):
    """The address of one relay, and the login to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    host: Annotated[str, AfterValidator(lambda host: host and check_host(host))] = ""
    port: int = Field(0, ge=0, le=65535)
    """The relay's port. 0 means the usual port for `security`: 587 for `starttls`, 465 for `tls`, 25 for `none`."""
    security: Literal["none", "starttls", "tls"] = "starttls"
    """How the connection is encrypted. With `starttls`, a relay that offers no STARTTLS is an error: mail is never sent
    unencrypted instead (RFC 8314)."""
    hello: str = ""
    """The name with which the dispatcher introduces itself to the relay (EHLO): a fully qualified host name, or an
    address in brackets such as `[192.0.2.1]`. If empty, the machine's host name; if that has no domain, as in a pod, or
    is not ASCII, the connection's own address in brackets (RFC 5321, 4.1.4)."""
    username: str | None = None
    password: Secret | None = None
    password_file: SecretFile | None = None
    auth: Literal["auto", "plain", "login", "cram-md5"] = "auto"
    """The login mechanism for the password. `auto` uses the first of `plain`, `login` and `cram-md5` that the relay
    offers."""
    oauth: OAuthConfig | None = None
    """Where access tokens come from. If set, the login uses a token (XOAUTH2) instead of a password."""
    connections: int = Field(5, ge=1, le=500)
    """Maximum number of connections to the relay."""
    timeout: float = Field(30, gt=0, le=100)
    """Maximum number of seconds for connecting to each of the relay's addresses, and for each reply of the relay."""
    ca_file: CaFile | None = None
    """A PEM file with the certificates to trust instead of the system's certificates."""
    cert_file: ExistingFile | None = None
    """A PEM file with the dispatcher's client certificate, for relays that require one."""
    key_file: ExistingFile | None = None
    """A PEM file with the key of the client certificate, without a passphrase. Needed if `cert_file` does not contain
    the key."""

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port or _PORTS[self.security]

    @field_validator("hello")
    @classmethod
    def _hello_is_a_host_name(cls, value: str) -> str:
        try:
            return hello_name(value) if value else ""
        except ValueError:
            raise ValueError(
                "write a host name with its domain, such as dispatcher.example.com, or [192.0.2.1]"
            ) from None

    @model_validator(mode="after")
    def _login_is_complete_and_encrypted(self) -> Self:
        reject_both("password", self.password, self.password_file)
        has_password = self.password is not None or self.password_file is not None
        if self.oauth is not None and (has_password or self.auth != "auto"):
            raise ValueError("oauth shows a token: take password and auth away")
        if self.username is not None and not has_password and self.oauth is None:
            raise ValueError("username without password or password_file")
        if self.username is None and (has_password or self.oauth is not None):
            raise ValueError("a login needs a username")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file without cert_file")
        if self.cert_file is not None:
            check_certificate(self.cert_file, self.key_file)
        if self.security == "none" and self.cert_file is not None:
            raise ValueError("security: none shows no certificate; use starttls or tls")
        if self.security == "none" and self.username is not None and self.host and not _loopback(self.host):
            raise ValueError("security: none would send the password in the clear; use starttls or tls")
        return self


Addresses = Annotated[tuple[str, ...], BeforeValidator(comma_list)]


class EmailConfig(RelayConfig):
    """The settings of the mail channel: the relays and the sender."""

    relays: tuple[RelayConfig, ...] = ()
    """Relays to use instead of `host`. They are tried in this order, and inherit options that they don't set from this
    section."""
    sender: str = Field(alias="from")
    """The sender of the mails: `flyte@example.com` or `Flyte <flyte@example.com>`."""
    envelope_from: str = ""
    """The address that receives bounces. If empty, the address in `from` receives them. `<>` means that no bounces are
    sent."""
    reply_to: Addresses = ()
    list_unsubscribe: str = ""
    """The web page or mail address for unsubscribing: `https://…` or `mailto:…` (RFC 2369)."""
    list_unsubscribe_post: bool = False
    """If true, mail programs offer to unsubscribe with one click: they send a POST to `list_unsubscribe`, which must
    then be an https address that unsubscribes the reader without asking (RFC 8058)."""
    recipients_visible: bool = True
    """If false, recipients don't see the other recipients of a mail."""
    dsn: Annotated[tuple[Literal["never", "failure", "delay", "success"], ...], BeforeValidator(comma_list)] = ()
    """The events about which the relay sends delivery reports to the envelope sender, if the relay offers DSN (RFC
    3461). If empty, the relay decides."""
    dkim: DkimConfig | None = None

    @property
    def routes(self) -> tuple[RelayConfig, ...]:
        """The settings of the relays, in the order in which the relays are tried."""
        return self.relays or (self,)

    @property
    def bounces(self) -> str:
        """The address that bounces are sent to (the envelope sender); empty if no bounces are sent."""
        return "" if self.envelope_from == NULL_SENDER else self.envelope_from or split_sender(self.sender).address

    @model_validator(mode="before")
    @classmethod
    def _relays_inherit_options(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("relays"), list | tuple):
            return data
        common = {name: data[name] for name in RelayConfig.model_fields if name in data and name != "host"}
        return {**data, "relays": [_with_inherited(relay, common) for relay in data["relays"]]}

    @field_validator("sender")
    @classmethod
    def _sender_is_an_address(cls, value: str) -> str:
        given = split_sender(value).address
        try:
            if _BREAKS.search(value):
                raise ValueError("a line break")
            address = _ascii_address(given)
        except ValueError as error:
            raise ValueError(
                f"not a mail address; write flyte@example.com or Flyte <flyte@example.com> ({error})"
            ) from None
        before, _, after = value.rpartition(given)
        return value if given.isascii() else f"{before}{address}{after}"

    @field_validator("envelope_from")
    @classmethod
    def _envelope_from_is_an_address(cls, value: str) -> str:
        return value if value in {"", NULL_SENDER} else _ascii_address(value)

    @field_validator("reply_to")
    @classmethod
    def _reply_to_has_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_ascii_address, value))

    @field_validator("list_unsubscribe")
    @classmethod
    def _list_unsubscribe_is_a_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"(https://|mailto:)[!-;=?-~]+", value):
            raise ValueError("write https://… or mailto:…, in ASCII and without spaces")
        return value

    @model_validator(mode="after")
    def _relays_are_complete(self) -> Self:
        if bool(self.host) == bool(self.relays):
            raise ValueError(
                "name the relay as host, or several as relays" if not self.host else "host or relays, not both"
            )
        if not all(relay.host for relay in self.relays):
            raise ValueError("each of relays needs a host")
        if self.list_unsubscribe_post and not self.list_unsubscribe.startswith("https://"):
            raise ValueError("list_unsubscribe_post needs an https address in list_unsubscribe (RFC 8058, 3.1)")
        if "never" in self.dsn and len(self.dsn) > 1:
            raise ValueError("dsn: never stands alone (RFC 3461, 4.1)")
        return self


def _with_inherited(relay: Any, common: Mapping[str, Any]) -> Any:
    if not isinstance(relay, dict):
        return relay
    own = {
        name: value for name, value in common.items() if not (name in _LOGIN_OPTIONS and _LOGIN_OPTIONS & relay.keys())
    }
    return {**own, **relay}


def _ascii_address(text: str) -> str:
    """Validate a sender's address. The part before the @ must be ASCII, because not every relay supports SMTPUTF8."""
    address = mail_address(text)
    if not address.isascii():
        raise ValueError("an address of ours must be ASCII before the @, or few relays could carry it")
    return address


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
