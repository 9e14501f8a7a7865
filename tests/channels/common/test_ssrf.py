"""The SSRF guard: no URL reaches a private or reserved address, in whatever notation."""

from __future__ import annotations

import os
import socket
import ssl
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path

import pytest
import trustme
import yaml
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from channels.common.http import HttpClient
from channels.common.ssrf import Forbidden, SsrfGuard
from channels.contract import Later, Never
from tests.support.http import ScriptedHttp
from tests.support.service import command

GUARD = SsrfGuard("channels.webhook", plain_http=True)
LOOPBACK = SsrfGuard("channels.webhook", networks=(IPv4Network("127.0.0.0/8"),), plain_http=True)
CLOSED_V4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
]
CLOSED_V6 = ["::/96", "100::/64", "2001::/32", "2001:db8::/32", "2002::/16", "64:ff9b:1::/48"]
CLOSED_V6 += ["fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"]

closed_v4 = st.sampled_from(CLOSED_V4).flatmap(lambda network: st.ip_addresses(v=4, network=network))
closed_v6 = st.sampled_from(CLOSED_V6).flatmap(lambda network: st.ip_addresses(v=6, network=network))
open_v4 = st.sampled_from(["1.0.0.0/8", "8.0.0.0/8", "93.184.0.0/16", "172.32.0.0/11", "192.169.0.0/16"]).flatmap(
    lambda network: st.ip_addresses(v=4, network=network)
)
open_v6 = st.sampled_from(["2001:4860::/32", "2606:4700::/32", "2a00::/12"]).flatmap(
    lambda network: st.ip_addresses(v=6, network=network)
)


def ipv6_forms(address: IPv4Address) -> list[str]:
    """IPv6 addresses that embed this IPv4 address: mapped (in two notations) and NAT64."""
    return [f"::ffff:{address}", str(IPv6Address(f"::ffff:{address}")), str(IPv6Address(f"64:ff9b::{address}"))]


@given(closed_v4)
def test_no_private_or_reserved_ipv4_address_is_allowed_in_any_form(address: IPv4Address) -> None:
    assert not any(GUARD.allows_address(form) for form in (str(address), *ipv6_forms(address)))


@given(closed_v6)
def test_no_private_or_reserved_ipv6_address_is_allowed(address: IPv6Address) -> None:
    assert not GUARD.allows_address(str(address))
    assert not GUARD.allows_address(f"{address}%1")


@given(open_v4, open_v6)
def test_public_addresses_are_allowed_in_every_form(v4: IPv4Address, v6: IPv6Address) -> None:
    assert all(GUARD.allows_address(form) for form in (str(v4), *ipv6_forms(v4), str(v6)))


@given(closed_v4, closed_v6)
def test_allow_networks_allows_its_own_addresses_only(v4: IPv4Address, v6: IPv6Address) -> None:
    guard = SsrfGuard("x", networks=(IPv4Network(v4), IPv6Network(v6)))
    assert all(guard.allows_address(form) for form in (str(v4), *ipv6_forms(v4), str(v6)))
    assert not guard.allows_address(str(IPv4Address(int(v4) ^ 1)))
    assert not guard.allows_address(str(IPv6Address(int(v6) ^ 1)))


@given(closed_v4 | closed_v6)
def test_a_url_with_a_private_or_reserved_address_is_forbidden_in_any_notation(
    address: IPv4Address | IPv6Address,
) -> None:
    hosts = [str(address)] if isinstance(address, IPv4Address) else [f"[{address}]"]
    if isinstance(address, IPv4Address):
        full_width = str(address).translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789."})
        hosts += [
            str(int(address)),
            hex(int(address)),
            f"{address}.",
            full_width,
            *(f"[{form}]" for form in ipv6_forms(address)),
        ]
        first, *rest = str(address).split(".")
        hosts += [".".join([f"0{int(first):o}", *rest]), ".".join([hex(int(first)), *rest])]
    for host in hosts:
        with pytest.raises(Forbidden):
            GUARD.check_url(f"http://{host}/latest/meta-data")


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{0,30}(/.*)?", fullmatch=True))
def test_check_url_returns_an_http_url_or_raises_forbidden_for_any_text(text: str) -> None:
    try:
        url = GUARD.check_url(text)
    except Forbidden as error:
        assert str(error)
    else:
        assert url.scheme in {"http", "https"}
        assert url.raw_host
        assert url.raw_user is None


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "gopher://example.com/",
        "https://user:password@example.com/",
        "https://example.com:0/",
        "https://example.com\t/",
        "https:///nowhere",
        "https://example.com\\@10.0.0.1/",
        "https://168.63.129.16/",
        "http://example.com/",
        "example.com",
        "",
    ],
)
def test_a_url_that_is_not_a_public_https_url_is_forbidden(text: str) -> None:
    with pytest.raises(Forbidden) as caught:
        SsrfGuard("channels.webhook").check_url(text)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "url", "allowed"),
    [
        ("hooks.example.com", "https://hooks.example.com/x", True),
        ("hooks.example.com", "https://HOOKS.Example.com./x", True),
        ("hooks.example.com", "https://hooks.example.com:8443/x", False),
        ("hooks.example.com:8443", "https://hooks.example.com:8443/x", True),
        ("hooks.example.com", "https://hooks.example.com.evil.example/x", False),
        ("hooks.example.com", "https://evil.example/hooks.example.com", False),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://evil.example#.example.com", False),
        ("*.example.com", "https://evil.example?.example.com", False),
    ],
)
def test_allow_hosts_matches_the_host_and_port_only(pattern: str, url: str, allowed: bool) -> None:
    guard = SsrfGuard("x", hosts=(pattern,))
    assert guard.allows_host(guard.check_url(url)) is allowed


