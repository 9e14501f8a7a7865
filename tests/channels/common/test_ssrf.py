"""Where webhooks may lead: nowhere into a network of ours, however it is written."""

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

from channels.common.http import Post
from channels.common.ssrf import Forbidden, Guard
from channels.contract import Later, Never
from tests.support.http import ScriptedHttp
from tests.support.service import command

GUARD = Guard("channels.webhook", plain_http=True)
LOOPBACK = Guard("channels.webhook", networks=(IPv4Network("127.0.0.0/8"),), plain_http=True)
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


def forms(address: IPv4Address) -> list[str]:
    """An IPv4 address as IPv6 writes it: mapped, and by way of NAT64."""
    return [f"::ffff:{address}", str(IPv6Address(f"::ffff:{address}")), str(IPv6Address(f"64:ff9b::{address}"))]


@given(closed_v4)
def test_no_private_or_reserved_address_is_admitted_in_any_form(address: IPv4Address) -> None:
    assert not any(GUARD.admits(form) for form in (str(address), *forms(address)))


@given(closed_v6)
def test_nor_is_one_of_ipv6(address: IPv6Address) -> None:
    assert not GUARD.admits(str(address))
    assert not GUARD.admits(f"{address}%1")


@given(open_v4, open_v6)
def test_public_addresses_are_admitted_in_every_form(v4: IPv4Address, v6: IPv6Address) -> None:
    assert all(GUARD.admits(form) for form in (str(v4), *forms(v4), str(v6)))


@given(closed_v4, closed_v6)
def test_what_is_allowed_is_admitted_and_nothing_beside_it(v4: IPv4Address, v6: IPv6Address) -> None:
    allowing = Guard("x", networks=(IPv4Network(v4), IPv6Network(v6)))
    assert all(allowing.admits(form) for form in (str(v4), *forms(v4), str(v6)))
    assert not allowing.admits(str(IPv4Address(int(v4) ^ 1)))
    assert not allowing.admits(str(IPv6Address(int(v6) ^ 1)))


@given(closed_v4 | closed_v6)
def test_no_url_with_such_an_address_passes(address: IPv4Address | IPv6Address) -> None:
    hosts = [str(address)] if isinstance(address, IPv4Address) else [f"[{address}]"]
    if isinstance(address, IPv4Address):
        wide = str(address).translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789."})
        hosts += [str(int(address)), hex(int(address)), f"{address}.", wide, *(f"[{form}]" for form in forms(address))]
        first, *rest = str(address).split(".")
        hosts += [".".join([f"0{int(first):o}", *rest]), ".".join([hex(int(first)), *rest])]
    for host in hosts:
        with pytest.raises(Forbidden):
            GUARD.url(f"http://{host}/latest/meta-data")


@given(st.text(max_size=60) | st.from_regex(r"https?://[^/]{0,30}(/.*)?", fullmatch=True))
def test_a_url_is_read_or_forbidden_and_nothing_else(text: str) -> None:
    try:
        url = GUARD.url(text)
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
def test_what_is_no_https_url_for_us(text: str) -> None:
    with pytest.raises(Forbidden) as caught:
        Guard("channels.webhook").url(text)
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "url", "listed"),
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
def test_the_list_of_hosts_goes_by_the_host_alone(pattern: str, url: str, listed: bool) -> None:
    guard = Guard("x", hosts=(pattern,))
    assert guard.lists(guard.url(url)) is listed


