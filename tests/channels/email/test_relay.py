"""Relays that refuse, hang up and go away: what becomes of the mail, and how their connections are used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from email.utils import parseaddr
from random import Random

import pytest

from channels.contract import ChannelError, InDoubt, Later, Never
from channels.email import EmailChannel, relay
from channels.email.channel import PASSED_OVER
from tests.support.mail import config, message, several
from tests.support.smtp import DROP, HANG, TAKE_AND_DROP, ScriptedRelay


@pytest.fixture(params=[(), ("PIPELINING",)], ids=["one by one", "pipelined"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ScriptedRelay]:
    async with ScriptedRelay(offers=("SIZE 10000000", "8BITMIME", *request.param)) as opened:
        yield opened


@pytest.fixture
async def second() -> AsyncIterator[ScriptedRelay]:
    async with ScriptedRelay() as opened:
        yield opened


@pytest.fixture
async def channel(server: ScriptedRelay) -> AsyncIterator[EmailChannel]:
    opened = EmailChannel(config(server.port))
    yield opened
    await opened.aclose()


def names(commands: Sequence[str]) -> list[str]:
    return [command.partition(" ")[0] for command in commands]


async def test_a_kept_connection_is_used_again_reset_where_it_needs_it_and_closed_with_quit(
    server: ScriptedRelay, channel: EmailChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await channel.send(message(key="k1"))
    await channel.send(message(key="k2"))
    server.script = [("mail", "554 5.7.1 spam")]
    with pytest.raises(Never):
        await channel.send(message(key="spam"))
    await channel.send(message(key="k3"))
    monkeypatch.setattr(relay, "TRUSTED", 0.0)  # a while later
    await channel.send(message(key="k4"))
    await channel.aclose()

    mail = ["MAIL", "RCPT", "DATA"]
    (said,) = server.conversations
    assert names(said) == ["EHLO", *mail, *mail, *mail, "RSET", *mail, "RSET", *mail, "QUIT"]


@pytest.mark.parametrize(
    ("step", "words", "kind"),
    [
        ("connect", DROP, Later),
        ("EHLO", DROP, Later),
        ("MAIL", DROP, Later),
        ("RCPT", DROP, Later),
        ("DATA", DROP, Later),
        ("mail", DROP, InDoubt),
        ("mail", TAKE_AND_DROP, InDoubt),
        ("connect", "garbage", Later),
        ("connect", "421 4.3.2 shutting down", Later),
        ("connect", "554 5.7.1 we don't know you", Later),
        ("MAIL", "421 4.7.0 enough", Later),
        ("MAIL", "garbage", Later),
        ("RCPT", "421 4.7.0 enough", Later),
        ("RCPT", "\x1b[2Jgarbage", Later),
        ("DATA", "garbage", Later),
        ("mail", "garbage", InDoubt),
        ("DATA", "421 4.7.0 enough", Later),
        ("DATA", "451 4.3.0 busy", Later),
        ("DATA", "554 5.5.1 no valid recipients", Never),
        ("mail", "421 4.7.0 enough", Later),
    ],
)
async def test_a_relay_that_breaks_off_at_any_step_leaves_no_doubt_but_where_there_is_some(
    server: ScriptedRelay, channel: EmailChannel, step: str, words: str, kind: type[ChannelError]
) -> None:
    server.script = [(step, words)]

    with pytest.raises(kind):
        await channel.send(message(key="k1"))

    await channel.send(message(key="k2"))
    assert len(server.mails) == (2 if words == TAKE_AND_DROP else 1)


@pytest.mark.parametrize("words", [DROP, "421 4.3.2 shutting down", "454 4.7.0 out of order", "garbage"])
@pytest.mark.parametrize("step", ["STARTTLS", "AUTH"])
async def test_a_relay_that_breaks_off_before_the_first_mail_is_everyones_trouble(
    server: ScriptedRelay, step: str, words: str
) -> None:
    server.offers, server.script = ("STARTTLS", "AUTH PLAIN"), [(step, words)]
    secured = {"security": "starttls"} if step == "STARTTLS" else {"username": "flyte", "password": "hidden-one"}
    channel = EmailChannel(config(server.port, **secured))

    with pytest.raises(Later) as caught:
        await channel.send(message())

    assert caught.value.everyone
    assert "hidden-one" not in f"{caught.value} {caught.value.answer}"
    assert "MAIL" not in names(server.said)
    await channel.aclose()


async def test_a_login_that_is_one_too_many_is_a_limit_too(server: ScriptedRelay) -> None:
    server.offers, server.pause = ("AUTH PLAIN",), 0.05
    server.always = {"AUTH": "235 welcome"}
    channel = EmailChannel(config(server.port, connections=2, username="flyte", password="hidden-one"))
    first = asyncio.create_task(channel.send(message(key="k1")))
    await server.until(lambda: "DATA" in server.said)
    server.script = [("AUTH", "454 4.7.0 too many logins")]
    await asyncio.gather(first, channel.send(message(key="k2")))

    await asyncio.gather(*(channel.send(message(key=f"m{number}")) for number in range(4)))

    assert len(server.mails) == 6
    assert len(server.conversations) == 2  # the refused one included
    await channel.aclose()


@pytest.mark.parametrize("step", ["connect", "EHLO", "MAIL", "RCPT", "DATA", "mail"])
async def test_a_relay_that_falls_silent_at_any_step_is_given_up_in_time(server: ScriptedRelay, step: str) -> None:
    server.script = [(step, HANG)]
    channel = EmailChannel(config(server.port, timeout=0.3))

    with pytest.raises(InDoubt if step == "mail" else Later):
        await channel.send(message())

    await channel.send(message())
    assert len(server.mails) == 1
    await channel.aclose()


@pytest.mark.parametrize("words", [DROP, "421 4.4.2 idle too long", "421 4.7.0 enough mails on this connection"])
@pytest.mark.parametrize("step", ["RSET", "MAIL"])
async def test_a_kept_connection_that_the_relay_has_done_with_costs_no_attempt(
    server: ScriptedRelay, channel: EmailChannel, step: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "TRUSTED", 0.0)
    await channel.send(message(key="k1"))
    server.script = [(step, words)]

    await channel.send(message(key="k2"))

    assert len(server.mails) == len(server.conversations) == 2


async def test_the_next_mail_after_a_silent_kept_connection_does_not_wait_long(
    server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PROBING", 0.2)
    monkeypatch.setattr(relay, "TRUSTED", 0.0)
    channel = EmailChannel(config(server.port, timeout=60))
    await channel.send(message(key="k1"))
    server.script = [("RSET", HANG)]

    async with asyncio.timeout(5):
        await channel.send(message(key="k2"))

    assert len(server.conversations) == 2
    await channel.aclose()


async def test_the_pool_learns_how_many_connections_the_relay_takes(server: ScriptedRelay) -> None:
    server.most_connections, server.pause = 3, 0.02
    channel = EmailChannel(config(server.port, connections=10))

    await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(40)))
    asked = server.refused
    await asyncio.gather(*(channel.send(message(key=f"m{number}")) for number in range(40)))

    assert len(server.mails) == 80
    assert server.most_open == 3
    assert 1 <= asked <= 7
    assert server.refused == asked
    await channel.aclose()


async def test_after_a_while_the_relay_is_asked_for_one_more_connection(
    server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "ONE_MORE", 0.0)
    server.most_connections, server.pause = 1, 0.05
    channel = EmailChannel(config(server.port, connections=2))
    await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(3)))
    server.most_connections = 2

    await asyncio.gather(*(channel.send(message(key=f"m{number}")) for number in range(4)))

    assert server.most_open == 2
    await channel.aclose()


async def test_a_relay_that_takes_no_connection_at_all_is_everyones_trouble(server: ScriptedRelay) -> None:
    server.most_connections = 0
    channel = EmailChannel(config(server.port, connections=5))

    results = await asyncio.gather(*(channel.send(message(key=f"k{n}")) for n in range(5)), return_exceptions=True)

    assert all(isinstance(result, Later) and result.everyone for result in results)
    server.most_connections = 5
    await channel.send(message())
    await channel.aclose()


async def test_connections_retire_by_count_and_by_age(server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MOST_MESSAGES", 3)
    channel = EmailChannel(config(server.port))
    for number in range(7):
        await channel.send(message(key=f"k{number}"))
    assert [names(said).count("MAIL") for said in server.conversations] == [3, 3, 1]
    assert server.conversations[0][-1] == "QUIT"

    monkeypatch.setattr(relay, "OLDEST", 0.0)
    await channel.send(message(key="late"))
    assert [names(said).count("MAIL") for said in server.conversations] == [3, 3, 1, 1]
    await channel.aclose()


async def test_connections_that_nobody_needs_are_closed(server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "LONGEST_IDLE", 0.05)
    channel = EmailChannel(config(server.port, connections=3))
    await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(3)))

    await server.until(lambda: names(server.said).count("QUIT") == 3)

    await channel.send(message())
    await channel.aclose()


async def test_a_send_that_is_cancelled_while_it_waits_for_a_connection_takes_none_with_it(
    server: ScriptedRelay,
) -> None:
    server.script = [("connect", HANG)]
    channel = EmailChannel(config(server.port, connections=1))
    first = asyncio.create_task(channel.send(message(key="k1")))
    await server.until(lambda: server.conversations)
    second = asyncio.create_task(channel.send(message(key="k2")))
    for task in (second, first):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await channel.send(message(key="k3"))

    assert len(server.mails) == 1
    await channel.aclose()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("connect", DROP),
        ("connect", "421 4.3.2 shutting down"),
        ("MAIL", "452 4.3.1 no space"),
        ("MAIL", "421 4.3.2 shutting down"),
        ("MAIL", "530 5.7.0 authentication required"),
        ("RCPT", DROP),
        ("mail", "451 4.3.0 busy"),
    ],
)
async def test_what_one_relay_does_not_take_for_now_goes_to_the_next(
    server: ScriptedRelay, second: ScriptedRelay, step: str, words: str
) -> None:
    server.script = [(step, words)]
    channel = EmailChannel(several(server.port, second.port))

    await channel.send(message())

    assert (len(server.mails), len(second.mails)) == (0, 1)
    await channel.aclose()


@pytest.mark.parametrize(
    ("step", "words", "kind"),
    [("MAIL", "550 5.7.1 no", Never), ("RCPT", "550 5.1.1 nobody", Never), ("mail", TAKE_AND_DROP, InDoubt)],
)
async def test_what_is_final_or_in_doubt_goes_to_no_other_relay(
    server: ScriptedRelay, second: ScriptedRelay, step: str, words: str, kind: type[ChannelError]
) -> None:
    server.script = [(step, words)]
    channel = EmailChannel(several(server.port, second.port))

    with pytest.raises(kind):
        await channel.send(message())

    assert second.conversations == []
    await channel.aclose()


async def test_a_relay_that_is_away_is_tried_last_until_it_has_had_time_to_come_back(
    server: ScriptedRelay, second: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = EmailChannel(several(server.port, second.port))
    server.script = [("connect", "421 4.3.2 shutting down")]
    for number in range(3):
        await channel.send(message(key=f"k{number}"))
    assert (len(server.conversations), len(server.mails), len(second.mails)) == (1, 0, 3)

    monkeypatch.setattr("channels.email.channel.PASSED_OVER", 0.0)
    await channel.send(message(key="back"))
    assert (len(server.mails), len(second.mails)) == (1, 3)
    await channel.aclose()


async def test_one_mail_finds_out_whether_a_relay_is_back_and_the_others_do_not_wait_for_it(
    server: ScriptedRelay, second: ScriptedRelay
) -> None:
    channel = EmailChannel(several(server.port, second.port, timeout=60))
    server.script = [("connect", "421 4.3.2 shutting down"), ("connect", HANG)]
    await channel.send(message(key="k1"))
    channel._failed_at = {relay: failed - PASSED_OVER for relay, failed in channel._failed_at.items()}
    scout = asyncio.create_task(channel.send(message(key="scout")))
    await server.until(lambda: len(server.conversations) == 2)

    async with asyncio.timeout(5):
        await asyncio.gather(*(channel.send(message(key=f"m{number}")) for number in range(5)))

    assert (len(server.conversations), len(second.mails)) == (2, 6)
    server.hang_up()
    await scout
    assert len(second.mails) == 7
    await channel.aclose()


async def test_a_mail_does_not_wait_for_ever_for_connections_that_others_hold(
    server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PATIENCE", 0.1)
    server.script = [("DATA", HANG)]
    channel = EmailChannel(config(server.port, connections=1))
    slow = asyncio.create_task(channel.send(message(key="slow")))
    await server.until(lambda: "DATA" in server.said)

    with pytest.raises(Later, match="keeps all its connections busy"):
        await channel.send(message(key="k2"))

    server.hang_up()
    with pytest.raises(Later, match="closed the connection before taking the mail"):
        await slow
    await channel.send(message(key="k3"))
    assert len(server.mails) == 1
    await channel.aclose()


async def test_where_no_relay_takes_it_each_says_why(server: ScriptedRelay, second: ScriptedRelay) -> None:
    server.always, second.always = {"connect": "421 4.3.2 shutting down"}, {"MAIL": "452 4.3.1 no space"}
    channel = EmailChannel(several(server.port, second.port))

    with pytest.raises(Later, match=r"421 4.3.2 shutting down; .*452 4.3.1 no space; it is short of space") as caught:
        await channel.send(message())

    assert not caught.value.everyone
    await channel.aclose()


async def test_a_mail_above_the_relays_limit_is_not_even_offered(server: ScriptedRelay) -> None:
    server.offers = ("SIZE 200",)
    channel = EmailChannel(config(server.port))

    with pytest.raises(Never, match=r"the mail has \d+ bytes and the relay takes 200: shorten the template"):
        await channel.send(message())

    assert names(server.said) == ["EHLO"]
    server.offers = ("SIZE 0",)  # no limit is known (RFC 1870, 4)
    await channel.aclose()
    fresh = EmailChannel(config(server.port))
    await fresh.send(message())
    assert f"SIZE={len(server.mails[0].raw)}" in server.said[-3]
    await fresh.aclose()


async def test_bounces_are_asked_for_where_the_relay_has_dsn(server: ScriptedRelay) -> None:
    server.offers = ("DSN",)
    channel = EmailChannel(config(server.port, dsn="failure,delay", envelope_from="bounces@example.org"))
    await channel.send(message("a@example.com", "b@example.com"))

    assert server.said[1:4] == [
        "MAIL FROM:<bounces@example.org> RET=HDRS ENVID=k1",
        "RCPT TO:<a@example.com> NOTIFY=FAILURE,DELAY",
        "RCPT TO:<b@example.com> NOTIFY=FAILURE,DELAY",
    ]
    assert parseaddr(str(server.mails[0].parsed["from"]))[1] == "flyte@example.com"
    await channel.aclose()


async def test_where_the_relay_offers_nothing_it_is_asked_for_nothing(server: ScriptedRelay) -> None:
    server.offers = ()
    channel = EmailChannel(config(server.port, dsn="never", envelope_from="<>"))
    await channel.send(message())
    assert server.said[1:3] == ["MAIL FROM:<>", "RCPT TO:<a@example.com>"]
    await channel.aclose()


async def test_an_address_beyond_ascii_needs_a_relay_that_has_smtputf8(server: ScriptedRelay) -> None:
    channel = EmailChannel(config(server.port))
    with pytest.raises(Never, match="no SMTPUTF8"):
        await channel.send(message("jäne@example.com"))

    receipt = await channel.send(message("a@example.com", "jäne@example.com"))

    assert list(receipt.failures) == ["jäne@example.com"]
    assert (server.mails[0].recipients, server.mails[0].parsed["to"]) == (("a@example.com",), "a@example.com")
    assert server.mails[0].raw.isascii()
    await channel.aclose()

    server.offers = ("SMTPUTF8", "8BITMIME")
    able = EmailChannel(config(server.port))
    await able.send(message("a@example.com", "jäne@example.com"))
    assert server.said[-3] == "RCPT TO:<a@example.com>"
    assert server.said[-4].endswith("BODY=8BITMIME SMTPUTF8")
    assert server.mails[1].recipients == ("a@example.com", "jäne@example.com")
    await able.aclose()


@pytest.mark.parametrize(
    ("step", "words", "kind", "advice"),
    [
        ("MAIL", "530 5.7.0 Authentication required", Later, "it wants a login"),
        ("MAIL", "550 5.7.1 not yours", Never, "check channels.email.from and envelope_from"),
        ("MAIL", "552 5.3.4 too big", Never, "shorten the template"),
        ("MAIL", "553 5.7.1 not owned by user", Never, "the login must be allowed to use them"),
        ("RCPT", "450 4.2.0 greylisted", Later, "greylisted"),
        ("RCPT", "550 5.1.1 no such user", Never, "mend the address in the rule"),
        ("RCPT", "550 5.2.1 disabled", Never, "switched off"),
        ("RCPT", "552 5.2.2 over quota", Later, "the mailbox is full"),
        ("RCPT", "554 5.7.1 relay access denied", Never, "let it, or log in"),
        ("mail", "552 5.3.4 too big", Never, "shorten the template"),
        ("mail", "554 5.7.1 spam", Never, "ask its operator"),
        ("mail", "452 4.3.1 no space", Later, "did not take the mail yet"),
    ],
)
async def test_each_refusal_says_what_to_change(
    server: ScriptedRelay, channel: EmailChannel, step: str, words: str, kind: type[ChannelError], advice: str
) -> None:
    server.script = [(step, words)]

    with pytest.raises(kind) as caught:
        await channel.send(message())

    assert words in caught.value.reason
    assert advice in caught.value.reason
    assert caught.value.answer is not None
    assert caught.value.answer.status == words[:3]


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_a_relay_does_and_whoever_loses_patience_no_connection_is_lost_to_the_pool(
    server: ScriptedRelay, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MOST_MESSAGES", 7)
    monkeypatch.setattr(relay, "TRUSTED", 0.0)
    dice = Random(seed)
    steps = ["connect", "EHLO", "RSET", "MAIL", "RCPT", "DATA", "mail"]
    words = [DROP, "421 4.3.2 closing", "451 4.3.0 busy", "550 5.0.0 no", "garbage"]
    server.script = [(dice.choice(steps), dice.choice(words)) for _ in range(80)]
    server.most_connections, server.pause = 3, 0.002
    channel = EmailChannel(config(server.port, connections=4))

    async def impatient(number: int) -> str:
        try:
            async with asyncio.timeout(dice.choice([0.0, 0.005, 0.02, 5.0, 5.0, 5.0])):
                await channel.send(message(key=f"k{number}"))
        except (ChannelError, TimeoutError) as error:
            return type(error).__name__
        return "sent"

    ends = [end for _ in range(10) for end in await asyncio.gather(*(impatient(number) for number in range(30)))]
    assert ends.count("sent") > 50
    assert len(set(ends)) >= 3

    server.script, server.most_connections, server.pause = [], 4, 0.2
    await channel.aclose()  # what is idle goes, and what was learned with it
    await server.until(lambda: not server.open)
    together = [asyncio.create_task(channel.send(message(key=f"after{number}"))) for number in range(4)]
    await server.until(lambda: server.open == 4)
    await asyncio.gather(*together)
    await channel.aclose()
