"""The proxy of the environment, as every HTTP client of the dispatcher uses it."""

from __future__ import annotations

import ssl
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme

from channels.common.http import HttpClient
from channels.common.proxy import UnusableProxy, proxy_for
from channels.common.ssrf import SsrfGuard
from channels.contract import ChannelError, Later, Misconfigured, Never
from tests.support.http import ScriptedHttp, answer
from tests.support.servers import ForwardProxy

GUARD = SsrfGuard("channels.webhook", plain_http=True)
LOGIN = "flyte:hidden"
CLOSING_ANSWER = answer(200, Connection="close")


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://slack.com/api/", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://slack.com/api/", "http://proxy:3128"),
        ({"https_proxy": "proxy:3128"}, "https://slack.com/api/", "http://proxy:3128"),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://slack.com/api/", None),
        ({"HTTP_PROXY": "http://proxy:3128"}, "https://slack.com/api/", None),
        ({"ALL_PROXY": "http://a:b@proxy:3128"}, "https://slack.com/api/", "http://a:b@proxy:3128"),
        ({"HTTPS_PROXY": " "}, "https://slack.com/api/", None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "slack.com"}, "https://slack.com/api/", None),
        ({"HTTPS_PROXY": "http://proxy:1", "no_proxy": "a.org, .slack.com"}, "https://hooks.slack.com/x", None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "*.SLACK.com"}, "https://Hooks.slack.com/x", None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "slack.com"}, "https://notslack.com/x", "http://proxy:1"),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "slack.com:8443"}, "https://slack.com/x", "http://proxy:1"),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "slack.com:443"}, "https://slack.com/x", None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "*"}, "https://slack.com/x", None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3/x", None),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "10.0.0.0/8"}, "https://11.1.2.3/x", "http://proxy:1"),
        ({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "::1,,"}, "https://[::1]:8443/x", None),
    ],
)
def test_the_environment_chooses_the_proxy(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize("value", [f"socks5://{LOGIN}@proxy:1080", "http://", f"http://{LOGIN}@proxy:99999"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_login(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(UnusableProxy, match="HTTPS_PROXY must be the URL of an HTTP proxy") as caught:
        proxy_for("https://slack.com/")
    assert "hidden" not in str(caught.value)


async def post(client: HttpClient, url: str) -> int:
    response = await client.post(url, b"{}", {}, "ops")
    return response.status


async def test_a_webhook_is_sent_through_the_proxy_with_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        ScriptedHttp(default=CLOSING_ANSWER) as server,
        ForwardProxy(int(server.url.rpartition(":")[2]), login=LOGIN) as proxy,
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("http://", f"http://{LOGIN}@"))
        client = HttpClient(GUARD, 5)
        assert await post(client, "http://hooks.example.invalid/one") == 200
        assert not await client.test_connection("http://hooks.example.invalid/one", "ops")
        await client.close()
    assert proxy.targets[0] == "http://hooks.example.invalid/one"
    assert "proxy-authorization" in server.requests[0].headers


async def test_tls_goes_through_the_proxys_tunnel_to_the_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority, roots = trustme.CA(), tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(str(roots))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("hooks.example.invalid").configure_cert(context)
    async with (
        ScriptedHttp(default=CLOSING_ANSWER, tls=context) as server,
        ForwardProxy(int(server.url.rpartition(":")[2])) as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        client = HttpClient(GUARD, 5, ca_file=roots)
        assert await post(client, "https://hooks.example.invalid/one") == 200
        await client.close()
    assert proxy.targets == ["hooks.example.invalid:443"]
    assert len(server.requests) == 1


async def test_no_proxy_leads_directly_to_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ScriptedHttp(default=CLOSING_ANSWER) as server, ForwardProxy(1) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        client = HttpClient(SsrfGuard("x", networks=(ip_network("127.0.0.0/8"),), plain_http=True), 5)
        assert await post(client, server.url) == 200
        assert await client.test_connection(server.url, "ops")
        await client.close()
    assert proxy.targets == []


@pytest.mark.parametrize(
    ("login", "refusal", "url", "error_type", "reason"),
    [
        (LOGIN, 0, "https://hooks.example.invalid/", Misconfigured, "the proxy wants a login"),
        ("", 403, "https://hooks.example.invalid/", Later, r"the proxy refuses \(403\)"),
        ("", 502, "https://hooks.example.invalid/", Later, r"the proxy refuses \(502\)"),
        (None, 0, "https://hooks.example.invalid/", Later, "the proxy of HTTPS_PROXY can't be reached"),
    ],
)
async def test_a_proxy_that_refuses_the_tunnel_has_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
    login: str | None,
    refusal: int,
    url: str,
    error_type: type[ChannelError],
    reason: str,
) -> None:
    async with ForwardProxy(1, login=login or "", refusal=refusal) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{LOGIN}@127.0.0.1:1" if login is None else proxy.url)
        client = HttpClient(GUARD, 5)
        with pytest.raises(error_type, match=reason) as caught:
            await post(client, url)
        await client.close()
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost/", "http://127.0.0.1/", "http://169.254.169.254/latest"])
async def test_the_guard_forbids_private_addresses_through_a_proxy_too(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    async with ForwardProxy(1) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        client = HttpClient(GUARD, 5)
        with pytest.raises(Never, match="private, local or reserved"):
            await post(client, url)
        await client.close()
    assert proxy.targets == []
