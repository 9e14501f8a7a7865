"""How a session with a relay is opened: its addresses, the EHLO name, and what is wrong with its TLS."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from channels.contract import Later, Misconfigured
from channels.email.channel import EmailChannel
from tests.support.mail import config, message
from tests.support.smtp import DROP, HANG, ScriptedRelay

NAME = "relay.example.com"
FIRST = "127.0.0.2"
"""The first address of the relay. The second is 127.0.0.1, where `ScriptedRelay` listens, on the same port."""


@pytest.fixture
async def relay() -> AsyncIterator[ScriptedRelay]:
    async with ScriptedRelay() as opened:
        yield opened


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server with two addresses for the relay."""

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        assert host == NAME
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in (FIRST, "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@contextmanager
def no_packets_taken(port: int) -> Iterator[None]:
    """A port on the first address that answers no packet: Linux drops them once the queue of connections is full."""
    with ExitStack() as stack:
        stack.enter_context(closing(socket.create_server((FIRST, port), backlog=0)))
        for _ in range(4):
            filler = stack.enter_context(closing(socket.socket()))
            filler.setblocking(False)
            filler.connect_ex((FIRST, port))
        yield


@pytest.mark.usefixtures("two_addresses")
async def test_an_address_that_takes_no_packets_does_not_delay_the_mail(relay: ScriptedRelay) -> None:
    channel = EmailChannel(config(relay.port, host=NAME))
    with no_packets_taken(relay.port):
        async with asyncio.timeout(2):
            await channel.send(message())
    assert len(relay.mails) == 1
    await channel.aclose()


@pytest.mark.usefixtures("two_addresses")
async def test_if_no_address_takes_packets_each_had_its_own_timeout(relay: ScriptedRelay) -> None:
    channel = EmailChannel(config(relay.port, host=NAME, timeout=0.4))
    relay.always = {"connect": HANG}
    with no_packets_taken(relay.port), pytest.raises(Later, match=f"{NAME}:.* gives no answer within 0.4 s") as caught:
        await channel.send(message())
    assert caught.value.provider_wide
    assert len(relay.sessions) == 1


@pytest.mark.usefixtures("two_addresses")
@pytest.mark.parametrize("answer", ["refused", HANG, DROP, "421 4.3.2 not active", "554 5.3.2 no service"])
async def test_the_next_address_is_tried_if_one_gives_no_service_and_is_then_tried_first(
    relay: ScriptedRelay, answer: str
) -> None:
    channel = EmailChannel(config(relay.port, host=NAME, timeout=0.4, connections=1))
    async with ScriptedRelay(always={"connect": answer}) as broken:
        if answer != "refused":
            server = await asyncio.start_server(broken.serve, FIRST, relay.port)
        await channel.send(message(key="k1"))
        relay.hang_up()
        await channel.send(message(key="k2"))
        if answer != "refused":
            server.close()
    assert [mail.message_id for mail in relay.mails] == ["<k1@example.com>", "<k2@example.com>"]
    assert len(broken.sessions) == (0 if answer == "refused" else 1)
    await channel.aclose()


@pytest.mark.parametrize(
    ("host_name", "hello"),
    [
        ("dispatcher-7f9c6d5b8-x2lqz", "[127.0.0.1]"),
        ("größe.example.com", "[127.0.0.1]"),
        ("my_pod.example.com", "[127.0.0.1]"),
        ("10.0.0.7", "[127.0.0.1]"),
        ("", "[127.0.0.1]"),
        ("node-7.example.com", "node-7.example.com"),
    ],
)
async def test_the_ehlo_name_is_the_host_name_or_else_the_address(
    relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch, host_name: str, hello: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host_name)
    channel = EmailChannel(config(relay.port))
    await channel.send(message())
    assert relay.commands[0] == f"EHLO {hello}"
    await channel.aclose()


@pytest.mark.parametrize(
    ("setting", "hello"),
    [
        ("dispatcher.example.com", "dispatcher.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[2001:db8::1]", "[IPv6:2001:db8::1]"),
        ("[IPv6:2001:DB8::1]", "[IPv6:2001:db8::1]"),
    ],
)
async def test_the_ehlo_name_comes_from_the_settings(relay: ScriptedRelay, setting: str, hello: str) -> None:
    channel = EmailChannel(config(relay.port, hello=setting))
    await channel.send(message())
    assert relay.commands[0] == f"EHLO {hello}"
    await channel.aclose()


@pytest.mark.parametrize(
    "setting", ["localhost", "a b.example", "pod\r\nMAIL", "[pod]", "192.0.2.1", "-a.example", "ä"]
)
def test_an_ehlo_name_that_relays_refuse_is_a_problem(setting: str) -> None:
    with pytest.raises(ValidationError, match="write a host name with its domain, such as dispatcher"):
        config(25, hello=setting)


@pytest.mark.parametrize("reply", ["501 Syntactically invalid EHLO argument(s)", "504 5.5.2 bad", "550 5.7.1 HELO bad"])
async def test_if_the_relay_refuses_ehlo_the_mail_waits_and_the_error_names_the_setting(
    relay: ScriptedRelay, reply: str
) -> None:
    relay.always = {"EHLO": reply, "HELO": reply}
    channel = EmailChannel(config(relay.port))
    with pytest.raises(Misconfigured, match=r"set channels\.email\.hello"):
        await channel.send(message())
    (finding,) = await channel.check()
    assert not finding.ok


@pytest.mark.parametrize("size", [5000 * "9", "10 MB", "-1", "٣"])
async def test_a_size_limit_that_is_no_number_counts_as_no_limit(relay: ScriptedRelay, size: str) -> None:
    relay.extensions = (f"SIZE {size}",)
    channel = EmailChannel(config(relay.port))
    await channel.send(message())
    assert len(relay.mails) == 1
    await channel.aclose()


class Authority:
    """A certificate authority that leaves out extensions which RFC 5280 demands."""

    def __init__(self, folder: Path, *, left_out: type[x509.ExtensionType]) -> None:
        self.ca_file = folder / "ca.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Company CA")])
        key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        root = self._certificate(name, name, key, key, left_out, x509.BasicConstraints(True, None), usage, key_id)
        self.ca_file.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        leaf = self._certificate(
            x509.Name([]),
            name,
            leaf_key,
            key,
            left_out,
            x509.SubjectAlternativeName([x509.DNSName("localhost")]),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
        )
        pem = folder / "server.pem"
        pem.write_bytes(
            leaf_key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + leaf.public_bytes(serialization.Encoding.PEM)
        )
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(pem)

    def _certificate(
        self, subject: x509.Name, issuer: x509.Name, key: Any, signed_by: Any, left_out: Any, *extensions: Any
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
        for extension in extensions:
            if not isinstance(extension, left_out):
                critical = isinstance(extension, x509.BasicConstraints | x509.SubjectAlternativeName)
                builder = builder.add_extension(extension, critical)
        return builder.sign(signed_by, hashes.SHA256())


@contextmanager
def handshakes(context: ssl.SSLContext) -> Iterator[int]:
    """A TLS server on a thread, for one handshake. asyncio's server would close without sending its alert."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def shake_hands() -> None:
            accepted, _ = listener.accept()
            with accepted, suppress(ssl.SSLError), context.wrap_socket(accepted, server_side=True):
                pass

        thread = Thread(target=shake_hands)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@pytest.mark.parametrize(
    ("left_out", "problem"),
    [
        (x509.AuthorityKeyIdentifier, "Missing Authority Key Identifier"),
        (x509.SubjectKeyIdentifier, "Missing Subject Key Identifier"),
        (x509.KeyUsage, "CA cert does not include key usage extension"),
    ],
)
async def test_a_certificate_without_an_extension_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: type[x509.ExtensionType], problem: str
) -> None:
    original = ssl.create_default_context

    def strict(*arguments: Any, **options: Any) -> ssl.SSLContext:  # as Python 3.13 creates it
        context = original(*arguments, **options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    authority = Authority(tmp_path, left_out=left_out)
    with handshakes(authority.server) as port:
        channel = EmailChannel(config(port, host="localhost", security="tls", ca_file=authority.ca_file))
        with pytest.raises(Misconfigured, match=f"not trusted: {problem}; RFC 5280 demands this, and Python") as caught:
            await channel.send(message())
    assert "see channels.email.ca_file" not in caught.value.reason


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("newest", "client_certificate", "problem"),
    [
        (ssl.TLSVersion.TLSv1_1, False, r"alert: protocol version\): it has no TLS version or cipher that we accept"),
        (ssl.TLSVersion.TLSv1_2, True, r"alert: handshake failure\): see channels\.email\.cert_file"),
    ],
)
async def test_a_tls_alert_is_named(
    tmp_path: Path, newest: ssl.TLSVersion, client_certificate: bool, problem: str
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.minimum_version, server.maximum_version = ssl.TLSVersion.TLSv1_1, newest
    server.set_ciphers("DEFAULT:@SECLEVEL=0")  # else OpenSSL has no cipher for TLS 1.1
    server.verify_mode = ssl.CERT_REQUIRED if client_certificate else ssl.CERT_NONE
    authority.issue_cert("localhost").configure_cert(server)
    with handshakes(server) as port:
        channel = EmailChannel(config(port, host="localhost", security="tls", ca_file=tmp_path / "ca.pem"))
        with pytest.raises(Misconfigured, match=problem):
            await channel.send(message())
