"""The section `kafka` of the settings. Does not import aiokafka, because every command reads the settings."""

from __future__ import annotations

import re
import ssl
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from channels.common.comma_list import comma_list
from channels.common.network import host_and_port
from channels.common.secret import ExistingFile, Secret, SecretFile, reject_both, reveal
from channels.common.tls import CaFile, check_certificate
from dispatcher.parsing.duration import Duration

CALL_SECONDS = 15
"""Maximum duration of a call to the broker, in seconds."""
CLOSE_SECONDS = 3
"""Maximum duration of a call to the broker during a stop, in seconds. If closing a consumer takes longer, closing
continues in the background."""
DEFAULT_PORT = 9092
"""The port of a broker in `bootstrap_servers` that names none, as in aiokafka."""
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}")
EARLIEST: Literal["earliest"] = "earliest"
FIRST_START: Literal["first-start"] = "first-start"


def _comma_separated(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def check_brokers(text: str) -> str:
    """Return brokers as HOST:PORT, separated by commas. Raises ValueError if there is none, or an invalid one."""
    brokers = comma_list(text)
    if not brokers:
        raise ValueError("name at least one broker as HOST:PORT")
    for broker in brokers:
        host_and_port(broker if ":" in broker.rpartition("]")[2] else f"{broker}:{DEFAULT_PORT}")
    return ",".join(brokers)


def check_topic(name: str) -> str:
    """Return a topic's name. Raises ValueError if it is not valid in Kafka (`Topic.validate`)."""
    if not _TOPIC.fullmatch(name) or name in {".", ".."}:
        raise ValueError("not a topic's name: Kafka allows letters, digits, '.', '_' and '-', at most 249 of them")
    return name


def _start(value: Any) -> Any:
    if isinstance(value, str) and value not in {EARLIEST, FIRST_START}:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    has_zone = isinstance(value, datetime) and value.tzinfo is not None
    if not isinstance(value, str) and not has_zone:
        raise ValueError("must be first-start, earliest, or a time with its zone, such as 2026-11-29T08:00:00Z")
    return value


Start = Annotated[Literal["first-start", "earliest"] | datetime, BeforeValidator(_start)]
"""The type of the setting `kafka.start`."""


class KafkaConfig(BaseModel):
    """Where Flyte's events are in Kafka, and how to connect to Kafka."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: Annotated[str, BeforeValidator(_comma_separated), AfterValidator(check_brokers)]
    """The brokers as HOST:PORT, separated by commas."""
    topics: Annotated[
        tuple[Annotated[str, AfterValidator(check_topic)], ...], BeforeValidator(comma_list), Field(min_length=1)
    ] = ("flyte-cloudevents",)
    start: Start = FIRST_START
    """Where reading begins in a partition for which the group has no committed offset. `first-start`: with messages
    since the first start of the dispatcher with its ledger, or since the newest event that was purged from the ledger.
    `earliest`: with the oldest message. Or a time with its zone, such as `2026-11-29T08:00:00Z`. Kafka's timestamps of
    the messages count."""
    group_id: str = Field("notification-dispatcher", min_length=1)
    group_instance_id: str | None = None
    """The replica's name as a static member of the consumer group; each replica needs a different name. With a name, a
    quick restart of the replica causes no rebalance."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    username: str | None = None
    password: Secret | None = None
    password_file: SecretFile | None = None
    ca_file: CaFile | None = None
    """A PEM file with the certificate authorities to trust. If not set, the system's authorities are trusted."""
    cert_file: ExistingFile | None = None
    """A PEM file with the client certificate, for brokers that ask for a client certificate."""
    key_file: ExistingFile | None = None
    session_timeout: Duration = Field(timedelta(seconds=15), ge=timedelta(seconds=1), le=timedelta(minutes=30))
    """Time after which the partitions of a crashed replica are assigned to other replicas."""
    stall_timeout: Duration = Field(timedelta(seconds=60), gt=timedelta())
    """If the consumer reads nothing for this long although the broker has messages, the consumer is replaced."""
    max_poll_records: int = Field(5000, ge=1, le=100_000)
    """Maximum number of messages in a batch."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        reject_both("password", self.password, self.password_file)
        has_password = self.password is not None or self.password_file is not None
        if self.security_protocol.startswith("SASL"):
            if self.username is None or not has_password:
                raise ValueError(f"{self.security_protocol} needs username and password or password_file")
        elif self.username is not None or has_password:
            raise ValueError(f"{self.security_protocol} logs nobody in: set security_protocol to SASL_SSL")
        files = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if files and not self.security_protocol.endswith("SSL"):
            raise ValueError(f"{self.security_protocol} encrypts nothing: {files[0]} needs SSL or SASL_SSL")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file needs cert_file")
        if self.cert_file is not None:
            check_certificate(self.cert_file, self.key_file)
        return self

    def connection(self) -> dict[str, Any]:
        """Return aiokafka's connection options, for consumers and producers.

        Raises OSError if a file can't be read or has no certificate.
        """
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": "flyte-notification-dispatcher",
            "security_protocol": self.security_protocol,
            "metadata_max_age_ms": 10_000,  # so that a new topic is found within 10 seconds
        }
        if self.security_protocol.endswith("SSL"):
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
            options["ssl_context"] = context
        if self.security_protocol.startswith("SASL"):
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = reveal(self.password, self.password_file)
        return options
