"""Several commands at once (RFC 2920): the same outcome as one by one, in fewer round trips."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from channels.contract import ChannelError, Later, Never
from channels.email import EmailChannel
from tests.support.mail import config, message
from tests.support.smtp import DROP, TAKE_AND_DROP, ScriptedRelay

OFFERS = ("PIPELINING", "SIZE 10000000", "8BITMIME", "SMTPUTF8", "DSN")
NAMES = ("a@example.com", "b@example.com", "jäne@example.com")


HELLO = b"250-hi\r\n250-PIPELINING\r\n250 SIZE\r\n"


@dataclass(slots=True)
class Reciter:
    """A relay that has its answers ready, whatever it hears."""

    port: int
    heard: list[bytes]
    """What came before each answer, and after the last."""


@asynccontextmanager
async def reciting(*answers: bytes, drip: bool = False) -> AsyncIterator[Reciter]:
    """One connection's worth; `drip`: byte by byte."""
    heard: list[bytes] = []
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        for answer in answers:
            heard.append(await reader.read(2**16))
            for piece in (answer[index : index + 1] for index in range(len(answer))) if drip else (answer,):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        heard.append(await reader.read())
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        over.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(10):
        yield Reciter(server.sockets[0].getsockname()[1], heard)
        await over.wait()


async def test_a_mail_is_two_round_trips() -> None:
    answers = (HELLO, b"250 OK\r\n250 OK\r\n251 OK\r\n354 go on\r\n", b"250 queued\r\n", b"221 bye\r\n")
    async with reciting(*answers) as relay:
        channel = EmailChannel(config(relay.port))
        await channel.send(message("a@example.com", "b@example.com"))
        await channel.aclose()

    _, envelope, mail, farewell, _ = relay.heard
    size = len(mail.removesuffix(b".\r\n").replace(b"\r\n..", b"\r\n."))
    assert envelope == (
        b"MAIL FROM:<flyte@example.com> SIZE=%d\r\nRCPT TO:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
        % size
    )
    assert mail.endswith(b"--\r\n.\r\n")
    assert farewell == b"QUIT\r\n"


async def test_answers_may_come_in_any_pieces() -> None:
    answers = b"250-one\r\n250 OK\r\n250 2.1.5\r\n550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n354 go on\r\n"
    async with reciting(HELLO, answers, b"250 2.0.0 queued\r\n", b"221 bye\r\n", drip=True) as relay:
        channel = EmailChannel(config(relay.port))
        receipt = await channel.send(message("a@example.com", "b@example.com"))
        await channel.aclose()

    assert {name: error.reason for name, error in receipt.failures.items()} == {
        "b@example.com": "the relay refused the recipient: 550 5.1.1 no 5.1.1 such 5.1.1 user; "
        "no such mailbox: mend the address in the rule"
    }


@pytest.mark.parametrize("wants_mail", [True, False])
async def test_where_nobody_is_served_there_is_no_mail_and_the_connection_goes_on(*, wants_mail: bool) -> None:
    async with ScriptedRelay(offers=OFFERS, wants_mail_for_nobody=wants_mail) as relay:
        relay.script = [("RCPT", "550 5.1.1 no such user"), ("RCPT", "550 5.1.1 no such user")]
        channel = EmailChannel(config(relay.port))

        with pytest.raises(Never, match="no such user"):
            await channel.send(message("a@example.com", "b@example.com", key="k1"))
        await channel.send(message(key="k2"))

        assert relay.empty == ([b""] if wants_mail else [])
        assert [mail.message_id for mail in relay.mails] == ["<k2@example.com>"]
        assert len(relay.conversations) == 1
        await channel.aclose()


async def test_a_relay_that_wants_the_mail_of_a_sender_that_it_refused_gets_none() -> None:
    async with reciting(HELLO, b"550 5.7.1 not you\r\n250 OK\r\n354 go on\r\n") as relay:
        channel = EmailChannel(config(relay.port))
        with pytest.raises(Never, match="not you"):
            await channel.send(message())
        await channel.aclose()

    assert relay.heard[2:] == [b""]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (b"250 OK\r\n250 OK\r\n354 go on\r\n250 unasked\r\n", Later),
        (b"250 OK\r\n250 OK\r\n250 OK\r\n354 go on\r\n", Never),
        (b"250 OK\r\nOK\r\n354 go on\r\n", Later),
        (b"250 OK\r\n" + b"250-" * 10_000, Later),
    ],
)
async def test_what_is_no_answer_to_what_was_asked_never_counts_for_a_mail(
    answers: bytes, kind: type[Exception]
) -> None:
    async with reciting(HELLO, answers) as relay:
        channel = EmailChannel(config(relay.port))
        with pytest.raises(kind):
            await channel.send(message())
        await channel.aclose()

    assert relay.heard[2:] == [b""]


