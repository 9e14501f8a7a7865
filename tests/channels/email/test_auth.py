"""Login at a relay over TLS: each mechanism, token renewal, and that no secret appears in errors or logs."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import ssl
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from pydantic import ValidationError

from channels.contract import ChannelError, Later, Misconfigured
from channels.email import relay as relay_module
from channels.email.channel import EmailChannel
from channels.email.config import EmailConfig
from dispatcher.demo.fakes.inbox import MailReceiver
from tests.support.mail import config, message
from tests.support.servers import ForwardProxy
from tests.support.smtp import LoginRelay, ScriptedRelay

SECRET = "pass-of-the-relay"
TOKEN = "ya29.a-secret-token"
CLIENT_SECRET = "secret-of-the-client"


class Certificates:
    """A certificate authority, a TLS context for the server, and a client certificate."""

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.cert_file = folder / "client.pem"
        self.authority.cert_pem.write_to_path(str(self.ca_file))
        client = self.authority.issue_cert("dispatcher.example.com")
        client.private_key_and_cert_chain_pem.write_to_path(str(self.cert_file))
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert("localhost").configure_cert(self.server)

    def requiring_client_certificate(self) -> ssl.SSLContext:
        self.authority.configure_trust(self.server)
        self.server.verify_mode = ssl.CERT_REQUIRED
        return self.server


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
async def relay(certificates: Certificates) -> AsyncIterator[LoginRelay]:
    async with LoginRelay(login=("flyte", SECRET), tls=certificates.server, tokens={TOKEN}) as opened:
        yield opened


@pytest.fixture
def options(relay: LoginRelay, certificates: Certificates) -> dict[str, Any]:
    return {"host": "localhost", "security": "starttls", "username": "flyte", "ca_file": certificates.ca_file}


@asynccontextmanager
async def opened(settings: EmailConfig) -> AsyncIterator[EmailChannel]:
    channel = EmailChannel(settings)
    try:
        yield channel
    finally:
        await channel.aclose()


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """After each test: no log record contains a secret, neither ours nor the client libraries'."""
    caplog.set_level(logging.DEBUG)
    yield
    records = [record for record in caplog.records if not record.name.startswith("mail.")]  # aiosmtpd, the relay
    logged = " ".join(f"{record.getMessage()} {record.exc_text}" for record in records)
    assert not [secret for secret in secret_forms() if secret in logged]


def secret_forms() -> list[str]:
    """The secrets in plain text, and as they are sent in base64."""
    plain = [SECRET, TOKEN, CLIENT_SECRET, f"\0flyte\0{SECRET}", f"user=flyte\x01auth=Bearer {TOKEN}\x01\x01"]
    return [*plain[:3], *(base64.b64encode(form.encode()).decode() for form in plain)]


def assert_no_secret_in(error: ChannelError) -> None:
    shown = f"{''.join(traceback.format_exception(error))} {error!r} {error.answer}"
    assert not [secret for secret in secret_forms() if secret in shown]


@pytest.mark.parametrize(
    ("mechanisms", "auth", "used"),
    [
        (("PLAIN", "LOGIN", "CRAM-MD5"), "auto", "PLAIN"),
        (("LOGIN", "CRAM-MD5"), "auto", "LOGIN"),
        (("CRAM-MD5", "XOAUTH2"), "auto", "CRAM-MD5"),
        (("PLAIN", "LOGIN", "CRAM-MD5"), "login", "LOGIN"),
        (("PLAIN", "LOGIN", "CRAM-MD5"), "cram-md5", "CRAM-MD5"),
    ],
)
async def test_the_password_login_uses_the_first_mechanism_that_the_relay_offers(
    relay: LoginRelay, options: dict[str, Any], mechanisms: tuple[str, ...], auth: str, used: str
) -> None:
    relay.mechanisms = mechanisms
    async with opened(config(relay.port, password=SECRET, auth=auth, **options)) as channel:
        await channel.send(message(key="k1"))
        await channel.send(message(key="k2"))

    assert relay.used == [used]  # one login for each connection
    assert len(relay.mails) == 2


