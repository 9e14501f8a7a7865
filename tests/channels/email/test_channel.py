"""The mail channel against aiosmtpd: the mail's bytes, the meaning of each reply, and mails after a failed one."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.header import decode_header
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from channels.contract import InDoubt, Later, Misconfigured, Never, UnknownRecipient
from channels.email.channel import EmailChannel
from channels.email.mime import WIDTH, compose, encoded_words
from dispatcher.demo.fakes.inbox import MailReceiver
from dispatcher.rendering.text import one_line
from tests.support.mail import CONTENT, config, message
from tests.support.smtp import ScriptedRelay


@pytest.fixture
async def relay() -> AsyncIterator[MailReceiver]:
    async with MailReceiver() as receiver:
        yield receiver


@pytest.fixture
async def channel(relay: MailReceiver) -> AsyncIterator[EmailChannel]:
    opened = EmailChannel(config(relay.port))
    yield opened
    await opened.aclose()


async def test_a_mail_arrives_as_text_and_html_with_all_headers(relay: MailReceiver, channel: EmailChannel) -> None:
    receipt = await channel.send(message("a@example.com", "b@example.com"))

    (mail,) = relay.mails
    parsed = mail.parsed
    assert mail.recipients == ("a@example.com", "b@example.com")
    assert mail.sender == "flyte@example.com"
    assert (parsed["from"], parsed["to"]) == ("Flyte <flyte@example.com>", "a@example.com, b@example.com")
    assert mail.subject == CONTENT["subject"]
    assert parsed["date"] == "Fri, 20 Nov 2026 09:14:21 +0000"
    assert parsed["auto-submitted"] == "auto-generated"
    assert [part.get_content_type() for part in parsed.iter_parts()] == ["text/plain", "text/html"]
    assert mail.part("plain") == "größer\n.\n"
    assert mail.part("html") == "<p>größer</p>\n"
    assert receipt.reference == {"message_id": "<k1@example.com>"}
    assert mail.message_id == "<k1@example.com>"
    assert mail.raw == channel.wire_preview(message("a@example.com", "b@example.com")).body


async def test_connections_are_kept_for_the_next_mail(relay: MailReceiver, channel: EmailChannel) -> None:
    for number in range(20):
        await channel.send(message(key=f"k{number}"))

    assert len(relay.mails) == 20
    assert relay.connections == 1


async def test_no_more_connections_are_opened_than_allowed(relay: MailReceiver) -> None:
    channel = EmailChannel(config(relay.port, connections=3))

    await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(30)))

    assert len(relay.mails) == 30
    assert relay.connections == 3
    await channel.aclose()


async def test_a_connection_that_the_relay_closed_while_idle_is_replaced() -> None:
    async with ScriptedRelay() as relay:
        channel = EmailChannel(config(relay.port))
        await channel.send(message(key="k1"))
        relay.hang_up()

        await channel.send(message(key="k2"))
        await channel.aclose()

    assert [mail.message_id for mail in relay.mails] == ["<k1@example.com>", "<k2@example.com>"]
    assert len(relay.sessions) == 2


async def test_a_refused_recipient_does_not_affect_the_others(relay: MailReceiver, channel: EmailChannel) -> None:
    relay.refuse = {"no@example.com": "550 5.1.1 no such user", "later@example.com": "451 4.7.1 greylisted"}

    receipt = await channel.send(message("a@example.com", "no@example.com", "b@example.com", "later@example.com"))

    assert relay.mails[0].recipients == ("a@example.com", "b@example.com")
    assert {name: type(error) for name, error in receipt.failures.items()} == {
        "no@example.com": UnknownRecipient,
        "later@example.com": Later,
    }
    assert "550 5.1.1 no such user" in receipt.failures["no@example.com"].reason


async def test_after_a_mail_without_accepted_recipients_the_next_is_sent(
    relay: MailReceiver, channel: EmailChannel
) -> None:
    relay.refuse = {"no@example.com": "550 5.1.1 no such user"}
    with pytest.raises(Never, match="no such user"):
        await channel.send(message("no@example.com"))

    await channel.send(message("a@example.com"))

    assert relay.mails[0].recipients == ("a@example.com",)
    assert relay.connections == 1


async def test_if_all_recipients_fail_and_one_temporarily_the_error_is_later(
    relay: MailReceiver, channel: EmailChannel
) -> None:
    relay.refuse = {"no@example.com": "550 no", "later@example.com": "450 busy"}

    with pytest.raises(Later):
        await channel.send(message("no@example.com", "later@example.com"))


@pytest.mark.parametrize(
    ("step", "reply", "error_type", "provider_wide"),
    [
        ("mail", "421 4.3.2 closing", Later, True),
        ("mail", "451 4.3.0 busy", Later, False),
        ("mail", "550 5.7.1 sender not allowed", Misconfigured, True),
        ("mail", "552 5.3.4 too big", Never, False),
        ("rcpt", "421 4.3.2 closing", Later, True),
        ("rcpt", "452 4.5.3 too many", Later, False),
        ("rcpt", "552 5.5.3 too many", Later, False),
        ("rcpt", "553 5.1.3 bad address", UnknownRecipient, False),
        ("rcpt", "drop", Later, False),
        ("data", "421 4.3.2 closing", Later, True),
        ("data", "451 4.3.0 try later", Later, False),
        ("data", "554 5.7.1 spam", Never, False),
        ("data", "take and drop", InDoubt, False),
    ],
)
async def test_each_reply_raises_its_error_and_the_next_mail_is_sent(
    relay: MailReceiver, channel: EmailChannel, step: str, reply: str, error_type: type[Exception], provider_wide: bool
) -> None:
    relay.script = [(step, reply)]

    with pytest.raises(error_type) as caught:
        await channel.send(message(key="k1"))

    assert type(caught.value) is error_type
    assert getattr(caught.value, "provider_wide", False) is provider_wide
    await channel.send(message(key="k2"))
    assert relay.mails[-1].message_id == "<k2@example.com>"


async def test_a_repeated_mail_has_the_same_bytes(relay: MailReceiver, channel: EmailChannel) -> None:
    relay.script = [("data", "take and drop")]
    with pytest.raises(InDoubt):
        await channel.send(message())

    await channel.send(message(in_doubt=True))

    one, two = relay.mails
    assert one.raw == two.raw


async def test_a_send_after_a_cancelled_one_succeeds(relay: MailReceiver, channel: EmailChannel) -> None:
    await channel.send(message(key="k1"))
    relay.script = [("rcpt", "wait")]
    task = asyncio.create_task(channel.send(message(key="k2")))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await channel.send(message(key="k3"))

    assert relay.mails[-1].message_id == "<k3@example.com>"


async def test_an_unreachable_relay_is_provider_wide() -> None:
    with pytest.raises(Later, match=r"127.0.0.1:1 can't be reached") as caught:
        await EmailChannel(config(1)).send(message())
    assert caught.value.provider_wide


async def test_a_relay_that_never_answers_runs_into_the_timeout() -> None:
    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(Later):
            await EmailChannel(config(port, timeout=0.3)).send(message())


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context, tmp_path / "ca.pem"


SECRET = "pass-of-the-relay"


# In Python 3.11, asyncio leaves a server's socket to the garbage collector if the client breaks off the TLS handshake.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("security", ["starttls", "tls"])
async def test_login_over_tls_succeeds_only_with_the_password_and_a_trusted_certificate(
    certificates: tuple[ssl.SSLContext, Path], security: str
) -> None:
    context, authority = certificates
    server_tls: dict[str, Any] = {"tls": context} if security == "starttls" else {"implicit_tls": context}
    async with MailReceiver(login=("flyte", SECRET), **server_tls) as relay:
        relay_config = {"host": "localhost", "security": security, "username": "flyte", "ca_file": authority}
        correct = EmailChannel(config(relay.port, password=SECRET, **relay_config))
        await correct.send(message())
        assert len(relay.mails) == 1
        await correct.aclose()

        wrong = EmailChannel(config(relay.port, password="wrong-one", **relay_config))
        with pytest.raises(Later, match=r"refused the login: 535 .*; check channels.email.username") as caught:
            await wrong.send(message())
        assert "wrong-one" not in f"{caught.value!r} {caught.value.answer}"

        untrusted = EmailChannel(config(relay.port, password=SECRET, **{**relay_config, "ca_file": None}))
        with pytest.raises(Later, match=r"certificate that is not trusted"):
            await untrusted.send(message())
        await asyncio.sleep(0.2)  # the server's side of the broken handshake closes


async def test_a_relay_without_starttls_gets_no_mail(relay: MailReceiver) -> None:
    with pytest.raises(Later):
        await EmailChannel(config(relay.port, security="starttls")).send(message())
    assert relay.mails == []


def test_a_password_is_never_sent_in_the_clear() -> None:
    with pytest.raises(ValidationError, match="in the clear"):
        config(25, host="relay.example.com", username="flyte", password=SECRET)


def test_the_password_does_not_appear_in_repr() -> None:
    assert SECRET not in repr(config(25, username="flyte", password=SECRET))


@pytest.mark.parametrize(
    "invalid",
    ["", "a", "a@", "@b", "a b@c.d", "a@b\r\nBcc: x@y.z", "#alerts", "a@b@c", "<a@b.c>", "a@" + "x" * 70 + ".com"],
)
def test_an_invalid_mail_address_is_an_unknown_recipient(invalid: str) -> None:
    with pytest.raises(UnknownRecipient):
        EmailChannel(config(25)).address(invalid)


def test_domains_are_lower_case_and_encoded_for_dns() -> None:
    channel = EmailChannel(config(25))
    assert channel.address("Jane.Doe@Example.COM") == "Jane.Doe@example.com"
    assert channel.address("jane@bücher.example") == "jane@xn--bcher-kva.example"


async def test_a_non_ascii_address_is_used_if_the_relay_has_smtputf8(
    relay: MailReceiver, channel: EmailChannel
) -> None:
    await channel.send(message("jäne@example.com"))
    assert relay.mails[0].recipients == ("jäne@example.com",)


@given(st.text(), st.text(max_size=3000), st.text(max_size=3000))
def test_a_mail_is_well_formed_for_any_text(subject: str, text: str, html: str) -> None:
    mail = compose(message(content={"subject": subject, "text": text, "html": html}), "Flyte <flyte@example.com>")

    head, _, _ = mail.partition(b"\r\n\r\n")
    names = [line.split(b":")[0].lower() for line in head.split(b"\r\n") if not line.startswith((b" ", b"\t"))]
    assert names == [
        b"date",
        b"from",
        b"to",
        b"subject",
        b"message-id",
        b"mime-version",
        b"auto-submitted",
        b"content-type",
    ]
    assert mail.replace(b"\r\n", b"").count(b"\n") == mail.replace(b"\r\n", b"").count(b"\r") == 0
    assert max(map(len, mail.split(b"\r\n"))) <= 998
    parsed: Any = message_from_bytes(mail, policy=default)
    plain, fancy = parsed.iter_parts()
    assert not parsed.defects
    assert (plain.get_content_type(), fancy.get_content_type()) == ("text/plain", "text/html")


FRAGILE_LINES = [
    "From me",
    "From ",
    ".",
    "..",
    "--=_k1",
    "--=_k1--",
    "a blank ",
    "a tab\t",
    "=3D =46",
    "\x1b[1m",
    "\x7f",
    "größer",
]
LONG_LINES = [length * "a" for length in (75, 500, 998, 999)]
texts = st.lists(st.sampled_from([*FRAGILE_LINES, *LONG_LINES, ""]) | st.text(max_size=30), max_size=8).map("\n".join)


@given(texts, texts)
@example("From me", "a\nFrom me, größer")
@example("é\nFrom From " + 66 * "a", "é " + 73 * "a" + "From me")
@example(".\n", "a\n.")
@example("a\n--=_k1--\n", "--=_k1\n\na")
@example(" ", "a\n\t\nb \n")
@example(998 * "a" + "\n" + 999 * "a", 999 * "a" + "\n")
def test_every_text_is_decoded_unchanged_and_has_no_line_that_relays_or_mailboxes_change(text: str, html: str) -> None:
    mail = compose(message(content={"subject": "s", "text": text, "html": html}), "flyte@example.com")

    lines = mail.split(b"\r\n")
    assert max(map(len, lines)) <= 998
    assert not [line for line in lines if line.startswith(b"From ") or line == b"." or line != line.rstrip(b" \t")]
    assert not [line for line in lines if re.search(rb"[^\t -~]", line)]
    parsed: Any = message_from_bytes(mail, policy=default)
    for part, original in zip(parsed.iter_parts(), (text, html), strict=True):
        if part["content-transfer-encoding"] == "quoted-printable":
            assert max(map(len, part.get_payload().splitlines())) <= 76  # RFC 2045, 6.7
        as_lines = original.replace("\0", "").splitlines() or [""]
        assert part.get_content().replace("\r\n", "\n") == "".join(f"{line}\n" for line in as_lines)


def test_a_text_that_needs_no_encoding_is_sent_as_7bit() -> None:
    def encodings(text: str, html: str) -> list[str]:
        mail = compose(message(content={"subject": "s", "text": text, "html": html}), "flyte@example.com")
        parsed: Any = message_from_bytes(mail, policy=default)
        return [part["content-transfer-encoding"] for part in parsed.iter_parts()]

    assert encodings("a = b\n", "<p>größer</p>") == ["7bit", "quoted-printable"]
    assert encodings("größer\n", f'<p class="a">\n{3 * (998 * "a" + chr(10))}</p>') == ["quoted-printable", "7bit"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" ")))
def test_a_subject_is_decoded_unchanged(subject: str) -> None:
    mail = compose(message(content={**CONTENT, "subject": subject}), "flyte@example.com")

    parsed: Any = message_from_bytes(mail, policy=default)
    assert " ".join(str(parsed["subject"]).split()) == one_line(subject)


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(30, WIDTH))
def test_encoded_words_keep_the_length_limits_and_are_decoded_unchanged(text: str, first_line: int) -> None:
    lines = encoded_words(text, first_line=first_line).split("\r\n")
    words = [line.strip() for line in lines]
    assert len(lines[0]) <= first_line
    assert max(map(len, lines)) <= WIDTH
    assert max(map(len, words)) <= 75
    pieces = [decode_header(word)[0] for word in words]
    assert {charset for _, charset in pieces} == {"utf-8"}
    assert "".join(octets.decode() for octets, _ in pieces) == text
    assert b"".join(octets for octets, _ in decode_header("\r\n".join(lines))).decode() == text


def test_characters_that_utf8_cannot_encode_become_question_marks() -> None:
    mail = compose(message(content={**CONTENT, "subject": "torn \ud800 é"}), "flyte@example.com")
    parsed: Any = message_from_bytes(mail, policy=default)
    assert parsed["subject"] == "torn ? é"


async def test_check_logs_in_and_sends_no_mail(relay: MailReceiver, channel: EmailChannel) -> None:
    (finding,) = await channel.check()
    assert (finding.ok, finding.message) == (
        True,
        f"mail relay 127.0.0.1:{relay.port} takes connections, it asks nobody to log in",
    )
    assert relay.mails == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_check_reports_a_wrong_password_and_an_unreachable_relay(
    certificates: tuple[ssl.SSLContext, Path],
) -> None:
    context, authority = certificates
    async with MailReceiver(login=("flyte", SECRET), tls=context) as relay:
        login = {"host": "localhost", "security": "starttls", "username": "flyte", "ca_file": authority}
        for password, correct in ((SECRET, True), ("wrong-one", False)):
            channel = EmailChannel(config(relay.port, password=password, **login))
            (finding,) = await channel.check()
            await channel.aclose()
            assert finding.ok is correct
            assert (
                "logged in as flyte" if correct else "check channels.email.username and password"
            ) in finding.message
            assert password not in finding.message
    unreachable = EmailChannel(config(1))
    (finding,) = await unreachable.check()
    assert (finding.ok, "can't be reached" in finding.message) == (False, True)
