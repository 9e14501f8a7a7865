"""FlyteAdmin's OAuth2 client, against a token endpoint and a server that checks the token."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin, OAuthServer
from dispatcher.errors import FlyteAdminUnavailable
from dispatcher.rules import AdminExecution
from tests.support.builders import an_execution
from tests.support.clock import ManualClock
from tests.support.flyte_admin import a_finished_execution, admin_client
from tests.support.servers import ForwardProxy, endless_server, garbage_server

EXECUTION = an_execution()


@pytest.fixture
async def oauth() -> OAuthServer:
    return OAuthServer(client_secret="pass+word of: the % client")


@pytest.fixture
async def server(oauth: OAuthServer) -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin(oauth=oauth) as opened:
        opened.add(a_finished_execution())
        yield opened


async def test_a_token_is_fetched_once_with_the_services_scopes_and_audience(
    server: LocalFlyteAdmin, oauth: OAuthServer
) -> None:
    oauth.scopes = ("all", "offline")
    async with admin_client(server) as admin:
        for execution in (an_execution("a"), an_execution("b"), EXECUTION):
            server.add(a_finished_execution(execution))
        answers = await asyncio.gather(*(admin.look_up(an_execution(name)) for name in ("a", "b", EXECUTION.name)))
    assert all(isinstance(answer, AdminExecution) for answer in answers)
    assert oauth.token_requests == [{"grant_type": "client_credentials", "scope": "all offline", "audience": "flyte"}]
    assert server.requests_by_method == {"GetPublicClientConfig": 1, "GetOAuth2Metadata": 1, "GetExecution": 3}


async def test_scopes_and_token_endpoint_can_be_set(server: LocalFlyteAdmin, oauth: OAuthServer) -> None:
    oauth.scopes = ("all", "offline")
    async with admin_client(server, token_endpoint=server.token_url, scopes="offline") as admin:
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert oauth.token_requests[0]["scope"] == "offline"
    assert server.requests_by_method["GetOAuth2Metadata"] == 0


async def test_a_token_is_renewed_before_it_expires(server: LocalFlyteAdmin, oauth: OAuthServer) -> None:
    clock = ManualClock()
    async with admin_client(server, clock) as admin:
        for minutes, requests in ((0, 1), (58, 1), (1.5, 2), (58, 2), (2, 3)):
            clock.advance(timedelta(minutes=minutes))
            assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
            assert len(oauth.token_requests) == requests
    assert server.requests_by_method["GetExecution"] == 5  # none of them refused


async def test_a_refused_token_is_replaced_once_for_all_callers(server: LocalFlyteAdmin, oauth: OAuthServer) -> None:
    async with admin_client(server) as admin:
        await admin.look_up(EXECUTION)
        oauth.valid_tokens.clear()
        executions = [an_execution(f"n{number}") for number in range(10)]
        for execution in executions:
            server.add(a_finished_execution(execution))
        answers = await asyncio.gather(*(admin.look_up(execution) for execution in executions))
    assert all(isinstance(answer, AdminExecution) for answer in answers)
    assert len(oauth.token_requests) == 2


async def test_a_second_refused_token_is_an_error(server: LocalFlyteAdmin, oauth: OAuthServer) -> None:
    oauth.scripted_responses += [(200, b'{"access_token": "of somebody else", "expires_in": 60}')] * 2
    async with admin_client(server) as admin:
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.client_id: .* token parse error"):
            await admin.look_up(EXECUTION)
        assert (len(oauth.token_requests), server.requests_by_method["GetExecution"]) == (2, 2)
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_a_server_that_requires_a_login_refuses_a_client_without_one(server: LocalFlyteAdmin) -> None:
    async with admin_client(server, client_id=None, client_secret=None) as admin:
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.client_id: .* wants a login"):
            await admin.look_up(EXECUTION)


async def test_an_expired_secret_is_named_and_a_new_one_is_read_from_its_file(
    server: LocalFlyteAdmin, oauth: OAuthServer, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("expired-secret\n")
    async with admin_client(server, client_secret=None, client_secret_file=secret) as admin:
        with pytest.raises(FlyteAdminUnavailable) as caught:
            await admin.look_up(EXECUTION)
        assert "rules.flyte_admin.client_secret: expired, or not this client's?" in str(caught.value)
        assert "the secret has expired" in str(caught.value)
        assert "expired-secret" not in str(caught.value)
        assert len(oauth.token_requests) == 1  # repeated attempts with a wrong secret can lock a client
        secret.write_text(f"{oauth.client_secret}\n")
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        secret.unlink()
        oauth.valid_tokens.clear()
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
async def test_an_error_of_the_token_endpoint_names_the_setting(
    server: LocalFlyteAdmin, oauth: OAuthServer, status: int, body: bytes, words: str
) -> None:
    oauth.scripted_responses.append((status, body))
    async with admin_client(server) as admin:
        with pytest.raises(FlyteAdminUnavailable, match=rf"rules\.flyte_admin\.{words}"):
            await admin.look_up(EXECUTION)
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_transient_errors_of_the_token_endpoint_are_retried(server: LocalFlyteAdmin, oauth: OAuthServer) -> None:
    oauth.scripted_responses += [(503, b""), (429, b"{}")]
    async with admin_client(server) as admin:
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert len(oauth.token_requests) == 3


async def test_an_unreachable_token_endpoint_is_named(server: LocalFlyteAdmin) -> None:
    async with admin_client(server, token_endpoint="http://127.0.0.1:1/token", timeout="300ms") as admin:
        with pytest.raises(FlyteAdminUnavailable, match=r"rules\.flyte_admin\.token_endpoint: .* can't be reached"):
            await admin.look_up(EXECUTION)


async def test_a_token_request_without_an_answer_ends_at_its_deadline(server: LocalFlyteAdmin) -> None:
    async with garbage_server(None) as port:
        url = f"http://127.0.0.1:{port}/token"
        async with admin_client(server, token_endpoint=url, timeout="1s") as admin:
            look_ups = [admin.look_up(an_execution(f"n{number}")) for number in range(10)]
            for error in await asyncio.gather(*look_ups, return_exceptions=True):
                assert isinstance(error, FlyteAdminUnavailable)
                assert f"token_endpoint: {url} can't be reached: no answer in time" in str(error)


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_an_endless_token_response_is_read_to_a_limit(server: LocalFlyteAdmin, encoding: str) -> None:
    piece = b" " * 100_000 if encoding == "identity" else gzip.compress(b" " * 10_000_000)
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\n\r\n".encode()
    async with (
        endless_server(head, piece) as (url, _),
        admin_client(server, token_endpoint=f"{url}/token", timeout="8s") as admin,
    ):
        with pytest.raises(FlyteAdminUnavailable, match=r"token_endpoint: .* longer than 4194304 bytes"):
            await admin.look_up(EXECUTION)


async def test_a_token_response_that_drips_is_read_whole_or_ends_at_its_deadline(server: LocalFlyteAdmin) -> None:
    body = b'{"access_token":"' + b"a" * 30 + b'"}'
    assert server.oauth is not None
    server.oauth.valid_tokens.add("a" * 30)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body))
    async with (
        endless_server(head + body[:20], body[20:], pause=0.05) as (url, _),
        admin_client(server, token_endpoint=f"{url}/token") as admin,
    ):
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    async with (
        endless_server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" ", pause=0.05) as (url, _),
        admin_client(server, token_endpoint=f"{url}/token", timeout="600ms") as admin,
    ):
        with pytest.raises(FlyteAdminUnavailable, match="no answer in time"):
            await admin.look_up(EXECUTION)


async def test_a_token_is_requested_through_the_proxy_and_its_login_is_not_shown(
    server: LocalFlyteAdmin, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(server.token_url.rpartition(":")[2].partition("/")[0])
    endpoint = "http://login.example.invalid/token"
    login = "flyte:hidden"
    async with ForwardProxy(port, login=login) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", f"http://{login}@"))
        async with admin_client(server, token_endpoint=endpoint) as admin:
            assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        assert proxy.targets == [endpoint]
        monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("http://", f"http://{login}-and-wrong@"))
        async with admin_client(server, token_endpoint=endpoint.replace("http:", "https:"), timeout="600ms") as admin:
            with pytest.raises(FlyteAdminUnavailable, match="407") as caught:
                await admin.look_up(EXECUTION)
        assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("expires_in", [None, 0, -5, "soon", 1e300, "3600", True])
async def test_a_token_with_an_invalid_lifetime_is_used_and_renewed(
    server: LocalFlyteAdmin, oauth: OAuthServer, expires_in: object
) -> None:
    oauth.expires_in = expires_in
    clock = ManualClock()
    async with admin_client(server, clock) as admin:
        for _ in range(3):
            assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
        clock.advance(timedelta(days=2))
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert len(oauth.token_requests) == 2


@pytest.mark.parametrize("skew", [timedelta(days=-400), timedelta(days=400)])
async def test_look_ups_go_on_after_the_local_clock_is_changed(
    server: LocalFlyteAdmin, oauth: OAuthServer, skew: timedelta
) -> None:
    clock = ManualClock()
    async with admin_client(server, clock) as admin:
        await admin.look_up(EXECUTION)
        clock.advance(skew)
        oauth.valid_tokens.clear()
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)
    assert len(oauth.token_requests) == 2


async def test_the_secret_is_sent_unencrypted_only_if_the_settings_name_that_endpoint(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    oauth = OAuthServer()
    async with LocalFlyteAdmin(oauth=oauth, tls=(issued.private_key_pem.bytes(), chain)) as server:
        server.add(a_finished_execution())
        async with admin_client(server, ca_file=tmp_path / "ca.pem") as admin:
            with pytest.raises(FlyteAdminUnavailable, match=r"token_endpoint: .* in the clear"):
                await admin.look_up(EXECUTION)
        assert oauth.token_requests == []
        async with admin_client(server, ca_file=tmp_path / "ca.pem", token_endpoint=server.token_url) as admin:
            assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_a_client_id_for_a_server_without_a_token_endpoint_is_an_error_with_a_hint() -> None:
    async with (
        LocalFlyteAdmin() as server,
        admin_client(server, client_id="dispatcher", client_secret="x") as admin,
    ):
        with pytest.raises(FlyteAdminUnavailable, match=r"set token_endpoint, or take client_id away"):
            await admin.look_up(EXECUTION)
