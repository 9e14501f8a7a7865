"""The mail channel against Debian's Postfix: outcomes, bounces, connection limit and restarts of a real relay."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from channels.contract import Later, Misconfigured, Never, UnknownRecipient
from channels.email.channel import EmailChannel
from tests.support import postfix
from tests.support.mail import ABOUT, CONTENT, config, message
from tests.support.postfix import TLS, Postfix, running

pytestmark = [pytest.mark.postfix, pytest.mark.skipif(bool(postfix.missing()), reason=postfix.missing())]


@pytest.fixture(scope="module")
def relay() -> Iterator[Postfix]:
    options = {
        "message_size_limit": "50000",
        "smtpd_client_connection_count_limit": "4",
        "smtpd_error_sleep_time": "0",
        "smtpd_helo_required": "yes",
        "smtpd_helo_restrictions": "reject_non_fqdn_helo_hostname, reject_invalid_helo_hostname,"
        " check_helo_access inline:{{banned.example.com = REJECT}}",
    }
    with running({**TLS, **options}) as postfix_relay:
        yield postfix_relay


@pytest.fixture
async def channel(relay: Postfix) -> AsyncIterator[EmailChannel]:
    opened = EmailChannel(config(relay.port, **tls_options(relay), envelope_from="bounces@example.com"))
    yield opened
    await opened.aclose()


def tls_options(relay: Postfix) -> dict[str, Any]:
    return {"host": "localhost", "security": "starttls", "ca_file": relay.ca_file}


async def test_a_mail_arrives_unchanged_in_its_mailbox(relay: Postfix, channel: EmailChannel) -> None:
    content = {**CONTENT, "about": ABOUT}
    await channel.send(message("a@example.com", "b@example.com", key="postfix1", content=content))

    mail = await relay.arrived("a", "<postfix1@example.com>")
    body: Any = mail.get_body(("plain",))
    assert (mail["subject"], body.get_content()) == (CONTENT["subject"], CONTENT["text"])
    assert mail["return-path"] == "<bounces@example.com>"
    assert mail["list-id"] == "<train.daily.production.flytesnacks.example.com>"
    assert "with ESMTPS" in str(mail["received"])


async def test_a_non_ascii_address_is_delivered(relay: Postfix, channel: EmailChannel) -> None:
    await channel.send(message("jäne@example.com", key="postfix2"))
    assert (await relay.arrived("jäne", "<postfix2@example.com>"))["to"] == "jäne@example.com"


async def test_each_recipient_has_its_own_outcome(relay: Postfix, channel: EmailChannel) -> None:
    names = ("b@example.com", "nobody@example.com", "grey@example.com", "full@example.com", "x@elsewhere.example")
    receipt = await channel.send(message(*names, key="postfix3"))

    failures = {name: (type(error), error.reason) for name, error in receipt.failures.items()}
    assert {name: kind for name, (kind, _) in failures.items()} == {
        "nobody@example.com": UnknownRecipient,
        "grey@example.com": Later,
        "full@example.com": Later,
        "x@elsewhere.example": UnknownRecipient,
    }
    assert "5.1.1" in failures["nobody@example.com"][1]
    assert "let it, or log in" in failures["x@elsewhere.example"][1]
    assert (await relay.arrived("b", "<postfix3@example.com>"))["subject"] == CONTENT["subject"]


async def test_after_20_refusals_the_others_get_the_mail(relay: Postfix, channel: EmailChannel) -> None:
    unknown = [f"nobody{number}@example.com" for number in range(45)]

    receipt = await channel.send(message(*unknown[:22], "b@example.com", *unknown[22:], key="postfix4"))

    assert list(receipt.failures) == unknown
    assert {type(error) for error in receipt.failures.values()} == {UnknownRecipient}
    assert relay.log.count("too many errors") == 2
    assert (await relay.arrived("b", "<postfix4@example.com>"))["to"]


async def test_in_a_pod_the_ehlo_name_is_accepted(relay: Postfix, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "dispatcher-7f9c6d5b8-x2lqz")
    channel = EmailChannel(config(relay.port, **tls_options(relay)))
    await channel.send(message(key="postfix5"))
    assert "from [127.0.0.1]" in (await relay.arrived("a", "<postfix5@example.com>"))["received"]
    await channel.aclose()


async def test_if_the_relay_refuses_the_ehlo_name_the_mail_waits(relay: Postfix) -> None:
    channel = EmailChannel(config(relay.port, **tls_options(relay), hello="banned.example.com"))
    with pytest.raises(Misconfigured, match=r"Helo command rejected: Access denied; set channels\.email\.hello"):
        await channel.send(message(key="postfix6"))
    await channel.aclose()


async def test_a_bounce_has_the_deliverys_key_and_is_sent_only_if_dsn_asks_for_it(relay: Postfix) -> None:
    for key, dsn in (("unwanted", "never"), ("wanted", "failure")):
        settings = config(relay.port, **tls_options(relay), envelope_from="bounces@example.com", dsn=dsn)
        channel = EmailChannel(settings)
        await channel.send(message("bounced@elsewhere.example", key=key))
        await channel.aclose()

    bounce = await relay.arrived("bounces", "<wanted@example.com>")
    assert "Original-Envelope-Id: wanted" in bounce.as_string()
    assert "Action: failed" in bounce.as_string()
    assert len(relay.mailbox("bounces")) == 1


async def test_a_mail_above_the_size_limit_raises_never(channel: EmailChannel) -> None:
    with pytest.raises(Never, match="the relay takes 50000: shorten the template"):
        await channel.send(message(content={**CONTENT, "html": "<p>x</p>\n" * 6000}))


async def test_the_pool_shrinks_to_the_connection_limit(relay: Postfix) -> None:
    channel = EmailChannel(config(relay.port, **tls_options(relay), connections=12))
    before = relay.log.count("Connection concurrency limit exceeded")

    await asyncio.gather(*(channel.send(message("flyte@example.com", key=f"first{n}")) for n in range(20)))
    refused = relay.log.count("Connection concurrency limit exceeded")
    await asyncio.gather(*(channel.send(message("flyte@example.com", key=f"then{n}")) for n in range(20)))

    assert 0 < refused - before <= 11
    assert relay.log.count("Connection concurrency limit exceeded") == refused
    for number in range(20):
        await relay.arrived("flyte", f"<first{number}@example.com>")
        await relay.arrived("flyte", f"<then{number}@example.com>")
    assert len(relay.mailbox("flyte")) == 40
    await channel.aclose()


async def test_the_client_certificate_is_sent_to_a_relay_that_requires_one() -> None:
    options = {**TLS, "smtpd_tls_req_ccert": "yes"}
    with running(options) as strict:
        with_certificate = EmailChannel(config(strict.port, **tls_options(strict), cert_file=strict.cert_file))
        await with_certificate.send(message(key="known"))
        await with_certificate.aclose()
        assert (await strict.arrived("a", "<known@example.com>"))["subject"] == CONTENT["subject"]

        untrusted = EmailChannel(config(strict.port, **tls_options(strict)))
        with pytest.raises(Later, match=r"see channels\.email\.cert_file") as caught:
            await untrusted.send(message(key="stranger"))
        assert caught.value.provider_wide
        await untrusted.aclose()


async def test_after_a_restart_of_the_relay_the_next_mail_uses_a_new_connection() -> None:
    with running(TLS) as relay:
        channel = EmailChannel(config(relay.port, **tls_options(relay)))
        await channel.send(message(key="before"))
        relay.stop()
        with pytest.raises(Later, match="can't be reached"):
            await channel.send(message(key="meanwhile"))
        relay.start()

        await channel.send(message(key="after"))

        await relay.arrived("a", "<before@example.com>")
        await relay.arrived("a", "<after@example.com>")
        await channel.aclose()