@pytest.mark.parametrize("auth", ["plain", "login", "cram-md5"])
async def test_a_wrong_password_raises_later_and_a_corrected_file_is_used(
    relay: LoginRelay, options: dict[str, Any], tmp_path: Path, auth: str
) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET[:-1])
    async with opened(config(relay.port, password_file=file, auth=auth, **options)) as channel:
        with pytest.raises(Later, match=r"refused the login: 535 .*; check channels.email.username") as caught:
            await channel.send(message())
        assert caught.value.provider_wide
        assert_no_secret_in(caught.value)

        file.write_text(f"{SECRET}\n")
        await channel.send(message())
    assert len(relay.mails) == 1


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file or directory"), (SECRET.encode("utf-16"), "it is not UTF-8")]
)
async def test_a_password_file_that_cannot_be_read_is_named(
    relay: LoginRelay, options: dict[str, Any], tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET)
    async with opened(config(relay.port, password_file=file, **options)) as channel:
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises(Misconfigured, match=rf"channels\.email\.password_file can't be read: {problem}"):
            await channel.send(message())


async def test_a_password_in_the_relays_reply_is_masked(relay: LoginRelay, options: dict[str, Any]) -> None:
    relay.login = ("flyte", "another")
    encoded = base64.b64encode(f"\0flyte\0{SECRET}".encode()).decode()
    relay.refusal = f"535 5.7.8 {SECRET} ({encoded}) is wrong"
    async with opened(config(relay.port, password=SECRET, **options)) as channel:
        with pytest.raises(Later, match=r"535 5.7.8 \*{8} \(\*{8}\) is wrong") as caught:
            await channel.send(message())
    assert_no_secret_in(caught.value)


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [
        ("454 4.7.0 Temporary authentication failure", "login service is out of order"),
        ("534 5.7.9 Application-specific password required", "a password made for applications"),
        ("538 5.7.11 Encryption required", "channels.email.security"),
    ],
)
async def test_each_refused_login_names_what_to_change(
    relay: LoginRelay, options: dict[str, Any], refusal: str, advice: str
) -> None:
    relay.login, relay.refusal = ("flyte", "another"), refusal
    async with opened(config(relay.port, password=SECRET, **options)) as channel:
        with pytest.raises(Later, match=advice) as caught:
            await channel.send(message())
    assert caught.value.provider_wide


async def test_a_relay_without_a_supported_mechanism_is_not_sent_the_password(
    relay: LoginRelay, options: dict[str, Any]
) -> None:
    relay.mechanisms = ("XOAUTH2",)
    async with opened(config(relay.port, password=SECRET, **options)) as channel:
        with pytest.raises(Later, match="offers no login by plain or login or cram-md5: it offers XOAUTH2"):
            await channel.send(message())
    assert relay.used == []


async def test_a_relay_without_starttls_is_not_sent_the_password() -> None:
    async with ScriptedRelay(extensions=("AUTH PLAIN LOGIN",)) as plain:
        settings = config(plain.port, security="starttls", username="flyte", password=SECRET)
        async with opened(settings) as channel:
            with pytest.raises(Later, match=r"offers no STARTTLS: see channels\.email\.security and port"):
                await channel.send(message())
        await plain.until(lambda: not plain.open)
        assert [command.partition(" ")[0] for command in plain.commands] in (["EHLO"], ["EHLO", "QUIT"])


