"""The real thing: Apache Kafka in KRaft mode, one process, broker and controller; jars by Maven, run by Java.

The jars are kept in `.cache/` at the repository's root. Maven asks the repositories that the machine is set up for.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.support.brokers.process import Process, free_ports

VERSION = "4.1.1"
USERNAME, PASSWORD = "dispatcher", "broker-password"
"""Who may log in, by PLAIN and by SCRAM."""
PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")

_CACHE = Path(__file__).parents[3] / ".cache"
_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId><artifactId>broker</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""
_JAVA = (
    "java",
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=error",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
)
_SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "true",
    "num.partitions": "1",
    "offsets.topic.num.partitions": "1",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "message.max.bytes": str(16 * 2**20),
    "log.retention.check.interval.ms": "1000",
    "log.cleaner.enable": "false",
    "broker.session.timeout.ms": "3000",  # so long a broker that was killed can't come back
    "broker.heartbeat.interval.ms": "500",
    "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
}


class Unavailable(Exception):
    """The broker that was asked for can't be had here; the message says why."""


def missing() -> str | None:
    """What this machine lacks to run Kafka; None where it lacks nothing."""
    if shutil.which("java") is None:
        return "there is no java"
    said = subprocess.run(["java", "-version"], capture_output=True, check=False, text=True).stderr
    number = re.search(r'version "(\d+)', said)
    if number is None or int(number[1]) < 17:
        return "java is older than 17"
    if shutil.which("mvn") is None and not _jars().is_dir():
        return "there is no mvn"
    return None


def _jars() -> Path:
    return _CACHE / f"kafka-{VERSION}"


def resolve() -> Path:
    """The folder with Kafka's jars, brought by Maven the first time. Raises Unavailable where that fails."""
    jars = _jars()
    _CACHE.mkdir(exist_ok=True)
    with (_CACHE / f"kafka-{VERSION}.lock").open("w") as lock, tempfile.TemporaryDirectory(dir=_CACHE) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if jars.is_dir():
            return jars
        pom = Path(folder, "pom.xml")
        pom.write_text(_POM.format(version=VERSION))
        copy = ["mvn", "-B", "-q", "-f", pom, "dependency:copy-dependencies", "-DincludeScope=runtime"]
        done = subprocess.run(
            [*copy, f"-DoutputDirectory={folder}/jars"], capture_output=True, check=False, text=True, timeout=600
        )
        if done.returncode != 0:
            raise Unavailable(f"Maven could not bring Kafka {VERSION}: {done.stdout[-1000:]}")
        Path(folder, "jars").rename(jars)
        return jars


class ApacheKafka:
    """One broker with a data folder and ports that outlive its restarts."""

    name = f"Apache Kafka {VERSION}"

    def __init__(self, protocols: Collection[str] = PROTOCOLS, settings: Mapping[str, str] | None = None) -> None:
        """Set up, not started. `settings` are the broker's own, by its own names."""
        self._jars = resolve()
        self._folder = Path(tempfile.mkdtemp(prefix="dispatcher-kafka-"))
        controller, *ports = free_ports(1 + len(protocols))
        self._ports = dict(zip(protocols, ports, strict=True))
        self._certify()
        self._properties = self._folder / "server.properties"
        options = _SETTINGS | self._listeners(controller) | self._locks() | dict(settings or {})
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in options.items()))
        self._format()
        self._process: Process | None = None

    @classmethod
    def started(cls) -> Self:
        broker = cls()
        broker.start()
        return broker

    @property
    def bootstrap_servers(self) -> str:
        return self.listener("PLAINTEXT")

    def listener(self, protocol: str) -> str:
        return f"127.0.0.1:{self._ports[protocol]}"

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that signed the broker's."""
        return self._folder / "ca.pem"

    @property
    def client_files(self) -> tuple[Path, Path]:
        """A certificate and its key for a client: the SSL listener wants one."""
        return self._folder / "client.pem", self._folder / "client-key.pem"

    def segment(self, topic: str, partition: int) -> Path:
        """The file that holds a partition's first messages, as they lie on disk."""
        return self._folder / "data" / f"{topic}-{partition}" / f"{0:020}.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start, again if it ran before: same ports, same data. Returns once it serves."""
        process = Process([*_JAVA, "-cp", f"{self._jars}/*", "kafka.Kafka", self._properties], self._folder / "log")
        self._process = process
        process.wait_until(lambda: "Kafka Server started" in process.said(), seconds=60)

    def stop(self) -> None:
        """Let it shut down in order."""
        if self._process is not None:
            self._process.end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash would end it."""
        if self._process is not None:
            self._process.end(signal.SIGKILL)

    def freeze(self) -> None:
        """Connections stay, nothing answers: what a broken network looks like."""
        if self._process is not None:
            self._process.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listeners(self, controller: int) -> dict[str, str]:
        listeners = [f"{protocol}://127.0.0.1:{port}" for protocol, port in self._ports.items()]
        maps = [f"{protocol}:{protocol}" for protocol in PROTOCOLS]
        return {
            "listeners": ",".join([*listeners, f"CONTROLLER://127.0.0.1:{controller}"]),
            "advertised.listeners": ",".join(listeners),
            "listener.security.protocol.map": ",".join([*maps, "CONTROLLER:PLAINTEXT"]),
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self._folder / "data"),
        }

    def _locks(self) -> dict[str, str]:
        """Encryption and logins, for the listeners that have them."""
        locks = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._folder / "broker.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.ca_file),
            "listener.name.ssl.ssl.client.auth": "required",
        }
        plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USERNAME}="{PASSWORD}";'
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        for listener in ("sasl_plaintext", "sasl_ssl"):
            name = f"listener.name.{listener}"
            locks[f"{name}.plain.sasl.jaas.config"] = plain
            locks[f"{name}.scram-sha-256.sasl.jaas.config"] = scram
            locks[f"{name}.scram-sha-512.sasl.jaas.config"] = scram
        return locks

    def _certify(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        broker = authority.issue_cert("127.0.0.1", "localhost")
        chain = b"".join(blob.bytes() for blob in broker.cert_chain_pems)
        (self._folder / "broker.pem").write_bytes(_pkcs8(broker.private_key_pem.bytes()) + chain)
        client = authority.issue_cert("dispatcher@example.com")
        certificate, key = self.client_files
        client.cert_chain_pems[0].write_to_path(certificate)
        client.private_key_pem.write_to_path(key)

    def _format(self) -> None:
        users = [f"SCRAM-SHA-{bits}=[name={USERNAME},password={PASSWORD}]" for bits in (256, 512)]
        scram = [part for user in users for part in ("--add-scram", user)]
        tool = [*_JAVA, "-cp", f"{self._jars}/*", "kafka.tools.StorageTool", "format"]
        done = subprocess.run(
            [*tool, "-t", "dispatcher-tests-00000", "-c", self._properties, *scram],
            capture_output=True,
            check=False,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"Kafka's folder could not be formatted: {done.stdout}{done.stderr}")


def _pkcs8(key: bytes) -> bytes:
    """The form in which Kafka reads a private key."""
    loaded = load_pem_private_key(key, password=None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