class ChangingResolver(AbstractResolver):
    """A resolver that gives a different answer for each query."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.queries = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.queries += 1
        addresses = self.answers.pop(0)
        if not addresses:
            raise OSError("no such name")
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)
            for address, kind in zip(addresses, families, strict=True)
        ]

    async def close(self) -> None:
        pass


async def test_a_name_is_resolved_once_for_each_connection_even_if_its_addresses_change() -> None:
    async with ScriptedHttp(steps=[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]) as server:
        resolver = ChangingResolver(["10.0.0.1", "127.0.0.1"], ["10.0.0.1"])
        client = HttpClient(LOOPBACK, 2, resolver)
        url = server.url.replace("127.0.0.1", "hooks.example.com")

        response = await client.post(url, b"{}", {}, "ops")
        assert (response.status, resolver.queries, server.requests[0].headers["host"]) == (
            200,
            1,
            url.removeprefix("http://"),
        )

        with pytest.raises(Never, match="private, local or reserved"):
            await client.post(url, b"{}", {}, "ops")
        assert (resolver.queries, len(server.requests)) == (2, 1)
        await client.close()


@pytest.mark.parametrize("address", ["169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00:ec2::254", "64:ff9b::7f00:1"])
async def test_a_name_with_a_private_address_is_never_connected_to(address: str) -> None:
    async with ScriptedHttp() as server:
        port = server.url.rpartition(":")[2]
        client = HttpClient(GUARD, 2, ChangingResolver([address], [address]))
        with pytest.raises(Never, match=r"channels\.webhook\.allow_networks"):
            await client.post(f"http://hooks.example.com:{port}/", b"{}", {}, "ops")
        with pytest.raises(Never):
            await client.test_connection(f"http://hooks.example.com:{port}/", "ops")
        await client.close()
        assert server.connections == 0


async def test_a_name_that_cannot_be_resolved_raises_later() -> None:
    client = HttpClient(GUARD, 2, ChangingResolver([], []))
    with pytest.raises(Later, match="can't be found"):
        await client.post("http://hooks.example.com/", b"{}", {}, "ops")
    with pytest.raises(Later, match="ops can't be reached"):
        await client.test_connection("http://hooks.example.com/", "ops")
    await client.close()


async def test_localhost_is_forbidden_with_the_systems_resolver_too() -> None:
    async with ScriptedHttp() as server:
        url = server.url.replace("127.0.0.1", "localhost")
        strict, lenient = HttpClient(GUARD, 2), HttpClient(LOOPBACK, 2)
        with pytest.raises(Never, match="private, local or reserved"):
            await strict.post(url, b"{}", {}, "ops")
        assert (await lenient.post(url, b"{}", {}, "ops")).status == 200
        assert len(server.requests) == 1
        await strict.close()
        await lenient.close()


def test_allow_networks_covers_ipv4_and_ipv6_networks() -> None:
    guard = SsrfGuard("x", networks=(ip_network("10.20.0.0/16"), ip_network("fd00::/8")))
    assert [guard.allows_address(one) for one in ("10.20.3.4", "10.21.0.1", "fd12::1", "fe80::1", "nonsense")] == [
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_an_untrusted_certificate_raises_later_and_nothing_is_sent(authority: trustme.CA) -> None:
    async with ScriptedHttp(tls=server_context(authority, "localhost")) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        client = HttpClient(LOOPBACK, 5)
        with pytest.raises(Later, match="certificate is not to be trusted"):
            await client.post(url, b"{}", {}, "ops")
        with pytest.raises(Later, match="certificate is not to be trusted"):
            await client.test_connection(url, "ops")
        await client.close()
        assert server.requests == []


async def test_ca_file_is_trusted_and_read_again_when_it_changes(authority: trustme.CA, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    async with ScriptedHttp(tls=server_context(authority, "localhost")) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        client = HttpClient(LOOPBACK, 5, ca_file=file)
        with pytest.raises(Later, match="certificate is not to be trusted"):
            await client.post(url, b"{}", {}, "ops")
        authority.cert_pem.write_to_path(str(file))
        os.utime(file, (1, 1))
        assert (await client.post(url, b"{}", {}, "ops")).status == 200
        await client.test_connection(url, "ops")
        file.write_text("no certificate")
        with pytest.raises(Later, match="ops: ca_file can't be used"):
            await client.post(url, b"{}", {}, "ops")
        await client.close()


@pytest.mark.parametrize(("name", "status"), [("localhost", 0), ("other.example.com", 1)])
async def test_the_certificate_must_match_the_urls_host_name(
    authority: trustme.CA, tmp_path: Path, name: str, status: int
) -> None:
    roots, config = tmp_path / "roots.pem", tmp_path / "dispatcher.yaml"
    authority.cert_pem.write_to_path(str(roots))
    async with ScriptedHttp(tls=server_context(authority, name)) as server:
        targets = {"ops": {"url": server.url.replace("127.0.0.1", "localhost")}}
        section = {"targets": targets, "allow_networks": ["127.0.0.0/8", "::1"]}
        config.write_text(yaml.safe_dump({"channels": {"webhook": section}}))
        arguments = ("send-test", "--channel", "webhook", "--to", "ops", "--config", str(config))
        exit_status, _, err = await command(*arguments, env={**os.environ, "SSL_CERT_FILE": str(roots)})
        assert (exit_status, len(server.requests)) == (status, 1 - status), err
        assert not status or "certificate is not to be trusted" in err