async def test_a_token_file_is_read_at_each_login(relay: LoginRelay, options: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("an-expired-token")
    async with opened(config(relay.port, oauth={"token_file": file}, **options)) as channel:
        with pytest.raises(Later, match=r"refused the login: 535 .*; check channels.email.oauth") as caught:
            await channel.send(message())
        assert_no_secret_in(caught.value)

        file.write_text(TOKEN)
        await channel.send(message())
    assert relay.used == ["XOAUTH2"]


async def test_a_relay_without_xoauth2_is_not_sent_the_token(
    relay: LoginRelay, options: dict[str, Any], tmp_path: Path
) -> None:
    relay.mechanisms = ("PLAIN",)
    (tmp_path / "token").write_text(TOKEN)
    async with opened(config(relay.port, oauth={"token_file": tmp_path / "token"}, **options)) as channel:
        with pytest.raises(Later, match=r"takes no tokens \(no XOAUTH2\): it offers PLAIN"):
            await channel.send(message())


class TokenEndpoint:
    """A token endpoint (RFC 6749, 4.4) that records the tokens it granted."""

    def __init__(self) -> None:
        self.granted: list[str] = []
        self.lifetime: object = 3600
        self.answer: tuple[int, object] | None = None
        self.pause: float = 0
        """Seconds between the two halves of an answer."""

    async def grant(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        expected = {"grant_type": "client_credentials", "client_id": "dispatcher", "scope": "mail.send"}
        if self.answer is not None:
            return web.Response(status=self.answer[0], text=str(self.answer[1]), headers={"Location": "/elsewhere"})
        if dict(form) != {**expected, "client_secret": CLIENT_SECRET}:
            return web.json_response({"error": "invalid_client", "error_description": CLIENT_SECRET}, status=401)
        self.granted.append(f"{TOKEN}-{len(self.granted) + 1}")
        answer = web.json_response({"access_token": self.granted[-1], "expires_in": self.lifetime})
        if not self.pause:
            return answer
        assert answer.text
        slow = web.StreamResponse()
        await slow.prepare(request)
        for half in (answer.text[:20], answer.text[20:]):
            await slow.write(half.encode())
            await asyncio.sleep(self.pause)
        return slow

    def oauth(self, port: int, **changes: Any) -> dict[str, Any]:
        url = f"http://127.0.0.1:{port}/token"
        client = {"client_id": "dispatcher", "client_secret": CLIENT_SECRET, "scope": "mail.send"}
        return {"token_url": url, **client, **changes}


@asynccontextmanager
async def serving(endpoint: TokenEndpoint) -> AsyncIterator[int]:
    application = web.Application()
    application.router.add_post("/token", endpoint.grant)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.fixture
async def endpoint() -> AsyncIterator[tuple[TokenEndpoint, int]]:
    created = TokenEndpoint()
    async with serving(created) as port:
        yield created, port


async def test_all_connections_share_one_token_until_it_is_renewed(
    relay: LoginRelay,
    options: dict[str, Any],
    endpoint: tuple[TokenEndpoint, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, port = endpoint
    relay.tokens = {f"{TOKEN}-1", f"{TOKEN}-2"}
    async with opened(config(relay.port, oauth=tokens.oauth(port), connections=4, **options)) as channel:
        await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(8)))
    assert len(tokens.granted) == 1
    assert len(relay.mails) == 8

    monkeypatch.setattr(relay_module, "MAX_MAILS", 1)
    tokens.lifetime = 1e-9
    async with opened(config(relay.port, oauth=tokens.oauth(port), connections=1, **options)) as channel:
        await channel.send(message())
        relay.tokens.add(f"{TOKEN}-3")
        await channel.send(message())
    assert len(tokens.granted) == 3


async def test_a_token_that_the_relay_refused_is_not_used_again(
    relay: LoginRelay, options: dict[str, Any], endpoint: tuple[TokenEndpoint, int]
) -> None:
    tokens, port = endpoint
    relay.tokens = {f"{TOKEN}-2"}  # the first one was revoked
    async with opened(config(relay.port, oauth=tokens.oauth(port), **options)) as channel:
        with pytest.raises(Later, match=r"check channels\.email\.oauth: its scope"):
            await channel.send(message())
        await channel.send(message())
    assert len(relay.mails) == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "gave no token: 401 invalid_client; check channels.email.oauth"),
        ((400, '{"error": "invalid_scope"}'), "gave no token: 400 invalid_scope"),
        ((503, f"<h1>{CLIENT_SECRET}</h1>"), "gave no token: 503; check"),
        ((307, ""), "gave no token: 307"),
        ((200, f"{CLIENT_SECRET}"), "something that is no token"),
        ((200, json.dumps({"access_token": "a\nb"})), "something that is no token"),
    ],
)
async def test_without_a_token_the_error_is_later_and_has_no_secret(
    relay: LoginRelay,
    options: dict[str, Any],
    endpoint: tuple[TokenEndpoint, int],
    answer: tuple[int, str] | None,
    reason: str,
) -> None:
    tokens, port = endpoint
    tokens.answer = answer
    changes = {"client_id": "unknown"} if answer is None else {}
    async with opened(config(relay.port, oauth=tokens.oauth(port, **changes), **options)) as channel:
        with pytest.raises(Later, match=reason) as caught:
            await channel.send(message())
    assert caught.value.provider_wide
    assert_no_secret_in(caught.value)


