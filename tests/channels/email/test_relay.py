"""Relays that refuse mail, close connections or can't be reached: the outcome of the mail, and the connection pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from email.utils import parseaddr
from random import Random

import pytest

from channels.contract import ChannelError, InDoubt, Later, Misconfigured, Never, UnknownRecipient
from channels.email import relay
from channels.email.channel import EmailChannel
from tests.support.mail import config, config_with_relays, message
from tests.support.smtp import DROP, HANG, TAKE_AND_DROP, ScriptedRelay


@pytest.fixture(params=[(), ("PIPELINING",)], ids=["one by one", "pipelined"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[ScriptedRelay]:
    async with ScriptedRelay(extensions=("SIZE 10000000", "8BITMIME", *request.param)) as opened:
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


def command_names(commands: Sequence[str]) -> list[str]:
    return [command.partition(" ")[0] for command in commands]


async def test_a_connection_is_used_again_with_rset_if_needed_and_closed_with_quit(
    server: ScriptedRelay, channel: EmailChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    await channel.send(message(key="k1"))
    await channel.send(message(key="k2"))
    server.script = [("mail", "554 5.7.1 spam")]
    with pytest.raises(Never):
        await channel.send(message(key="spam"))
    await channel.send(message(key="k3"))
    monkeypatch.setattr(relay, "SKIP_RSET", 0.0)  # as after an idle second
    await channel.send(message(key="k4"))
    await channel.aclose()

    mail = ["MAIL", "RCPT", "DATA"]
    (commands,) = server.sessions
    assert command_names(commands) == ["EHLO", *mail, *mail, *mail, "RSET", *mail, "RSET", *mail, "QUIT"]


@pytest.mark.parametrize(
    ("step", "reply", "error_type"),
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
async def test_a_failure_at_each_step_raises_its_error_and_the_next_mail_is_sent(
    server: ScriptedRelay, channel: EmailChannel, step: str, reply: str, error_type: type[ChannelError]
) -> None:
    server.script = [(step, reply)]

    with pytest.raises(error_type):
        await channel.send(message(key="k1"))

    await channel.send(message(key="k2"))
    assert len(server.mails) == (2 if reply == TAKE_AND_DROP else 1)


@pytest.mark.parametrize("reply", [DROP, "421 4.3.2 shutting down", "454 4.7.0 out of order", "garbage"])
@pytest.mark.parametrize("step", ["STARTTLS", "AUTH"])
async def test_a_failure_before_the_first_mail_is_provider_wide(server: ScriptedRelay, step: str, reply: str) -> None:
    server.extensions, server.script = ("STARTTLS", "AUTH PLAIN"), [(step, reply)]
    options = {"security": "starttls"} if step == "STARTTLS" else {"username": "flyte", "password": "hidden-one"}
    channel = EmailChannel(config(server.port, **options))

    with pytest.raises(Later) as caught:
        await channel.send(message())

    assert caught.value.provider_wide
    assert "hidden-one" not in f"{caught.value} {caught.value.answer}"
    assert "MAIL" not in command_names(server.commands)
    await channel.aclose()


async def test_a_temporarily_refused_login_counts_as_a_connection_limit(server: ScriptedRelay) -> None:
    server.extensions, server.mail_delay = ("AUTH PLAIN",), 0.05
    server.always = {"AUTH": "235 welcome"}
    channel = EmailChannel(config(server.port, connections=2, username="flyte", password="hidden-one"))
    first = asyncio.create_task(channel.send(message(key="k1")))
    await server.until(lambda: "DATA" in server.commands)
    server.script = [("AUTH", "454 4.7.0 too many logins")]
    await asyncio.gather(first, channel.send(message(key="k2")))

    await asyncio.gather(*(channel.send(message(key=f"m{number}")) for number in range(4)))

    assert len(server.mails) == 6
    assert len(server.sessions) == 2  # the refused one included
    await channel.aclose()


@pytest.mark.parametrize("step", ["connect", "EHLO", "MAIL", "RCPT", "DATA", "mail"])
async def test_a_relay_that_stops_answering_at_any_step_runs_into_the_timeout(server: ScriptedRelay, step: str) -> None:
    server.script = [(step, HANG)]
    channel = EmailChannel(config(server.port, timeout=0.3))

    with pytest.raises(InDoubt if step == "mail" else Later):
        await channel.send(message())

    await channel.send(message())
    assert len(server.mails) == 1
    await channel.aclose()


@pytest.mark.parametrize("reply", [DROP, "421 4.4.2 idle too long", "421 4.7.0 enough mails on this connection"])
@pytest.mark.parametrize("step", ["RSET", "MAIL"])
async def test_a_kept_connection_that_the_relay_closed_is_replaced_within_the_same_send(
    server: ScriptedRelay, channel: EmailChannel, step: str, reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "SKIP_RSET", 0.0)
    await channel.send(message(key="k1"))
    server.script = [(step, reply)]

    await channel.send(message(key="k2"))

    assert len(server.mails) == len(server.sessions) == 2


async def test_an_unresponsive_kept_connection_delays_the_next_mail_only_briefly(
    server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "RSET_TIMEOUT", 0.2)
    monkeypatch.setattr(relay, "SKIP_RSET", 0.0)
    channel = EmailChannel(config(server.port, timeout=60))
    await channel.send(message(key="k1"))
    server.script = [("RSET", HANG)]

    async with asyncio.timeout(5):
        await channel.send(message(key="k2"))

    assert len(server.sessions) == 2
    await channel.aclose()


async def test_the_pool_shrinks_to_the_number_of_connections_that_the_relay_allows(server: ScriptedRelay) -> None:
    server.max_connections, server.mail_delay = 3, 0.02
    channel = EmailChannel(config(server.port, connections=10))

    await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(40)))
    refused = server.refused_connections
    await asyncio.gather(*(channel.send(message(key=f"m{number}")) for number in range(40)))

    assert len(server.mails) == 80
    assert server.peak_open == 3
    assert 1 <= refused <= 7
    assert server.refused_connections == refused
    await channel.aclose()


async def test_the_pool_later_tries_to_open_one_more_connection(
    server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LIMIT_PROBE_INTERVAL", 0.0)
    server.max_connections, server.mail_delay = 1, 0.05
    channel = EmailChannel(config(server.port, connections=2))
    await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(3)))
    server.max_connections = 2

    await asyncio.gather(*(channel.send(message(key=f"m{number}")) for number in range(4)))

    assert server.peak_open == 2
    await channel.aclose()


async def test_a_relay_that_refuses_every_connection_is_provider_wide(server: ScriptedRelay) -> None:
    server.max_connections = 0
    channel = EmailChannel(config(server.port, connections=5))

    results = await asyncio.gather(*(channel.send(message(key=f"k{n}")) for n in range(5)), return_exceptions=True)

    assert all(isinstance(result, Later) and result.provider_wide for result in results)
    server.max_connections = 5
    await channel.send(message())
    await channel.aclose()


async def test_connections_are_closed_after_a_number_of_mails_and_at_an_age(
    server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_MAILS", 3)
    channel = EmailChannel(config(server.port))
    for number in range(7):
        await channel.send(message(key=f"k{number}"))
    assert [command_names(commands).count("MAIL") for commands in server.sessions] == [3, 3, 1]
    assert server.sessions[0][-1] == "QUIT"

    monkeypatch.setattr(relay, "MAX_AGE", 0.0)
    await channel.send(message(key="late"))
    assert [command_names(commands).count("MAIL") for commands in server.sessions] == [3, 3, 1, 1]
    await channel.aclose()


async def test_idle_connections_are_closed(server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MAX_IDLE", 0.05)
    channel = EmailChannel(config(server.port, connections=3))
    await asyncio.gather(*(channel.send(message(key=f"k{number}")) for number in range(3)))

    await server.until(lambda: command_names(server.commands).count("QUIT") == 3)

    await channel.send(message())
    await channel.aclose()


async def test_a_send_cancelled_while_it_waits_for_a_connection_leaves_the_pool_usable(
    server: ScriptedRelay,
) -> None:
    server.script = [("connect", HANG)]
    channel = EmailChannel(config(server.port, connections=1))
    first = asyncio.create_task(channel.send(message(key="k1")))
    await server.until(lambda: server.sessions)
    second = asyncio.create_task(channel.send(message(key="k2")))
    for task in (second, first):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await channel.send(message(key="k3"))

    assert len(server.mails) == 1
    await channel.aclose()


@pytest.mark.parametrize(
    ("step", "reply"),
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
async def test_a_mail_that_one_relay_refuses_temporarily_is_sent_to_the_next(
    server: ScriptedRelay, second: ScriptedRelay, step: str, reply: str
) -> None:
    server.script = [(step, reply)]
    channel = EmailChannel(config_with_relays(server.port, second.port))

    await channel.send(message())

    assert (len(server.mails), len(second.mails)) == (0, 1)
    await channel.aclose()


@pytest.mark.parametrize(
    ("step", "reply", "error_type"),
    [
        ("MAIL", "552 5.3.4 too big", Never),
        ("RCPT", "550 5.1.1 nobody", UnknownRecipient),
        ("mail", TAKE_AND_DROP, InDoubt),
    ],
)
async def test_a_mail_that_is_refused_permanently_or_in_doubt_is_sent_to_no_other_relay(
    server: ScriptedRelay, second: ScriptedRelay, step: str, reply: str, error_type: type[ChannelError]
) -> None:
    server.script = [(step, reply)]
    channel = EmailChannel(config_with_relays(server.port, second.port))

    with pytest.raises(error_type):
        await channel.send(message())

    assert second.sessions == []
    await channel.aclose()


async def test_a_relay_that_failed_is_tried_last_for_a_while(
    server: ScriptedRelay, second: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = EmailChannel(config_with_relays(server.port, second.port))
    server.script = [("connect", "421 4.3.2 shutting down")]
    for number in range(3):
        await channel.send(message(key=f"k{number}"))
    assert (len(server.sessions), len(server.mails), len(second.mails)) == (1, 0, 3)

    monkeypatch.setattr("channels.email.channel.FAILED_RELAY_LAST", 0.0)
    await channel.send(message(key="back"))
    assert (len(server.mails), len(second.mails)) == (1, 3)
    await channel.aclose()


async def test_one_mail_tests_a_relay_that_failed_and_other_mails_do_not_wait_for_it(
    server: ScriptedRelay, second: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = EmailChannel(config_with_relays(server.port, second.port, timeout=60))
    server.script = [("connect", "421 4.3.2 shutting down"), ("connect", HANG)]
    await channel.send(message(key="k1"))
    with monkeypatch.context() as later:
        later.setattr("channels.email.channel.FAILED_RELAY_LAST", 0.0)
        probe = asyncio.create_task(channel.send(message(key="probe")))
        await server.until(lambda: len(server.sessions) == 2)

    async with asyncio.timeout(5):
        await asyncio.gather(*(channel.send(message(key=f"m{number}")) for number in range(5)))

    assert (len(server.sessions), len(second.mails)) == (2, 6)
    server.hang_up()
    await probe
    assert len(second.mails) == 7
    await channel.aclose()


async def test_a_mail_waits_only_for_a_limited_time_for_a_connection(
    server: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "ACQUIRE_TIMEOUT", 0.1)
    server.script = [("DATA", HANG)]
    channel = EmailChannel(config(server.port, connections=1))
    slow = asyncio.create_task(channel.send(message(key="slow")))
    await server.until(lambda: "DATA" in server.commands)

    with pytest.raises(Later, match="keeps all its connections busy"):
        await channel.send(message(key="k2"))

    server.hang_up()
    with pytest.raises(Later, match="closed the connection before taking the mail"):
        await slow
    await channel.send(message(key="k3"))
    assert len(server.mails) == 1
    await channel.aclose()


async def test_if_no_relay_accepts_a_mail_the_error_has_each_relays_reason(
    server: ScriptedRelay, second: ScriptedRelay
) -> None:
    server.always, second.always = {"connect": "421 4.3.2 shutting down"}, {"MAIL": "452 4.3.1 no space"}
    channel = EmailChannel(config_with_relays(server.port, second.port))

    with pytest.raises(Later, match=r"421 4.3.2 shutting down; .*452 4.3.1 no space; it is short of space") as caught:
        await channel.send(message())

    assert not caught.value.provider_wide
    await channel.aclose()


async def test_a_mail_above_the_relays_size_limit_is_not_sent(server: ScriptedRelay) -> None:
    server.extensions = ("SIZE 200",)
    channel = EmailChannel(config(server.port))

    with pytest.raises(Never, match=r"the mail has \d+ bytes and the relay takes 200: shorten the template"):
        await channel.send(message())

    assert command_names(server.commands) == ["EHLO"]
    server.extensions = ("SIZE 0",)  # no limit is known (RFC 1870, 4)
    await channel.aclose()
    fresh = EmailChannel(config(server.port))
    await fresh.send(message())
    assert f"SIZE={len(server.mails[0].raw)}" in server.commands[-3]
    await fresh.aclose()


async def test_dsn_parameters_are_sent_if_the_relay_offers_dsn(server: ScriptedRelay) -> None:
    server.extensions = ("DSN",)
    channel = EmailChannel(config(server.port, dsn="failure,delay", envelope_from="bounces@example.org"))
    await channel.send(message("a@example.com", "b@example.com"))

    assert server.commands[1:4] == [
        "MAIL FROM:<bounces@example.org> RET=HDRS ENVID=k1",
        "RCPT TO:<a@example.com> NOTIFY=FAILURE,DELAY",
        "RCPT TO:<b@example.com> NOTIFY=FAILURE,DELAY",
    ]
    assert parseaddr(str(server.mails[0].parsed["from"]))[1] == "flyte@example.com"
    await channel.aclose()


async def test_a_relay_without_extensions_gets_no_parameters(server: ScriptedRelay) -> None:
    server.extensions = ()
    channel = EmailChannel(config(server.port, dsn="never", envelope_from="<>"))
    await channel.send(message())
    assert server.commands[1:3] == ["MAIL FROM:<>", "RCPT TO:<a@example.com>"]
    await channel.aclose()


async def test_a_non_ascii_address_needs_a_relay_with_smtputf8(server: ScriptedRelay) -> None:
    channel = EmailChannel(config(server.port))
    with pytest.raises(Never, match="no SMTPUTF8"):
        await channel.send(message("jäne@example.com"))

    receipt = await channel.send(message("a@example.com", "jäne@example.com"))

    assert list(receipt.failures) == ["jäne@example.com"]
    assert (server.mails[0].recipients, server.mails[0].parsed["to"]) == (("a@example.com",), "a@example.com")
    assert server.mails[0].raw.isascii()
    await channel.aclose()

    server.extensions = ("SMTPUTF8", "8BITMIME")
    with_smtputf8 = EmailChannel(config(server.port))
    await with_smtputf8.send(message("jäne@example.com"))
    assert server.commands[-2] == "RCPT TO:<jäne@example.com>"
    assert server.commands[-3].endswith("BODY=8BITMIME SMTPUTF8")
    await with_smtputf8.aclose()


@pytest.mark.parametrize(
    ("step", "reply", "error_type", "advice"),
    [
        ("MAIL", "530 5.7.0 Authentication required", Misconfigured, "it wants a login"),
        ("MAIL", "550 5.7.1 not yours", Misconfigured, "check channels.email.from and envelope_from"),
        ("MAIL", "552 5.3.4 too big", Never, "shorten the template"),
        ("MAIL", "553 5.7.1 not owned by user", Misconfigured, "the login must be allowed to use them"),
        ("RCPT", "450 4.2.0 greylisted", Later, "greylisted"),
        ("RCPT", "550 5.1.1 no such user", UnknownRecipient, "fix the address in the rule"),
        ("RCPT", "550 5.2.1 disabled", UnknownRecipient, "switched off"),
        ("RCPT", "552 5.2.2 over quota", Later, "the mailbox is full"),
        ("RCPT", "554 5.7.1 relay access denied", UnknownRecipient, "let it, or log in"),
        ("mail", "552 5.3.4 too big", Never, "shorten the template"),
        ("mail", "554 5.7.1 spam", Never, "ask its operator"),
        ("mail", "452 4.3.1 no space", Later, "did not take the mail yet"),
    ],
)
async def test_each_refusal_names_what_to_change(
    server: ScriptedRelay, channel: EmailChannel, step: str, reply: str, error_type: type[ChannelError], advice: str
) -> None:
    server.script = [(step, reply)]

    with pytest.raises(error_type) as caught:
        await channel.send(message())

    assert reply in caught.value.reason
    assert advice in caught.value.reason
    assert caught.value.answer is not None
    assert caught.value.answer.status == reply[:3]


@pytest.mark.parametrize("closing", ["421 4.7.0 Error: too many errors", DROP])
async def test_refusals_heard_before_the_relay_closes_are_kept_and_the_others_get_the_mail(
    server: ScriptedRelay, channel: EmailChannel, closing: str
) -> None:
    server.script = [("RCPT", "550 5.1.1 unknown"), ("RCPT", "450 4.2.0 greylisted"), ("RCPT", closing)] * 2
    unknown = ("u1@example.com", "g1@example.com", "u2@example.com", "g2@example.com")

    receipt = await channel.send(message(*unknown, "a@example.com", "b@example.com"))

    assert [mail.recipients for mail in server.mails] == [("a@example.com", "b@example.com")]
    assert {name: type(error) for name, error in receipt.failures.items()} == {
        "u1@example.com": UnknownRecipient,
        "g1@example.com": Later,
        "u2@example.com": UnknownRecipient,
        "g2@example.com": Later,
    }
    assert len(server.sessions) == 3


async def test_refusals_heard_before_the_relay_closes_at_data_are_kept(
    server: ScriptedRelay, channel: EmailChannel
) -> None:
    server.script = [("RCPT", "250 OK"), ("RCPT", "550 5.1.1 unknown"), ("DATA", "421 4.7.0 Error: too many errors")]

    receipt = await channel.send(message("a@example.com", "u@example.com"))

    assert [mail.recipients for mail in server.mails] == [("a@example.com",)]
    assert list(receipt.failures) == ["u@example.com"]


async def test_a_relay_that_closes_again_and_again_is_not_asked_for_ever(
    server: ScriptedRelay, channel: EmailChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "RESUME_TIME", 0.0)
    server.script = [("RCPT", "550 5.1.1 unknown"), ("RCPT", "421 4.7.0 Error: too many errors")]

    with pytest.raises(Later, match="the relay closes: 421") as caught:
        await channel.send(message("u@example.com", "a@example.com"))

    assert caught.value.provider_wide
    assert len(server.sessions) == 1


async def test_ascii_recipients_get_a_mail_that_names_no_others(server: ScriptedRelay) -> None:
    server.extensions = ("SMTPUTF8", "8BITMIME", *server.extensions)
    channel = EmailChannel(config(server.port))

    receipt = await channel.send(message("boss@example.com", "jörg@example.com", "a@example.com"))

    plain, other = server.mails
    assert receipt.failures == {}
    assert (plain.recipients, plain.parsed["to"]) == (
        ("boss@example.com", "a@example.com"),
        "boss@example.com, a@example.com",
    )
    assert plain.raw.isascii()
    assert (other.recipients, other.parsed["to"]) == (
        ("jörg@example.com",),
        "boss@example.com, jörg@example.com, a@example.com",
    )
    assert plain.message_id == other.message_id
    assert ["SMTPUTF8" in command for command in server.commands if command.startswith("MAIL")] == [False, True]
    await channel.aclose()


@pytest.mark.parametrize(
    ("replies", "outcome"),
    [
        ([("mail", "250 OK"), ("mail", "554 5.7.1 spam")], {"jörg@example.com": Never}),
        ([("mail", "250 OK"), ("mail", "451 4.3.0 busy")], {"jörg@example.com": Later}),
        ([("mail", "250 OK"), ("mail", TAKE_AND_DROP)], {"jörg@example.com": InDoubt}),
        ([("mail", "554 5.7.1 spam")], {"a@example.com": Never}),
        ([("mail", "554 5.7.1 spam"), ("mail", "554 5.7.1 spam")], Never),
        ([("mail", "554 5.7.1 spam"), ("mail", "451 4.3.0 busy")], Later),
        ([("mail", "451 4.3.0 busy")], Later),
        ([("mail", TAKE_AND_DROP)], InDoubt),
    ],
)
async def test_each_of_two_mails_has_its_own_outcome(
    server: ScriptedRelay, replies: list[tuple[str, str]], outcome: dict[str, type] | type[ChannelError]
) -> None:
    server.extensions, server.script = ("SMTPUTF8", *server.extensions), [*replies]
    channel = EmailChannel(config(server.port))
    to = message("a@example.com", "jörg@example.com")
    if isinstance(outcome, dict):
        receipt = await channel.send(to)
        assert {name: type(error) for name, error in receipt.failures.items()} == outcome
    else:
        with pytest.raises(outcome):
            await channel.send(to)
    await channel.aclose()


@pytest.mark.parametrize("seed", range(6))
async def test_no_connection_is_lost_to_the_pool_after_random_failures_and_cancellations(
    server: ScriptedRelay, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MAX_MAILS", 7)
    monkeypatch.setattr(relay, "SKIP_RSET", 0.0)
    rng = Random(seed)
    steps = ["connect", "EHLO", "RSET", "MAIL", "RCPT", "DATA", "mail"]
    replies = [DROP, "421 4.3.2 closing", "451 4.3.0 busy", "550 5.0.0 no", "garbage"]
    server.script = [(rng.choice(steps), rng.choice(replies)) for _ in range(80)]
    server.max_connections, server.mail_delay = 3, 0.002
    channel = EmailChannel(config(server.port, connections=4))

    async def send_with_timeout(number: int) -> str:
        try:
            async with asyncio.timeout(rng.choice([0.0, 0.005, 0.02, 5.0, 5.0, 5.0])):
                await channel.send(message(key=f"k{number}"))
        except (ChannelError, TimeoutError) as error:
            return type(error).__name__
        return "sent"

    results = [
        result
        for _ in range(10)
        for result in await asyncio.gather(*(send_with_timeout(number) for number in range(30)))
    ]
    assert results.count("sent") > 50
    assert len(set(results)) >= 3

    server.script, server.max_connections, server.mail_delay = [], 4, 0.2
    await channel.aclose()  # closes idle connections, so that the pool forgets the relay's limit
    await server.until(lambda: not server.open)
    sending = [asyncio.create_task(channel.send(message(key=f"after{number}"))) for number in range(4)]
    await server.until(lambda: server.open == 4)
    await asyncio.gather(*sending)
    await channel.aclose()
