"""What flyteadmin's configuration says of notifications and events, as a configuration of ours. Pure.

Its fields are those of flyteadmin's `runtime/interfaces/application_configuration.go`; viper, which reads them there,
minds no case. Secrets are never taken over, only their places named; what can't be carried over is left to a person.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parseaddr
from typing import Any

import yaml

from dispatcher.rendering.flyte_template import as_jinja, as_text

SECTIONS = ("notifications", "cloudEvents")
"""The parts of flyteadmin's configuration that are read."""
TEMPLATES = "flyte-templates"
"""The folder for Flyte's subject and body, beside the settings."""
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_SENDGRID = ("smtp.sendgrid.net", "587", "apikey")
"""SendGrid's documentation, "Integrating with the SMTP API": the API key is the password of the user `apikey`."""
_ONE_LINE = 100_000
_WORKFLOWS = {"all", "*", "workflow"}
_ADDRESS = re.compile(r"[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9.-]{1,253}")
_IMPLICIT_TLS = "465"


@dataclass(slots=True)
class Inherited:
    """A configuration of ours, in the making."""

    lines: list[str] = field(default_factory=list)
    """The settings' YAML."""
    templates: dict[str, str] = field(default_factory=dict)
    """Files of `templates.path`: name and content."""
    left: list[str] = field(default_factory=list)
    """What a person has to do; each stands in a comment of the settings too."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def leave(self, words: str, *lines: str, indent: int = 0) -> None:
        """Leave something to a person; `lines` are settings to be completed."""
        self.left.append(words)
        self.lines += [f"{' ' * indent}# {_printable(line)}" for line in (f"TO DO: {words}", *lines)]

    def put(self, name: str, value: Any, *, indent: int = 2) -> None:
        """Write one option."""
        written = yaml.safe_dump({name: value}, allow_unicode=True, width=_ONE_LINE)
        self.lines += [f"{' ' * indent}{line}" for line in written.splitlines()]


def inherit(data: Any, origin: str, *, with_templates: bool) -> Inherited | None:
    """Our configuration for flyteadmin's; None where `data` holds neither of `SECTIONS`, at any depth.

    Args:
        data: flyteadmin's configuration, or what it lies in, as Helm's values.
        origin: where it came from, for the first line.
        with_templates: whether there is a place for Flyte's subject and body.

    """
    notifications = _found(data, "notifications")
    events = _found(data, "cloudEvents") or _found(data, "cloud_events")  # the latter in flyte-core's Helm values
    if notifications is None and events is None:
        return None
    made = Inherited(
        [f"# From {_printable(origin)}. See to each TO DO, then: dispatcher check --live --config FILE", ""]
    )
    _events(made, events or {})
    made.lines.append("")
    made.leave(
        "say where FlyteAdmin is, or give launch plan files: that is where the rules are",
        "rules:",
        '  flyte_admin: {endpoint: "flyteadmin.flyte.svc.cluster.local:81", insecure: true}',
    )
    made.lines.append("")
    if notifications is not None:
        emailer = _section(notifications, "emailer")
        _mail(made, notifications, emailer)
        made.lines.append("")
        _wording(made, emailer, with_templates=with_templates)
        made.leave("once all is well, take notifications out of flyteadmin's configuration, or people are told twice")
    return made


def _events(made: Inherited, events: Mapping[str, Any]) -> None:
    kind, kafka, publisher = _text(events, "type"), _section(events, "kafka"), _section(events, "eventsPublisher")
    brokers = _texts(kafka, "brokers")
    if not _true(events, "enable"):
        made.leave("set cloudEvents.enable: true in flyteadmin's configuration")
    if kind.lower() != "kafka" or not brokers:
        made.leave(
            f"Flyte's events go to {kind or 'nowhere'}: give cloudEvents type: kafka and kafka.brokers, and name them here",
            'kafka: {bootstrap_servers: "kafka:9092"}',
        )
        return
    if _text(events, "cloudEventVersion").lower() != "v2":
        made.leave("cloudEvents.cloudEventVersion is not v2: without FlyteAdmin, events don't name their launch plan")
    types = {name.lower() for name in _texts(publisher, "eventTypes")}
    if types and not types & _WORKFLOWS:
        made.leave("cloudEvents.eventsPublisher.eventTypes leaves workflows out: set it to [all]")
    made.lines.append("kafka:")
    made.put("bootstrap_servers", ",".join(brokers))
    if topic := _text(publisher, "topicName"):
        made.put("topics", [topic])
    else:
        made.leave("cloudEvents.eventsPublisher.topicName is not set: name the topic", "topics: []", indent=2)
    _kafka_security(made, _section(kafka, "saslConfig"), _section(kafka, "tlsConfig"))


def _kafka_security(made: Inherited, sasl: Mapping[str, Any], tls: Mapping[str, Any]) -> None:
    encrypted = _true(tls, "enabled")
    if encrypted:
        made.put("security_protocol", "SSL")
        if _true(tls, "insecureSkipVerify"):
            made.leave("tlsConfig.insecureSkipVerify: give the broker's authority instead", "ca_file: FILE", indent=2)
        if certificate := _text(tls, "certPath"):
            made.leave(
                "mount our own certificate and key, as flyteadmin has them",
                f"cert_file: {json.dumps(certificate)}",
                f"key_file: {json.dumps(_text(tls, 'keyPath'))}",
                indent=2,
            )
    if not _true(sasl, "enabled"):
        return
    mechanism = _text(sasl, "mechanism") or "PLAIN"
    if mechanism not in _MECHANISMS:
        made.leave(f"saslConfig.mechanism {mechanism}: there are {', '.join(_MECHANISMS)}", indent=2)
        mechanism = "PLAIN"
    made.leave(
        f"the login's password goes into a file, or into DISPATCHER__KAFKA__PASSWORD{_whence(_text(sasl, 'passwordPath'))}; "
        f"with it, {'replace security_protocol by' if encrypted else 'add'}:",
        f"security_protocol: {'SASL_SSL' if encrypted else 'SASL_PLAINTEXT'}",
        f"sasl_mechanism: {mechanism}",
        f"username: {json.dumps(_text(sasl, 'user'))}",
        "password_file: FILE",
        indent=2,
    )


def _mail(made: Inherited, notifications: Mapping[str, Any], emailer: Mapping[str, Any]) -> None:
    server = _section(emailer, "emailServerConfig")
    service = _text(server, "serviceName").lower()
    host, port, user = (_text(server, name) for name in ("smtpServer", "smtpPort", "smtpUsername"))
    secret = _text(server, "smtpPasswordSecretName")
    if service == "sendgrid":
        host, port, user = _SENDGRID
        secret = _text(server, "apiKeyFilePath") or _text(server, "apiKeyEnvVar")
    elif not host:
        _no_relay(made, notifications, service)
        return
    made.lines += ["channels:", "  email:"]
    made.put("host", host, indent=4)
    if port.isdigit() and 0 < int(port) <= 65535:
        made.put("port", int(port), indent=4)
    made.put("security", "tls" if port == _IMPLICIT_TLS else "starttls", indent=4)
    if not user:
        made.leave("flyteadmin took a relay without STARTTLS too; if this is one:", "security: none", indent=4)
    if _true(server, "smtpSkipTLSVerify"):
        made.leave("smtpSkipTLSVerify: give the relay's authority instead", "ca_file: FILE", indent=4)
    if user:
        made.leave(
            "the relay's password goes into a file, or into DISPATCHER__CHANNELS__EMAIL__PASSWORD"
            f"{_whence(secret)}; with it, add:",
            f"username: {json.dumps(user)}",
            "password_file: FILE",
            indent=4,
        )
    _sender(made, _text(emailer, "sender"))


def _no_relay(made: Inherited, notifications: Mapping[str, Any], service: str) -> None:
    region = _text(_section(notifications, "aws"), "region") or _text(notifications, "region")
    kind = service or _text(notifications, "type") or "nothing"
    if kind.lower() == "aws":
        words = "flyteadmin mails by AWS's own interface (SES): make SMTP credentials there"
        host = f"email-smtp.{region or 'REGION'}.amazonaws.com"
    else:
        words, host = f"flyteadmin mails by {_one_line(kind)}, which names no relay: name one", "relay.example.com"
    made.leave(
        words,
        "channels:",
        f"  email: {{host: {host}, username: USER, password_file: FILE, from: flyte@example.com}}",
    )


def _sender(made: Inherited, sender: str) -> None:
    if sender.isprintable() and _ADDRESS.fullmatch(parseaddr(sender)[1]):
        made.put("from", sender, indent=4)
        return
    why = "has variables, and only an address can be carried over" if "{{" in sender else "is not a mail address"
    made.leave(f"emailer.sender {why}: change this one", indent=4)
    made.put("from", "flyte@example.com", indent=4)


def _wording(made: Inherited, emailer: Mapping[str, Any], *, with_templates: bool) -> None:
    """Flyte's subject and body as templates of the operator's own; launch plans may bring others, as ever."""
    subject, body = _one_line(_text(emailer, "subject")), _text(emailer, "body").strip()
    if not subject and not body:
        return
    if not with_templates:
        made.leave("emailer.subject and body become templates where there is a place for them: give --output FILE")
        return
    if subject:
        made.templates["email/subject.txt.j2"] = as_jinja(subject)
    if body:
        made.templates["email/html.html.j2"] = as_jinja(body)
        if words := as_text(body):
            made.templates["email/text.txt.j2"] = as_jinja(words)
    made.lines += ["templates:", f"  path: [./{TEMPLATES}]   # take it away for the built-in ones, which tell more", ""]


def _found(data: Any, name: str) -> Mapping[str, Any] | None:
    """The first mapping of that name, those nearer to the top first."""
    waiting = deque([data])
    while waiting:
        node = waiting.popleft()
        if isinstance(node, Mapping):
            section = _get(node, name)
            if isinstance(section, Mapping):
                return section
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return None


def _get(section: Mapping[str, Any], name: str) -> Any:
    return next((value for key, value in section.items() if str(key).lower() == name.lower()), None)


def _section(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = _get(section, name)
    return value if isinstance(value, Mapping) else {}


def _text(section: Mapping[str, Any], name: str) -> str:
    value = _get(section, name)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _texts(section: Mapping[str, Any], name: str) -> list[str]:
    value = _get(section, name)
    return [str(part) for part in value] if isinstance(value, list) else [value] if isinstance(value, str) else []


def _true(section: Mapping[str, Any], name: str) -> bool:
    return str(_get(section, name)).lower() == "true"


def _whence(place: str) -> str:
    """Where flyteadmin has a secret from: the name of a file, a variable or a Kubernetes secret."""
    return f" (flyteadmin has it from {place})" if place else ""


def _printable(line: str) -> str:
    """Fit for a comment: what is in flyteadmin's configuration must not end it."""
    return "".join(character if character.isprintable() else " " for character in line)


def _one_line(text: str) -> str:
    return " ".join(text.split())
