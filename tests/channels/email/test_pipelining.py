"""Pipelining (RFC 2920): the same outcome as commands sent one by one, in fewer round trips."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.contract import ChannelError, Later, Misconfigured, Never
from channels.email.channel import EmailChannel
from tests.support.mail import config, message
from tests.support.smtp import DROP, TAKE_AND_DROP, ScriptedRelay

EXTENSIONS = ("PIPELINING", "SIZE 10000000", "8BITMIME", "SMTPUTF8", "DSN")
NAMES = ("a@example.com", "b@example.com", "jäne@example.com")


EHLO_REPLY = b"250-hi\r\n250-PIPELINING\r\n250 SIZE\r\n"


@dataclass(slots=True)
class FixedReplyRelay:
    """A relay that sends prepared replies, whatever it receives."""

    port: int
    received: list[bytes]
    """The bytes received before each reply, and after the last one."""


@asynccontextmanager
async def fixed_replies(*replies: bytes, byte_by_byte: bool = False) -> AsyncIterator[FixedReplyRelay]:
    """Serve one connection."""
    received: list[bytes] = []
    finished = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        for reply in replies:
            received.append(await reader.read(2**16))
            for piece in (reply[index : index + 1] for index in range(len(reply))) if byte_by_byte else (reply,):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        received.append(await reader.read())
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        finished.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(10):
        yield FixedReplyRelay(server.sockets[0].getsockname()[1], received)
        await finished.wait()


async def test_a_mail_takes_two_round_trips() -> None:
    replies = (EHLO_REPLY, b"250 OK\r\n250 OK\r\n251 OK\r\n354 go on\r\n", b"250 queued\r\n", b"221 bye\r\n")
    async with fixed_replies(*replies) as relay:
        channel = EmailChannel(config(relay.port))
        await channel.send(message("a@example.com", "b@example.com"))
        await channel.aclose()

    _, envelope, mail, quit_command, _ = relay.received
    size = len(mail.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n."))
    assert envelope == (
        b"MAIL FROM:<flyte@example.com> SIZE=%d\r\nRCPT TO:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
        % size
    )
    assert mail.endswith(b"--\r\n.\r\n")
    assert quit_command == b"QUIT\r\n"


async def test_replies_may_arrive_byte_by_byte() -> None:
    replies = b"250-one\r\n250 OK\r\n250 2.1.5\r\n550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n354 go on\r\n"
    async with fixed_replies(EHLO_REPLY, replies, b"250 2.0.0 queued\r\n", b"221 bye\r\n", byte_by_byte=True) as relay:
        channel = EmailChannel(config(relay.port))
        receipt = await channel.send(message("a@example.com", "b@example.com"))
        await channel.aclose()

    assert {name: error.reason for name, error in receipt.failures.items()} == {
        "b@example.com": "the relay refused the recipient: 550 5.1.1 no 5.1.1 such 5.1.1 user; "
        "no such mailbox: fix the address in the rule"
    }


@pytest.mark.parametrize("accepts_data", [True, False])
async def test_if_all_recipients_are_refused_no_mail_is_sent_and_the_connection_is_kept(*, accepts_data: bool) -> None:
    async with ScriptedRelay(extensions=EXTENSIONS, accepts_data_without_recipients=accepts_data) as relay:
        relay.script = [("RCPT", "550 5.1.1 no such user"), ("RCPT", "550 5.1.1 no such user")]
        channel = EmailChannel(config(relay.port))

        with pytest.raises(Never, match="no such user"):
            await channel.send(message("a@example.com", "b@example.com", key="k1"))
        await channel.send(message(key="k2"))

        assert relay.mails_without_recipients == ([b""] if accepts_data else [])
        assert [mail.message_id for mail in relay.mails] == ["<k2@example.com>"]
        assert len(relay.sessions) == 1
        await channel.aclose()


async def test_a_relay_that_accepts_data_after_refusing_the_sender_gets_no_mail() -> None:
    async with fixed_replies(EHLO_REPLY, b"550 5.7.1 not you\r\n250 OK\r\n354 go on\r\n") as relay:
        channel = EmailChannel(config(relay.port))
        with pytest.raises(Misconfigured, match="not you"):
            await channel.send(message())
        await channel.aclose()

    assert relay.received[2:] == [b""]


@pytest.mark.parametrize(
    ("replies", "error_type"),
    [
        (b"250 OK\r\n250 OK\r\n354 go on\r\n250 unasked\r\n", Later),
        (b"250 OK\r\n250 OK\r\n250 OK\r\n354 go on\r\n", Never),
        (b"250 OK\r\nOK\r\n354 go on\r\n", Later),
        (b"250 OK\r\n" + b"250-" * 10_000, Later),
    ],
)
async def test_unrequested_or_invalid_replies_are_never_taken_for_acceptance(
    replies: bytes, error_type: type[Exception]
) -> None:
    async with fixed_replies(EHLO_REPLY, replies) as relay:
        channel = EmailChannel(config(relay.port))
        with pytest.raises(error_type):
            await channel.send(message())
        await channel.aclose()

    assert relay.received[2:] == [b""]


async def test_a_421_between_mails_is_not_taken_for_a_reply_to_the_next_mail() -> None:
    async with ScriptedRelay(extensions=EXTENSIONS) as relay:
        relay.script = [("mail", "250 2.0.0 queued\r\n421 4.4.2 idle too long")]
        channel = EmailChannel(config(relay.port))
        await channel.send(message(key="k1"))

        await channel.send(message(key="k2"))

        assert [len(commands) for commands in relay.sessions] == [4, 4]
        await channel.aclose()


async def test_after_a_relay_lost_pipelined_commands_they_are_sent_one_by_one() -> None:
    async with ScriptedRelay(extensions=EXTENSIONS, ignores_pipelined_commands=True) as relay:
        channel = EmailChannel(config(relay.port, timeout=0.3))
        with pytest.raises(Later):
            await channel.send(message(key="k1"))

        await channel.send(message(key="k2"))
        await channel.send(message(key="k3"))

        assert [mail.message_id for mail in relay.mails] == ["<k2@example.com>", "<k3@example.com>"]
        await channel.aclose()


async def test_a_line_break_in_an_address_is_never_sent_as_a_command() -> None:
    async with ScriptedRelay(extensions=EXTENSIONS) as relay:
        channel = EmailChannel(config(relay.port))

        with pytest.raises(Never, match="characters in it that no address can have"):
            await channel.send(message("a@example.com>\r\nRSET\r\nMAIL FROM:<x@example.com"))

        assert [command for command in relay.commands if not command.startswith("EHLO")] == []
        await channel.aclose()


def replies_to_a_command(*more: str) -> st.SearchStrategy[str]:
    """The usual reply (an empty string) or a refusal."""
    usual = st.just("")
    refusals = ["421 4.3.2 closing", "451 4.3.0 busy", "530 5.7.0 log in", "550 5.0.0 no", "552 5.5.3 enough", DROP]
    return usual | usual | usual | st.sampled_from([*refusals, *more])


@given(
    recipients=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    mail=replies_to_a_command(),
    rcpts=st.tuples(*[replies_to_a_command("251 2.1.5 forwarded")] * 3),
    data=replies_to_a_command(),
    end=replies_to_a_command(TAKE_AND_DROP),
    lenient=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_the_outcome_is_the_same_with_and_without_pipelining(
    recipients: list[str], mail: str, rcpts: tuple[str, ...], data: str, end: str, lenient: bool
) -> None:
    rcpt_replies = {f"RCPT TO:<{name}>": reply for name, reply in zip(NAMES, rcpts, strict=True)}
    replies = {"MAIL": mail, "DATA": data, "mail": end, **rcpt_replies}
    always = {step: reply for step, reply in replies.items() if reply}

    async def both() -> tuple[object, object]:
        pipelined = await outcome(recipients, always, EXTENSIONS, lenient=lenient)
        return pipelined, await outcome(recipients, always, EXTENSIONS[1:], lenient=lenient)

    pipelined, one_by_one = asyncio.run(both())

    assert pipelined == one_by_one


async def outcome(
    recipients: list[str], always: Mapping[str, str], extensions: tuple[str, ...], *, lenient: bool
) -> object:
    """The first mail's result, what the relay received of it, and the recipients of a second mail."""
    async with ScriptedRelay(extensions=extensions, always=always, accepts_data_without_recipients=lenient) as relay:
        channel = EmailChannel(config(relay.port))
        result = await send_result(channel, recipients, "k1")
        received, accepted = len(relay.received), [mail.recipients for mail in relay.mails]
        relay.always = {}
        await channel.send(message(key="k2"))
        (last,) = (mail for mail in relay.mails if mail.message_id == "<k2@example.com>")
        await channel.aclose()
        return result, received, accepted, last.recipients


async def send_result(channel: EmailChannel, recipients: list[str], key: str) -> object:
    try:
        receipt = await channel.send(message(*recipients, key=key))
    except ChannelError as error:
        return error_fields(error)
    return receipt.answer, {name: error_fields(error) for name, error in receipt.failures.items()}


def error_fields(error: ChannelError) -> object:
    provider_wide = isinstance(error, Later) and error.provider_wide
    return type(error), re.sub(r"127.0.0.1:\d+", "", error.reason), error.answer, provider_wide
