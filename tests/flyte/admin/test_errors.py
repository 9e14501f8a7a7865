"""Wrong endpoints, certificates and settings: each gives an error that names the setting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import certifi
import grpc
import grpc.aio
import pytest
import trustme
from pydantic import ValidationError

from dispatcher.clock import SystemClock
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin
from dispatcher.errors import FlyteAdminUnavailable, SettingsError
from dispatcher.flyte.admin import FlyteAdminConfig, open_flyte_admin
from dispatcher.rules import AdminExecution
from tests.support.builders import an_execution
from tests.support.flyte_admin import a_finished_execution, admin_client
from tests.support.servers import garbage_server

EXECUTION = an_execution()
AUTHORITY = trustme.CA()


def issued(*names: str, **limits: Any) -> tuple[bytes, bytes]:
    certificate = AUTHORITY.issue_cert(*names, **limits)
    return certificate.private_key_pem.bytes(), b"".join(part.bytes() for part in certificate.cert_chain_pems)


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


@pytest.fixture
async def encrypted() -> AsyncIterator[LocalFlyteAdmin]:
    async with LocalFlyteAdmin(tls=issued("127.0.0.1")) as server:
        server.add(a_finished_execution())
        yield server


async def error_of(server: LocalFlyteAdmin, **changes: Any) -> str:
    async with admin_client(server, **{"timeout": "400ms", **changes}) as admin:
        with pytest.raises(FlyteAdminUnavailable) as caught:
            await admin.look_up(EXECUTION)
        assert await admin.unready_reason() == str(caught.value)
    return str(caught.value)


async def test_a_trusted_certificate_is_enough(encrypted: LocalFlyteAdmin, ca_file: Path) -> None:
    async with admin_client(encrypted, ca_file=ca_file, endpoint=f"dns:///{encrypted.endpoint}") as admin:
        assert isinstance(await admin.look_up(EXECUTION), AdminExecution)


async def test_plaintext_against_tls(encrypted: LocalFlyteAdmin) -> None:
    assert "take rules.flyte_admin.insecure away" in await error_of(encrypted, insecure=True)


async def test_tls_against_plaintext(ca_file: Path) -> None:
    async with LocalFlyteAdmin() as server:
        words = await error_of(server, insecure=False, ca_file=ca_file)
    assert words.startswith(f"rules.flyte_admin.insecure: {server.endpoint} doesn't speak TLS: set insecure: true")


async def test_a_certificate_of_another_authority(encrypted: LocalFlyteAdmin, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    assert "rules.flyte_admin.ca_file: " in await error_of(encrypted, ca_file=tmp_path / "other.pem")
    assert "rules.flyte_admin.ca_file: " in await error_of(encrypted)


@pytest.mark.parametrize(
    "limits",
    [{"not_after": datetime(2020, 1, 1, tzinfo=UTC)}, {"not_before": datetime(2037, 1, 1, tzinfo=UTC)}],
    ids=["expired", "not yet valid"],
)
async def test_a_certificate_that_is_expired_or_not_yet_valid(ca_file: Path, limits: Any) -> None:
    async with LocalFlyteAdmin(tls=issued("127.0.0.1", **limits)) as server:
        assert "or this machine's clock, is out of date" in await error_of(server, ca_file=ca_file)


async def test_a_certificate_for_another_host(ca_file: Path) -> None:
    async with LocalFlyteAdmin(tls=issued("flyte.example.com")) as server:
        assert "names another host" in await error_of(server, ca_file=ca_file)


async def test_a_port_that_nothing_listens_on() -> None:
    server = LocalFlyteAdmin(port=1)
    assert await error_of(server) == (
        "rules.flyte_admin.endpoint: 127.0.0.1:1 can't be asked now: failed to connect to all addresses; "
        "last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote host: Connection refused"
    )


async def test_an_unknown_host_name() -> None:
    assert "rules.flyte_admin.endpoint: nowhere.invalid:81" in await error_of(
        LocalFlyteAdmin(), endpoint="nowhere.invalid:81"
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "is no gRPC server"),
        (b"220 relay ESMTP\r\n" * 9, "is no gRPC server"),
        (b"", "can't be asked now"),
        (None, "no answer from"),
    ],
    ids=["HTTP", "SMTP", "hangs up", "silence"],
)
async def test_a_server_that_is_not_grpc(answer: bytes | None, words: str) -> None:
    async with garbage_server(answer) as port:
        message = await error_of(LocalFlyteAdmin(port=port))
    assert "rules.flyte_admin.endpoint: " in message
    assert words in message


async def test_another_grpc_service() -> None:
    other = grpc.aio.server()
    port = other.add_insecure_port("127.0.0.1:0")
    await other.start()
    assert f"rules.flyte_admin.endpoint: 127.0.0.1:{port} is no FlyteAdmin" in await error_of(
        LocalFlyteAdmin(port=port)
    )
    await other.stop(None)


def test_a_ca_file_without_certificates_is_a_settings_error(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text(Path(certifi.where()).read_text())
    config = FlyteAdminConfig(endpoint="flyte:443", ca_file=file)
    file.write_text("-----BEGIN nonsense")
    with pytest.raises(ValidationError, match="has no certificate that can be read"):
        FlyteAdminConfig(endpoint="flyte:443", ca_file=file)
    with pytest.raises(SettingsError, match=r"rules\.flyte_admin\.ca_file: .*holds no certificate"):
        open_flyte_admin(config, SystemClock())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"endpoint": "https://flyte.example.com"}, "is no gRPC endpoint: write HOST:PORT"),
        ({"endpoint": ""}, "is no gRPC endpoint"),
        ({"endpoint": "a:1,b:2"}, "is no gRPC endpoint"),
        ({"client_id": "x"}, "client_id needs client_secret or client_secret_file"),
        ({"client_secret": "x"}, "client_secret needs client_id"),
        ({"scopes": "all"}, "need client_id"),
        ({"insecure": True, "ca_file": certifi.where()}, "insecure encrypts nothing"),
        ({"client_id": "x", "client_secret": "y", "token_endpoint": "flyte/token"}, "write https://HOST/PATH"),
        ({"timeout": "0s"}, "greater than or equal to"),
        ({"timeout": "soon"}, "is not a duration"),
    ],
)
def test_invalid_settings_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        FlyteAdminConfig.model_validate({"endpoint": "flyte:81", **given})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("written", "endpoint"),
    [
        ("flyte.example.com", "flyte.example.com"),
        ("dns:///flyte.example.com:443", "flyte.example.com:443"),
        (" flyteadmin.flyte.svc.cluster.local:81 ", "flyteadmin.flyte.svc.cluster.local:81"),
        ("[::1]:8089", "[::1]:8089"),
    ],
)
def test_endpoints_can_be_written_as_in_flytes_tools(written: str, endpoint: str) -> None:
    assert FlyteAdminConfig(endpoint=written, scopes=()).endpoint == endpoint