class Names(AbstractResolver):
    """A DNS whose answers for a name change from question to question."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked += 1
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


async def test_a_name_that_leads_elsewhere_the_second_time_is_asked_once_for_each_connection() -> None:
    async with ScriptedHttp(steps=[b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]) as server:
        names = Names(["10.0.0.1", "127.0.0.1"], ["10.0.0.1"])
        post = Post(LOOPBACK, 2, names)
        url = server.url.replace("127.0.0.1", "hooks.example.com")

        reply = await post.post(url, b"{}", {}, "ops")
        assert (reply.status, names.asked, server.requests[0].headers["host"]) == (200, 1, url.removeprefix("http://"))

        with pytest.raises(Never, match="private, local or reserved"):
            await post.post(url, b"{}", {}, "ops")
        assert (names.asked, len(server.requests)) == (2, 1)
        await post.close()


@pytest.mark.parametrize("address", ["169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00:ec2::254", "64:ff9b::7f00:1"])
async def test_a_name_that_leads_inside_is_never_connected_to(address: str) -> None:
    async with ScriptedHttp() as server:
        port = server.url.rpartition(":")[2]
        post = Post(GUARD, 2, Names([address], [address]))
        with pytest.raises(Never, match=r"channels\.webhook\.allow_networks"):
            await post.post(f"http://hooks.example.com:{port}/", b"{}", {}, "ops")
        with pytest.raises(Never):
            await post.reach(f"http://hooks.example.com:{port}/", "ops")
        await post.close()
        assert server.connections == 0


async def test_a_name_that_nobody_knows_may_be_known_later() -> None:
    post = Post(GUARD, 2, Names([], []))
    with pytest.raises(Later, match="can't be found"):
        await post.post("http://hooks.example.com/", b"{}", {}, "ops")
    with pytest.raises(Later, match="ops can't be reached"):
        await post.reach("http://hooks.example.com/", "ops")
    await post.close()


async def test_this_machines_own_name_is_forbidden_by_the_systems_resolver_too() -> None:
    async with ScriptedHttp() as server:
        url = server.url.replace("127.0.0.1", "localhost")
        closed, opened = Post(GUARD, 2), Post(LOOPBACK, 2)
        with pytest.raises(Never, match="private, local or reserved"):
            await closed.post(url, b"{}", {}, "ops")
        assert (await opened.post(url, b"{}", {}, "ops")).status == 200
        assert len(server.requests) == 1
        await closed.close()
        await opened.close()


def test_networks_are_read_as_people_write_them() -> None:
    guard = Guard("x", networks=(ip_network("10.20.0.0/16"), ip_network("fd00::/8")))
    assert [guard.admits(one) for one in ("10.20.3.4", "10.21.0.1", "fd12::1", "fe80::1", "nonsense")] == [
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tls(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_a_certificate_that_nobody_vouches_for_is_no_connection(authority: trustme.CA) -> None:
    async with ScriptedHttp(tls=tls(authority, "localhost")) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        post = Post(LOOPBACK, 5)
        with pytest.raises(Later, match="certificate is not to be trusted"):
            await post.post(url, b"{}", {}, "ops")
        with pytest.raises(Later, match="certificate is not to be trusted"):
            await post.reach(url, "ops")
        await post.close()
        assert server.requests == []


async def test_an_authority_of_ones_own_is_trusted_and_may_be_renewed(authority: trustme.CA, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    async with ScriptedHttp(tls=tls(authority, "localhost")) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        post = Post(LOOPBACK, 5, ca_file=file)
        with pytest.raises(Later, match="certificate is not to be trusted"):
            await post.post(url, b"{}", {}, "ops")
        authority.cert_pem.write_to_path(str(file))
        os.utime(file, (1, 1))
        assert (await post.post(url, b"{}", {}, "ops")).status == 200
        await post.reach(url, "ops")
        file.write_text("no certificate")
        with pytest.raises(Later, match="ops: ca_file can't be used"):
            await post.post(url, b"{}", {}, "ops")
        await post.close()


@pytest.mark.parametrize(("name", "status"), [("localhost", 0), ("other.example.com", 1)])
async def test_https_goes_to_the_name_in_the_url_though_the_address_is_pinned(
    authority: trustme.CA, tmp_path: Path, name: str, status: int
) -> None:
    roots, config = tmp_path / "roots.pem", tmp_path / "dispatcher.yaml"
    authority.cert_pem.write_to_path(str(roots))
    async with ScriptedHttp(tls=tls(authority, name)) as server:
        targets = {"ops": {"url": server.url.replace("127.0.0.1", "localhost")}}
        section = {"targets": targets, "allow_networks": ["127.0.0.0/8", "::1"]}
        config.write_text(yaml.safe_dump({"channels": {"webhook": section}}))
        asked = ("send-test", "--channel", "webhook", "--to", "ops", "--config", str(config))
        ended, _, err = await command(*asked, env={**os.environ, "SSL_CERT_FILE": str(roots)})
        assert (ended, len(server.requests)) == (status, 1 - status), err
        assert not status or "certificate is not to be trusted" in err
