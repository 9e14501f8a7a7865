"""The Kafka findings of `dispatcher check --live`."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from starlette.applications import Starlette

from dispatcher.intake.kafka.check import check
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.web.server import serving
from tests.support.brokers import Broker
from tests.support.brokers.apache import PASSWORD, USER, ApacheKafka
from tests.support.brokers.light import LightBroker
from tests.support.brokers.mock import Failure, MockBroker, Request
from tests.support.kafka import config, numbered, publish, reading
from tests.support.service import free_port


async def found(settings: KafkaConfig) -> list[tuple[bool, str]]:
    return [(finding.ok, finding.message) for finding in await check(settings)]


@pytest.mark.broker
async def test_the_findings_name_the_topic_its_newest_message_and_the_groups_lag(broker: Broker, topic: str) -> None:
    settings = config(broker.bootstrap_servers, topic)
    reached, there, lag = await found(settings)
    assert reached == (True, f"{broker.bootstrap_servers} is reached")
    assert there == (
        True,
        f"topic {topic} is there, 4 partitions; no message has come yet: is cloudEvents.enable set in flyteadmin?",
    )
    assert lag[1] == (
        f"group {settings.group_id} has read nothing of {topic} yet; it begins with messages since five minutes before"
        " its first start (kafka.start); the topic has 0 messages"
    )

    await publish(broker.bootstrap_servers, topic, numbered(30))
    async with reading(settings) as reader:
        await reader.count(30)
    for number in numbered(7):  # one by one: the light broker counts a partition's last batch as one message
        await publish(broker.bootstrap_servers, topic, [number])
    _, (_, there_now), (ok, lag_now) = await found(settings)
    assert "; the newest message is of 20" in there_now
    assert (ok, lag_now) == (True, f"group {settings.group_id} is 7 messages behind on {topic}")


@pytest.mark.broker
async def test_a_missing_topic_is_a_problem_and_is_not_created(broker: Broker, topic: str) -> None:
    for _ in range(2):
        _, (ok, text) = await found(config(broker.bootstrap_servers, f"{topic}-missing"))
        assert (ok, "cloudEvents.eventsPublisher.topicName" in text) == (False, True)


async def test_an_unreachable_broker_is_a_problem() -> None:
    for address in (f"127.0.0.1:{free_port()}", "nobody.invalid:9092"):
        ((ok, text),) = await found(config(address, "t"))
        assert (ok, text.startswith(f"{address}: can't be reached: ")) == (False, True)
        assert "kafka.bootstrap_servers" in text


async def test_a_broker_that_advertises_a_wrong_address_is_named() -> None:
    broker = LightBroker(advertised="nobody.invalid:9092").start()
    try:
        ((ok, text),) = await found(config(broker.bootstrap_servers, "t"))
    finally:
        broker.stop()
    assert (ok, text.startswith(f"{broker.bootstrap_servers}: broker ")) == (False, True)
    assert text.endswith("is it up, and is the address right that it advertises (advertised.listeners)?")


async def test_a_port_that_speaks_http_is_named() -> None:
    async with serving(Starlette(), "127.0.0.1", 0) as url:
        ((_, text),) = await found(config(url.removeprefix("http://"), "t"))
    assert text.endswith(": what answers there is not Kafka; check kafka.bootstrap_servers")


@pytest.mark.broker
@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("PLAINTEXT", "SSL", "this port speaks TLS: set kafka.security_protocol to SSL or SASL_SSL"),
        ("SASL_PLAINTEXT", "SASL_SSL", "this port speaks TLS: set kafka.security_protocol to SSL or SASL_SSL"),
        (
            "PLAINTEXT",
            "SASL_PLAINTEXT",
            "this port ends the connection: does it require a login (kafka.security_protoc",
        ),
        ("SSL", "SASL_SSL", "this port ends the connection: does it require a login (kafka.security_protocol is SASL"),
        (
            "SSL",
            "PLAINTEXT",
            "this port ends the TLS handshake: is kafka.security_protocol PLAINTEXT or SASL_PLAINTEXT",
        ),
        (
            "SASL_PLAINTEXT",
            "PLAINTEXT",
            "this port speaks no SASL, so it takes no login: set kafka.security_protocol to",
        ),
        ("SASL_SSL", "SSL", "this port speaks no SASL, so it takes no login: set kafka.security_protocol to SSL or"),
    ],
)
async def test_a_port_with_another_security_protocol_is_named(
    apache: ApacheKafka, ours: str, theirs: str, words: str
) -> None:
    ((ok, text),) = await found(secure(apache, ours, apache.address(theirs)))
    assert (ok, text.startswith(f"{apache.address(theirs)}: {words}")) == (False, True), text


@pytest.mark.broker
async def test_a_refused_login_and_an_untrusted_certificate_are_named(apache: ApacheKafka, tmp_path: Path) -> None:
    login, tls = (apache.address(protocol) for protocol in ("SASL_PLAINTEXT", "SSL"))
    for mechanism in ("PLAIN", "SCRAM-SHA-512"):
        wrong = secure(apache, "SASL_PLAINTEXT", login, sasl_mechanism=mechanism, password=f"not-{PASSWORD}")
        ((ok, text),) = await found(wrong)
        assert (ok, text.startswith(f"{login}: the broker refused the login: Authentication failed")) == (False, True)
        assert text.endswith("; check kafka.username and password")
        assert PASSWORD not in text
    trustme.CA().cert_pem.write_to_path(str(other := tmp_path / "other.pem"))
    ((ok, text),) = await found(secure(apache, "SSL", tls, ca_file=str(other)))
    assert (ok, text.startswith(f"{tls}: the broker's certificate is not trusted: ")) == (False, True)
    assert "kafka.ca_file" in text


def secure(apache: ApacheKafka, protocol: str, address: str, **changes: str) -> KafkaConfig:
    """Settings for this address that are right for a port with this security protocol."""
    login = {"username": USER, "password": PASSWORD} if protocol.startswith("SASL") else {}
    trust = {"ca_file": str(apache.ca_file)} if protocol.endswith("SSL") else {}
    return config(address, "t", security_protocol=protocol, **{**login, **trust, **changes})


@pytest.mark.parametrize(
    ("request_", "failure", "words"),
    [
        (Request.FETCH, Failure.TOPIC_AUTHORIZATION_FAILED, "topic events may not be read by our user, give it READ"),
        (Request.OFFSET_FETCH, Failure.GROUP_AUTHORIZATION_FAILED, "group group-events may not be used by our user"),
    ],
)
async def test_missing_rights_are_problems(
    mock_broker: MockBroker, request_: Request, failure: Failure, words: str
) -> None:
    mock_broker.create_topic("events")
    await publish(mock_broker.bootstrap_servers, "events", numbered(3))
    mock_broker.fail(request_, failure, times=1000)
    findings = await found(config(mock_broker.bootstrap_servers, "events"))
    assert [words in text for ok, text in findings if not ok] == [True], findings
