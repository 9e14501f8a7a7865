"""Apache Kafka from Maven's repository, downloaded once: one KRaft node on free loopback ports."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.support.brokers.tether import Tether

VERSION = "4.1.1"
CACHE = Path(__file__).parents[3] / ".cache" / f"kafka-{VERSION}"
USER, PASSWORD = "dispatcher", "s3cret-of-the-tests"
LISTENERS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL", "CONTROLLER")

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>tests</groupId><artifactId>broker</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.24.3</version></dependency>
</dependencies></project>"""


class Unobtainable(Exception):
    """Apache Kafka can't be started here; the message says why."""


class ApacheKafka:
    """A broker with every security protocol. It can be stopped, killed and started again with its data."""

    def __init__(self) -> None:
        self.name = f"Apache Kafka {VERSION}"
        self.folder = Path(tempfile.mkdtemp(prefix="dispatcher-kafka-"))
        self._ports = dict(zip(LISTENERS, _free_ports(len(LISTENERS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        self._tether: Tether | None = None
        self._classpath = _jars()
        self._authority = trustme.CA()
        self.ca_file = self.folder / "ca.pem"
        self._write_certificates()
        self._format()

    @property
    def bootstrap_servers(self) -> str:
        return self.address("PLAINTEXT")

    def address(self, protocol: str) -> str:
        """The address for a security protocol."""
        return f"localhost:{self._ports[protocol]}"

    def start(self) -> Self:
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [*self._java("-Xmx512m", "-Xms256m"), "kafka.Kafka", str(self.folder / "server.properties")],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._tether = Tether(self._process)
        log.close()
        deadline = time.monotonic() + 60
        while not _listens(self._ports["PLAINTEXT"]):
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / "log").read_text()[-2000:]
                self.stop()
                raise Unobtainable(f"Apache Kafka did not start: {tail}")
            time.sleep(0.1)
        return self

    def halt(self, number: int = signal.SIGTERM) -> None:
        """Stop the process and keep the data for the next start."""
        if self._process is not None and self._tether is not None:
            self._tether.cut()
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = self._tether = None

    @property
    def running(self) -> bool:
        return self._process is not None

    def signal(self, number: int) -> None:
        """Send a signal. SIGSTOP freezes the broker: connections stay open without answers; SIGCONT continues it."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        self.halt(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _java(self, *options: str) -> list[str]:
        return ["java", *options, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", self._classpath]

    def _write_certificates(self) -> None:
        self._authority.cert_pem.write_to_path(str(self.ca_file))
        certificate = self._authority.issue_cert("localhost", "127.0.0.1")
        key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
        pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())  # Kafka reads PKCS #8 only
        chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
        (self.folder / "broker.pem").write_bytes(pkcs8 + chain)

    def _format(self) -> None:
        (self.folder / "server.properties").write_text(self._properties())
        done = subprocess.run(
            [
                *self._java("-Xmx256m"),
                "kafka.tools.StorageTool",
                "format",
                "--standalone",
                "--cluster-id",
                "5L6g3nShT-eMCtK--X86sw",
                "--config",
                str(self.folder / "server.properties"),
                "--add-scram",
                f"SCRAM-SHA-256=[name={USER},password={PASSWORD}]",
                "--add-scram",
                f"SCRAM-SHA-512=[name={USER},password={PASSWORD}]",
            ],
            capture_output=True,
            check=False,
            timeout=120,
        )
        if done.returncode:
            raise Unobtainable(f"the storage could not be formatted: {(done.stdout + done.stderr).decode()[-1000:]}")

    def _properties(self) -> str:
        listeners = ",".join(f"{name}://localhost:{port}" for name, port in self._ports.items())
        plain = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        lines = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"localhost:{self._ports['CONTROLLER']}",
            "controller.listener.names": "CONTROLLER",
            "listeners": listeners,
            "listener.security.protocol.map": ",".join(
                [f"{name}:{name}" for name in LISTENERS[:-1]] + ["CONTROLLER:PLAINTEXT"]
            ),
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self.folder / "broker.pem"),
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "broker.session.timeout.ms": "3000",  # a killed broker can come back after this
            "broker.heartbeat.interval.ms": "500",
            "auto.create.topics.enable": "false",
            "log.retention.check.interval.ms": "500",
            "log.segment.bytes": str(32 * 2**20),
            "log.cleaner.enable": "false",
            "message.max.bytes": str(16 * 2**20),
            "num.network.threads": "2",
            "num.io.threads": "2",
        }
        for protocol in ("sasl_plaintext", "sasl_ssl"):
            lines[f"listener.name.{protocol}.plain.sasl.jaas.config"] = plain
            for mechanism in ("scram-sha-256", "scram-sha-512"):
                module = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                lines[f"listener.name.{protocol}.{mechanism}.sasl.jaas.config"] = module
        return "".join(f"{name}={value}\n" for name, value in lines.items())


def _jars() -> str:
    """The class path. Maven resolves it with its own settings, once for all test runs."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / "complete").exists():
            _resolve()
            (CACHE / "complete").touch()
    return f"{CACHE / 'jars'}{os.sep}*"


def _resolve() -> None:
    (CACHE / "pom.xml").write_text(_POM)
    command = ["mvn", "-q", "-B", "-f", str(CACHE / "pom.xml"), "dependency:copy-dependencies"]
    try:
        done = subprocess.run(
            [*command, f"-DoutputDirectory={CACHE / 'jars'}", "-DincludeScope=runtime"],
            capture_output=True,
            check=False,
            timeout=400,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unobtainable(f"Maven did not resolve Apache Kafka: {error}") from None
    if done.returncode:
        raise Unobtainable(f"Maven did not resolve Apache Kafka: {done.stdout.decode()[-500:]}")


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
