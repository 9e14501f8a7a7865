"""The headers and signature of a mail, parsed with the standard library: threads, lists, addresses, DKIM."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from channels.contract import Later
from channels.email.channel import EmailChannel
from channels.registry import CHANNEL_TYPES
from dispatcher.demo.fakes.inbox import MailReceiver
from dispatcher.model.phase import Phase
from dispatcher.rendering.renderer import Renderer
from tests.support.builders import a_launch_plan, an_event
from tests.support.mail import ABOUT, CONTENT, config, message
from tests.support.smtp import ScriptedRelay


@pytest.fixture
async def relay() -> AsyncIterator[MailReceiver]:
    async with MailReceiver() as receiver:
        yield receiver


def parse(raw: bytes) -> Any:
    parsed: Any = message_from_bytes(raw, policy=default)
    assert not parsed.defects
    return parsed


def rendered(about: Any = None, **changes: Any) -> Any:
    """A mail as it would be sent, parsed."""
    content = {**CONTENT, **({"about": about} if about else {})}
    return parse(
        EmailChannel(config(25, **changes))
        .wire_preview(message("a@example.com", "b@example.com", content=content))
        .body
    )


def test_the_mails_of_one_launch_plan_share_a_list_id_and_a_thread() -> None:
    renderer = Renderer(CHANNEL_TYPES)
    failed, succeeded, other = (
        rendered(renderer.render("email", an_event(phase, name=name, launch_plan=a_launch_plan(plan)))["about"])
        for phase, name, plan in (
            (Phase.FAILED, "one", "train.daily"),
            (Phase.SUCCEEDED, "two", "train.daily"),
            (Phase.FAILED, "three", "train.weekly"),
        )
    )

    assert failed["list-id"] == succeeded["list-id"] == "<train.daily.production.flytesnacks.example.com>"
    assert other["list-id"] == "<train.weekly.production.flytesnacks.example.com>"
    assert failed["references"] == succeeded["references"] == failed["in-reply-to"] != other["references"]
    assert failed["references"].startswith("<thread-")
    assert failed["references"].endswith("@example.com>")


def test_all_versions_of_a_launch_plan_share_a_thread() -> None:
    renderer = Renderer(CHANNEL_TYPES)
    one, two = (
        renderer.draft("email", an_event(launch_plan=a_launch_plan(version=version)))["about"] for version in ("1", "2")
    )
    assert rendered(one)["references"] == rendered(two)["references"]


def test_a_mail_without_a_launch_plan_belongs_to_no_thread() -> None:
    assert "about" not in Renderer(CHANNEL_TYPES).render("email", an_event())
    alone = rendered()
    assert (alone["references"], alone["list-id"], alone["auto-submitted"]) == (None, None, "auto-generated")


def test_only_mail_content_names_the_launch_plan() -> None:
    event = an_event(launch_plan=a_launch_plan())
    assert "about" not in Renderer(CHANNEL_TYPES).render("slack", event)
    assert "about" not in Renderer(CHANNEL_TYPES).render("pagerduty", event)


names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters="/"), min_size=1, max_size=255
)


@given(names, names, names)
def test_a_mail_is_well_formed_for_any_launch_plan_name(project: str, domain: str, plan: str) -> None:
    mail = rendered({"project": project, "domain": domain, "launch_plan": plan})

    assert mail["list-id"].isascii()
    assert len(mail["list-id"]) <= 255  # RFC 2919, 3
    assert ".." not in mail["list-id"]
    assert mail["from"] == "Flyte <flyte@example.com>"


@given(names, names)
def test_two_launch_plans_never_share_a_list_id(one: str, two: str) -> None:
    lists = {rendered({**ABOUT, "launch_plan": plan})["list-id"] for plan in (one, two)}
    assert len(lists) == len({one, two})


def test_reply_to_and_list_unsubscribe_come_from_the_settings() -> None:
    mail = rendered(
        reply_to=["ml-platform@example.com", "help@BÜCHER.example"],
        list_unsubscribe="https://intranet.example.com/flyte/notifications?unsubscribe=1",
    )
    assert mail["reply-to"] == "ml-platform@example.com, help@xn--bcher-kva.example"
    assert mail["list-unsubscribe"].strip() == "<https://intranet.example.com/flyte/notifications?unsubscribe=1>"
    plain = rendered()
    assert (plain["reply-to"], plain["list-unsubscribe"]) == (None, None)


def test_one_click_unsubscribing_is_offered_only_if_the_settings_say_so() -> None:
    page = "https://intranet.example.com/flyte/mute"
    assert rendered(list_unsubscribe=page)["list-unsubscribe-post"] is None
    mail = rendered(list_unsubscribe=page, list_unsubscribe_post=True)
    assert mail["list-unsubscribe-post"] == "List-Unsubscribe=One-Click"  # RFC 8058, 3.1
    with pytest.raises(ValidationError, match="needs an https address"):
        config(25, list_unsubscribe="mailto:mute@example.com", list_unsubscribe_post=True)


def test_header_lines_are_at_most_78_characters_long() -> None:
    content = {**CONTENT, "about": ABOUT}
    body = EmailChannel(config(25)).wire_preview(message(key="k" * 32, content=content)).body
    assert max(map(len, body.partition(b"\r\n\r\n")[0].split(b"\r\n"))) <= 78  # RFC 5322, 2.1.1


@pytest.mark.parametrize(
    ("sender", "name"),
    [
        ("Flyte @ Example <flyte@example.com>", "Flyte @ Example"),
        ("flyte@night <flyte@example.com>", "flyte@night"),
        ('"Flyte, Inc. @ \\"home\\"" <flyte@example.com>', 'Flyte, Inc. @ "home"'),
        ("flyte@example.com <flyte@example.com>", "flyte@example.com"),
        ("Flyte (prod) <flyte@example.com>", "Flyte (prod)"),
        ("Bücher @ Köln <flyte@example.com>", "Bücher @ Köln"),
        ("<flyte@example.com>", ""),
        ("flyte@example.com", ""),
    ],
)
def test_the_senders_name_may_contain_an_at_sign(sender: str, name: str) -> None:
    mail = rendered(**{"from": sender})
    (author,) = mail["from"].addresses
    assert (author.display_name, author.addr_spec) == (name, "flyte@example.com")
    assert mail["message-id"] == "<k1@example.com>"
    assert config(25, **{"from": sender}).bounces == "flyte@example.com"


@pytest.mark.parametrize(
    "sender", ["", "Flyte", "Flyte @ Example", "Flyte <flyte>", "a@b.c, d@e.f", "<a@b.c> Flyte", "A <a@b.c> <d@e.f>"]
)
def test_a_sender_without_one_address_is_a_problem(sender: str) -> None:
    with pytest.raises(ValidationError, match=r"not a mail address; write flyte@example\.com or Flyte <flyte@ex"):
        config(25, **{"from": sender})


async def test_recipients_are_hidden_if_the_settings_say_so(relay: MailReceiver) -> None:
    channel = EmailChannel(config(relay.port, recipients_visible=False))
    relay.refuse = {"no@example.com": "550 5.1.1 no such user"}

    receipt = await channel.send(message("a@example.com", "no@example.com", "b@example.com"))

    (mail,) = relay.mails
    assert mail.recipients == ("a@example.com", "b@example.com")
    assert mail.parsed["to"] == "undisclosed-recipients:;"
    assert b"a@example.com" not in mail.raw
    assert list(receipt.failures) == ["no@example.com"]
    await channel.aclose()


async def test_bounces_go_to_the_envelope_sender(relay: MailReceiver) -> None:
    channel = EmailChannel(config(relay.port, envelope_from="bounces@example.org"))
    await channel.send(message())
    assert (relay.mails[0].sender, relay.mails[0].parsed["from"]) == (
        "bounces@example.org",
        "Flyte <flyte@example.com>",
    )
    assert relay.mails[0].message_id == "<k1@example.com>"
    await channel.aclose()


@pytest.mark.parametrize(
    ("recipient", "address"),
    [
        ("jane@straße.example", "jane@xn--strae-oqa.example"),  # IDNA 2008; IDNA 2003 gives strasse
        ("jane@BÜCHER.example", "jane@xn--bcher-kva.example"),
        ("Jane@例え.テスト", "Jane@xn--r8jz45g.xn--zckzah"),
        ("jäne@bücher.example", "jäne@xn--bcher-kva.example"),
    ],
)
def test_non_ascii_domains_of_recipients_are_encoded_for_dns(recipient: str, address: str) -> None:
    assert EmailChannel(config(25)).address(recipient) == address


def test_a_non_ascii_domain_of_the_sender_is_encoded_for_dns() -> None:
    mail = rendered(**{"from": "Bücher <flyte@bücher.example>"})
    assert mail["from"] == "Bücher <flyte@xn--bcher-kva.example>"
    assert mail["message-id"] == "<k1@xn--bcher-kva.example>"


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, *, passphrase: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


@pytest.fixture
def key_file(key: rsa.RSAPrivateKey, tmp_path: Path) -> Path:
    (tmp_path / "dkim.pem").write_bytes(pem(key))
    return tmp_path / "dkim.pem"


def is_signed(raw: bytes, key: rsa.RSAPrivateKey, *, domain: str = "example.com") -> bool:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = base64.b64encode(key.public_key().public_bytes(serialization.Encoding.DER, form))
    records = {f"flyte._domainkey.{domain}.".encode(): b"v=DKIM1; k=rsa; p=" + public}

    def look_up(name: bytes, timeout: int = 5) -> bytes:
        return records[name]

    valid: bool = dkim.verify(raw, dnsfunc=look_up)
    return valid


async def test_a_mail_is_signed_if_there_is_a_key(relay: MailReceiver, key: rsa.RSAPrivateKey, key_file: Path) -> None:
    options = {"dkim": {"selector": "flyte", "key_file": key_file}, "reply_to": "help@example.com"}
    channel = EmailChannel(config(relay.port, **options))
    await channel.send(message("jäne@example.com", content={**CONTENT, "about": ABOUT}))
    await channel.aclose()

    raw = relay.mails[0].raw
    assert is_signed(raw, key)
    assert relay.mails[0].subject == CONTENT["subject"]
    for change in (
        (b"Subject: ", b"Subject: not "),
        (b"Reply-To: help", b"Reply-To: harm"),
        (b"List-Id:", b"List-Id: other"),
        (b"To: ", b"To: x@example.com, "),
        (b"From: ", b"From: Boss <boss@example.com>\r\nFrom: "),
        (b"gr=C3=B6", b"gr=C3=BC"),
    ):
        assert change[0] in raw
        assert not is_signed(raw.replace(*change, 1), key)


async def test_the_signature_is_valid_if_a_recipient_was_left_out(key: rsa.RSAPrivateKey, key_file: Path) -> None:
    async with ScriptedRelay(extensions=()) as plain:
        channel = EmailChannel(config(plain.port, dkim={"selector": "flyte", "key_file": key_file}))
        await channel.send(message("a@example.com", "jäne@example.com"))
        await channel.aclose()
    assert is_signed(plain.mails[0].raw, key)
    assert plain.mails[0].parsed["to"] == "a@example.com"


def test_a_mail_is_signed_for_the_configured_domain(key: rsa.RSAPrivateKey, key_file: Path) -> None:
    dkim_options = {"selector": "flyte", "key_file": key_file, "domain": "example.org"}
    raw = EmailChannel(config(25, dkim=dkim_options)).wire_preview(message()).body
    assert is_signed(raw, key, domain="example.org")


def test_a_renewed_key_is_read_again(key_file: Path) -> None:
    channel = EmailChannel(config(25, dkim={"selector": "flyte", "key_file": key_file}))
    channel.wire_preview(message())
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    key_file.write_bytes(pem(other))
    assert is_signed(channel.wire_preview(message()).body, other)


async def test_without_its_key_a_mail_raises_later_and_is_not_sent_unsigned(
    relay: MailReceiver, key_file: Path
) -> None:
    channel = EmailChannel(config(relay.port, dkim={"selector": "flyte", "key_file": key_file}))
    key_file.unlink()  # noqa: ASYNC240 - a test
    with pytest.raises(Later, match="can't be signed") as caught:
        await channel.send(message())
    assert caught.value.provider_wide
    assert relay.mails == []


@pytest.mark.parametrize("what", ["a passphrase", "an elliptic curve", "words", "nothing"])
def test_an_unusable_key_is_refused_at_start_without_showing_it(
    what: str, key: rsa.RSAPrivateKey, tmp_path: Path
) -> None:
    kinds = {
        "a passphrase": pem(key, passphrase=b"open sesame"),
        "an elliptic curve": pem(ec.generate_private_key(ec.SECP256R1())),
        "words": b"a secret of another kind",
        "nothing": b"",
    }
    (tmp_path / "key").write_bytes(kinds[what])
    with pytest.raises(ValidationError, match="holds no RSA key in PEM without a passphrase") as caught:
        config(25, dkim={"selector": "flyte", "key_file": tmp_path / "key"})
    assert "another kind" not in str(caught.value)