async def test_a_farewell_between_mails_is_no_answer_to_the_next_one() -> None:
    async with ScriptedRelay(offers=OFFERS) as relay:
        relay.script = [("mail", "250 2.0.0 queued\r\n421 4.4.2 idle too long")]
        channel = EmailChannel(config(relay.port))
        await channel.send(message(key="k1"))

        await channel.send(message(key="k2"))

        assert [len(said) for said in relay.conversations] == [4, 4]
        await channel.aclose()


async def test_a_relay_that_loses_commands_gets_them_one_by_one_from_then_on() -> None:
    async with ScriptedRelay(offers=OFFERS, deaf=True) as relay:
        channel = EmailChannel(config(relay.port, timeout=0.3))
        with pytest.raises(Later):
            await channel.send(message(key="k1"))

        await channel.send(message(key="k2"))
        await channel.send(message(key="k3"))

        assert [mail.message_id for mail in relay.mails] == ["<k2@example.com>", "<k3@example.com>"]
        await channel.aclose()


async def test_an_address_never_becomes_a_command() -> None:
    async with ScriptedRelay(offers=OFFERS) as relay:
        channel = EmailChannel(config(relay.port))

        with pytest.raises(Never, match="characters in it that no address can have"):
            await channel.send(message("a@example.com>\r\nRSET\r\nMAIL FROM:<x@example.com"))

        assert [words for words in relay.said if not words.startswith("EHLO")] == []
        await channel.aclose()


def answers(*more: str) -> st.SearchStrategy[str]:
    usual = st.just("")
    refusals = ["421 4.3.2 closing", "451 4.3.0 busy", "530 5.7.0 log in", "550 5.0.0 no", "552 5.5.3 enough", DROP]
    return usual | usual | usual | st.sampled_from([*refusals, *more])


@given(
    recipients=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    mail=answers(),
    rcpts=st.tuples(*[answers("251 2.1.5 forwarded")] * 3),
    data=answers(),
    end=answers(TAKE_AND_DROP),
    lenient=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_a_relay_answers_the_outcome_is_the_same_as_one_by_one(
    recipients: list[str], mail: str, rcpts: tuple[str, ...], data: str, end: str, lenient: bool
) -> None:
    said = {f"RCPT TO:<{name}>": words for name, words in zip(NAMES, rcpts, strict=True)}
    always = {step: words for step, words in {"MAIL": mail, "DATA": data, "mail": end, **said}.items() if words}

    async def both() -> tuple[object, object]:
        together = await outcome(recipients, always, OFFERS, lenient=lenient)
        return together, await outcome(recipients, always, OFFERS[1:], lenient=lenient)

    together, one_by_one = asyncio.run(both())

    assert together == one_by_one


async def outcome(
    recipients: list[str], always: Mapping[str, str], offers: tuple[str, ...], *, lenient: bool
) -> object:
    """What the first mail came to, what the relay got of it, and whether the next one arrived."""
    async with ScriptedRelay(offers=offers, always=always, wants_mail_for_nobody=lenient) as relay:
        channel = EmailChannel(config(relay.port))
        result = await sent(channel, recipients, "k1")
        offered, taken = len(relay.offered), [mail.recipients for mail in relay.mails]
        relay.always = {}
        await channel.send(message(key="k2"))
        (last,) = (mail for mail in relay.mails if mail.message_id == "<k2@example.com>")
        await channel.aclose()
        return result, offered, taken, last.recipients


async def sent(channel: EmailChannel, recipients: list[str], key: str) -> object:
    try:
        receipt = await channel.send(message(*recipients, key=key))
    except ChannelError as error:
        return told(error)
    return receipt.answer, {name: told(error) for name, error in receipt.failures.items()}


def told(error: ChannelError) -> object:
    everyone = isinstance(error, Later) and error.everyone
    return type(error), re.sub(r"127.0.0.1:\d+", "", error.reason), error.answer, everyone
