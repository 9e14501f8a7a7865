"""Logging in at FlyteAdmin, against a token endpoint and a server that checks the token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin, Login
from dispatcher.errors import FlyteAdminUnavailable
from dispatcher.rules import AdminExecution
from tests.support.builders import an_execution
from tests.support.clock import ManualClock
from tests.support.flyte_admin import an_ended, asking
from tests.support.servers import stranger

EXECUTION = an_execution()


@pytest.fixture
async def login() -> Login:
    return Login(client_secret="pass+word of: the % client")


@pytest.fixture
async def server(login: Login) -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin(login=login) as opened:
        opened.add(an_ended())
        yield opened


async def test_a_token_is_fetched_once_as_the_service_says_it(server: LocalFlyteAdmin, login: Login) -> None:
    login.scopes = ("all", "offline")
    async with asking(server) as admin:
        for execution in (an_execution("a"), an_execution("b"), EXECUTION):
            server.add(an_ended(execution))
        answers = await asyncio.gather(*(admin.look_up(an_execution(name)) for name in ("a", "b", EXECUTION.name)))
    assert all(isinstance(answer, AdminExecution) for answer in answers)
    assert login.requested == [{"grant_type": "client_credentials", "scope": "all offline", "audience": "flyte"}]
    assert server.asked == {"GetPublicClientConfig": 1, "GetOAuth2Metadata": 1, "GetExecution": 3}


async def test_scopes_and_token_endpoint_can_be_set(server: LocalFlyteAdmin, login: Login) -> None:
    login.scopes = ("all", "offline")
    async with asking(server, token_endpoint=server.token_url, scopes="offline") as admin:
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert login.requested[0]["scope"] == "offline"
    assert server.asked["GetOAuth2Metadata"] == 0


async def test_a_token_is_renewed_before_it_expires(server: LocalFlyteAdmin, login: Login) -> None:
    clock = ManualClock()
    async with asking(server, clock) as admin:
        for minutes, requests in ((0, 1), (58, 1), (1.5, 2), (58, 2), (2, 3)):
            clock.advance(timedelta(minutes=minutes))
            assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
            assert len(login.requested) == requests
    assert server.asked["GetExecution"] == 5  # none of them refused


async def test_a_refused_token_is_renewed_once(server: LocalFlyteAdmin, login: Login) -> None:
    async with asking(server) as admin:
        await admin.look_up(EXECUTION)
        login.valid.clear()
        executions = [an_execution(f"n{number}") for number in range(10)]
        for execution in executions:
            server.add(an_ended(execution))
        answers = await asyncio.gather(*(admin.look_up(execution) for execution in executions))
    assert all(isinstance(answer, AdminExecution) for answer in answers)
    assert len(login.requested) == 2


async def test_a_token_that_is_refused_again_is_a_clear_error(server: LocalFlyteAdmin, login: Login) -> None:
    login.scripted += [(200, b'{"access_token": "of somebody else", "expires_in": 60}')] * 2
    async with asking(server) as admin:
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.client_id: .* token parse error"):
            await admin.look_up(EXECUTION)
        assert (len(login.requested), server.asked["GetExecution"]) == (2, 2)
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_nobody_is_let_in_without_a_login(server: LocalFlyteAdmin) -> None:
    async with asking(server, client_id=None, client_secret=None) as admin:
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.client_id: .* wants a login"):
            await admin.look_up(EXECUTION)


async def test_an_expired_secret_names_its_setting_and_a_new_one_is_taken_up(
    server: LocalFlyteAdmin, login: Login, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("expired-secret\n")
    async with asking(server, client_secret=None, client_secret_file=secret) as admin:
        with pytest.raises(FlyteAdminUnavailable) as caught:
            await admin.look_up(EXECUTION)
        assert "rules.flyte_admin.client_secret: expired, or not this client's?" in str(caught.value)
        assert "the secret has expired" in str(caught.value)
        assert "expired-secret" not in str(caught.value)
        assert len(login.requested) == 1  # showing a wrong secret again and again locks a client out
        secret.write_text(f"{login.client_secret}\n")
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        secret.unlink()
        login.valid.clear()
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.client_secret_file: can't be read"):
            await admin.look_up(EXECUTION)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>", "token_endpoint: .* answered without an access token"),
        (200, b'["token"]', "token_endpoint: .* answered without an access token"),
        (200, b'{"access_token": 7}', "token_endpoint: .* answered without an access token"),
        (200, b'{"access_token": "a\\nb"}', "token_endpoint: .* answered without an access token"),
        (200, b"x" * 200_000, "token_endpoint: .* answered without an access token"),
        (301, b"", "token_endpoint .* answered HTTP 301"),
        (400, b'{"error": "invalid_scope"}', "scopes .* HTTP 400, invalid_scope"),
        (400, b'{"error": "invalid_request"}', "token_endpoint .* HTTP 400, invalid_request"),
        (401, b"", "client_secret: expired"),
        (404, b"no such page", "token_endpoint .* HTTP 404"),
    ],
)
async def test_a_token_endpoint_that_is_wrong_is_named(
    server: LocalFlyteAdmin, login: Login, status: int, body: bytes, words: str
) -> None:
    login.scripted.append((status, body))
    async with asking(server) as admin:
        with pytest.raises(FlyteAdminUnavailable, match=rf"rules\.flyte_admin\.{words}"):
            await admin.look_up(EXECUTION)
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_a_token_endpoint_that_stumbles_is_asked_again(server: LocalFlyteAdmin, login: Login) -> None:
    login.scripted += [(503, b""), (429, b"{}")]
    async with asking(server) as admin:
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert len(login.requested) == 3


async def test_a_token_endpoint_that_cannot_be_reached_is_named(server: LocalFlyteAdmin) -> None:
    async with asking(server, token_endpoint="http://127.0.0.1:1/token", timeout="300ms") as admin:
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.token_endpoint: .* can't be reached"):
            await admin.look_up(EXECUTION)


async def test_a_token_endpoint_that_never_answers_has_a_deadline(server: LocalFlyteAdmin) -> None:
    async with stranger(None) as port:
        url = f"http://127.0.0.1:{port}/token"
        async with asking(server, token_endpoint=url, timeout="300ms") as admin:
            asked = [admin.look_up(an_execution(f"n{number}")) for number in range(10)]
            for error in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(error, FlyteAdminUnavailable)
                assert f"token_endpoint: {url} can't be reached: no answer in time" in str(error)


@pytest.mark.parametrize("life", [None, 0, -5, "soon", 1e300, "3600", True])
async def test_a_life_that_makes_no_sense_does_no_harm(server: LocalFlyteAdmin, login: Login, life: object) -> None:
    login.life = life
    clock = ManualClock()
    async with asking(server, clock) as admin:
        for _ in range(3):
            assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        clock.advance(timedelta(days=2))
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert len(login.requested) == 2


@pytest.mark.parametrize("skew", [timedelta(days=-400), timedelta(days=400)])
async def test_a_clock_that_is_wrong_or_set_right_does_no_harm(
    server: LocalFlyteAdmin, login: Login, skew: timedelta
) -> None:
    clock = ManualClock()
    async with asking(server, clock) as admin:
        await admin.look_up(EXECUTION)
        clock.advance(skew)
        login.valid.clear()
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert len(login.requested) == 2


async def test_the_secret_does_not_travel_in_the_clear_because_a_server_says_so(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    login = Login()
    async with LocalFlyteAdmin(login=login, tls=(issued.private_key_pem.bytes(), chain)) as server:
        server.add(an_ended())
        async with asking(server, ca_file=tmp_path / "ca.pem") as admin:
            with pytest.raises(FlyteAdminUnavailable, match=r"token_endpoint: .* in the clear"):
                await admin.look_up(EXECUTION)
        assert login.requested == []
        async with asking(server, ca_file=tmp_path / "ca.pem", token_endpoint=server.token_url) as admin:
            assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_a_flyteadmin_that_asks_nobody_to_log_in_says_how_to_go_on() -> None:
    async with (
        LocalFlyteAdmin() as server,
        asking(server, client_id="dispatcher", client_secret="x") as admin,
    ):
        with pytest.raises(FlyteAdminUnavailable, match=r"set token_endpoint, or take client_id away"):
            await admin.look_up(EXECUTION)