@pytest.mark.parametrize(
    ("answer", "ours"),
    [((401, '{"error": "invalid_client"}'), True), ((200, "no token"), True), ((429, ""), False), ((503, ""), False)],
)
async def test_a_refused_token_is_for_a_person_to_correct_and_a_busy_endpoint_is_not(
    relay: LoginRelay,
    options: dict[str, Any],
    endpoint: tuple[TokenEndpoint, int],
    answer: tuple[int, str],
    ours: bool,
) -> None:
    tokens, port = endpoint
    tokens.answer = answer
    async with opened(config(relay.port, oauth=tokens.oauth(port), **options)) as channel:
        with pytest.raises(Later) as caught:
            await channel.send(message())
    assert isinstance(caught.value, Misconfigured) == ours


async def test_a_token_is_read_in_pieces_and_through_the_proxy(
    relay: LoginRelay,
    options: dict[str, Any],
    endpoint: tuple[TokenEndpoint, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, port = endpoint
    tokens.pause = 0.05
    relay.tokens = {f"{TOKEN}-1"}
    monkeypatch.setenv("NO_PROXY", "")
    async with ForwardProxy(port) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        async with opened(config(relay.port, oauth=tokens.oauth(port), **options)) as channel:
            await channel.send(message())
    assert len(relay.mails) == 1
    assert proxy.targets == [f"http://127.0.0.1:{port}/token"]


async def test_an_endless_token_is_not_read_to_its_end(
    relay: LoginRelay, options: dict[str, Any], endpoint: tuple[TokenEndpoint, int]
) -> None:
    tokens, port = endpoint
    tokens.answer = (200, 5 * 2**20 * " ")
    async with opened(config(relay.port, oauth=tokens.oauth(port), **options)) as channel:
        with pytest.raises(Misconfigured, match=r"token_url: the answer is longer than 4194304 bytes"):
            await channel.send(message())


async def test_an_unreachable_token_endpoint_is_provider_wide(relay: LoginRelay, options: dict[str, Any]) -> None:
    async with opened(config(relay.port, oauth=TokenEndpoint().oauth(1), **options)) as channel:
        with pytest.raises(Later, match="token_url can't be reached") as caught:
            await channel.send(message())
    assert caught.value.provider_wide


# In Python 3.11, asyncio leaves a server's socket to the garbage collector if the client breaks off the TLS handshake.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_client_certificate_is_sent_to_a_relay_that_requires_one(certificates: Certificates) -> None:
    async with MailReceiver(implicit_tls=certificates.requiring_client_certificate()) as relay:
        options = {"host": "localhost", "security": "tls", "ca_file": certificates.ca_file}
        async with opened(config(relay.port, **options, cert_file=certificates.cert_file)) as channel:
            await channel.send(message())
        assert len(relay.mails) == 1

        async with opened(config(relay.port, **options)) as untrusted:
            with pytest.raises(Later, match=r"see channels\.email\.cert_file") as caught:
                await untrusted.send(message())
        assert caught.value.provider_wide
        assert len(relay.mails) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as above
async def test_a_renewed_client_certificate_is_used_without_a_restart(certificates: Certificates) -> None:
    valid = certificates.cert_file.read_bytes()
    untrusted = trustme.CA().issue_cert("dispatcher.example.com").private_key_and_cert_chain_pem.bytes()
    options = {"host": "localhost", "security": "tls", "ca_file": certificates.ca_file}
    async with (
        MailReceiver(implicit_tls=certificates.requiring_client_certificate()) as relay,
        opened(config(relay.port, **options, cert_file=certificates.cert_file)) as channel,
    ):
        for pem, reason in ((untrusted, "see channels.email.cert_file"), (b"half written", "cert_file and key_file")):
            certificates.cert_file.write_bytes(pem)
            with pytest.raises(Later, match=reason):
                await channel.send(message())
        certificates.cert_file.write_bytes(valid)

        await channel.send(message())

        assert len(relay.mails) == 1


async def test_all_connections_share_one_tls_context(
    relay: LoginRelay, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[ssl.SSLContext] = []
    original = ssl.create_default_context

    def record(*arguments: Any, **options: Any) -> ssl.SSLContext:
        created.append(original(*arguments, **options))
        return created[-1]

    monkeypatch.setattr(ssl, "create_default_context", record)
    async with opened(config(relay.port, password=SECRET, connections=4, **options)) as channel:
        await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(8)))
    assert len(created) == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"username": "flyte"}, "username without password"),
        ({"password": SECRET}, "a login needs a username"),
        ({"username": "a", "password": SECRET, "oauth": {"token_file": "TOKEN"}}, "take password and auth away"),
        ({"username": "a", "oauth": {}}, "give token_file, or token_url"),
        ({"username": "a", "oauth": {"token_url": "https://x.example/t"}}, "token_url needs client_id"),
        (
            {
                "username": "a",
                "oauth": {"token_url": "http://x.example/t", "client_id": "c", "client_secret": CLIENT_SECRET},
            },
            "token_url must be https",
        ),
        ({"host": "relay.example.com", "username": "a", "password": SECRET}, "in the clear"),
        (
            {"host": "relay.example.com", "username": "a", "oauth": {"token_file": "TOKEN"}},
            "in the clear",
        ),
        ({"key_file": __file__}, "key_file without cert_file"),
        ({"cert_file": "CERTIFICATE"}, "security: none shows no certificate"),
        ({"host": ""}, "name the relay as host, or several as relays"),
        ({"relays": [{"host": "b"}]}, "host or relays, not both"),
        ({"host": "", "relays": [{"port": 25}]}, "each of relays needs a host"),
        ({"host": "", "relays": [{"host": "b.example", "username": "a", "password": SECRET}]}, "in the clear"),
        ({"dsn": "never,delay"}, "never stands alone"),
        ({"from": "jäne@example.com"}, "ASCII before the @"),
        ({"reply_to": "nobody"}, "not a mail address"),
        ({"envelope_from": "a b@example.com"}, "not a mail address"),
        ({"list_unsubscribe": "http://x.example/"}, "write https://… or mailto:…"),
        ({"list_unsubscribe": "https://x.example/>\r\nBcc: a@b.c"}, "write https://… or mailto:…"),
    ],
)
def test_contradictory_options_are_refused_without_showing_secrets(
    changes: dict[str, Any], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TOKEN").write_text("a-token")
    issued = trustme.CA().issue_cert("flyte.example.com")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "CERTIFICATE")
    with pytest.raises(ValidationError) as caught:
        config(25, **changes)
    problems = caught.value.errors(include_url=False, include_input=False, include_context=False)
    assert problem in str(problems)
    assert SECRET not in str(problems)


def test_a_relay_inherits_options_from_the_section_and_the_login_only_as_a_whole() -> None:
    common = {"from": "f@example.com", "port": 2525, "username": "one", "password": SECRET, "timeout": 7}
    relays = [{"host": "a"}, {"host": "b", "username": "two", "password_file": __file__}, {"host": "c", "port": 25}]
    first, second, third = EmailConfig.model_validate({**common, "relays": relays}).routes

    assert (first.host, first.address, first.username, first.timeout) == ("a", ("a", 2525), "one", 7)
    assert (second.username, second.password, str(second.password_file)) == ("two", None, __file__)
    assert (third.address, third.username) == (("c", 25), "one")
