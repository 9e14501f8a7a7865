"""Converts flyteadmin's configuration of notifications and events into settings of the dispatcher. Does no I/O.

The fields of the configuration are defined in flyteadmin's `runtime/interfaces/application_configuration.go`. Upper and
lower case do not matter in their names, because flyteadmin reads the fields with viper. Secrets are never copied;
instead, a comment says where flyteadmin reads each secret. Everything else that can't be converted becomes a TO DO
comment.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from channels.common.network import check_host
from dispatcher.intake.kafka.config import check_brokers, check_topic
from dispatcher.rendering.flyte_template import as_jinja, as_text

SECTIONS = ("notifications", "cloudEvents")
"""The names of the sections of flyteadmin's configuration that this module converts."""
TEMPLATES = "flyte-templates"
"""Name of the folder, next to the settings file, for the templates made from flyteadmin's mail subject and body."""
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_SENDGRID = ("smtp.sendgrid.net", "587", "apikey")
"""Host, port and user name of SendGrid's relay, from the page "Integrating with the SMTP API" of SendGrid's
documentation. The password is the API key."""
_NO_WRAP = 100_000
"""Line length for `yaml.safe_dump`. No line is that long, so no line is wrapped."""
_WORKFLOWS = {"all", "*", "workflow"}
_ADDRESS = r"[A-Za-z0-9._+-]{1,64}@[A-Za-z0-9.-]{1,253}"
_SENDER = re.compile(rf"{_ADDRESS}|[^<>]*<{_ADDRESS}>")
_IMPLICIT_TLS = "465"


@dataclass(slots=True)
class ImportedConfig:
    """The result of the import: the settings, the templates, and the tasks that a person must still do."""

    lines: list[str] = field(default_factory=list)
    """The lines of the settings file (YAML)."""
    templates: dict[str, str] = field(default_factory=dict)
    """Mapping from the name of a template file, in the folder `TEMPLATES`, to its content."""
    to_do: list[str] = field(default_factory=list)
    """The tasks that a person must do. Each task is also a comment in the settings file."""

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"

    def add_to_do(self, task: str, *lines: str, indent: int = 0) -> None:
        """Add a task as a TO DO comment. A person completes and uncomments the settings in `lines`."""
        self.to_do.append(task)
        self.lines += [f"{' ' * indent}# {_printable(line)}" for line in (f"TO DO: {task}", *lines)]

    def add_option(self, name: str, value: Any, *, indent: int = 2) -> None:
        """Add one option to the settings, with its value as YAML."""
        text = yaml.safe_dump({name: value}, allow_unicode=True, width=_NO_WRAP)
        self.lines += [f"{' ' * indent}{line}" for line in text.splitlines()]


TemplateProblems = Callable[[Mapping[str, str]], Sequence[str]]
"""A function that gets template files, by name, and returns what `dispatcher check` says about them."""


def import_config(data: Any, origin: str, *, template_problems: TemplateProblems | None) -> ImportedConfig | None:
    """Convert flyteadmin's configuration. Returns None if `data` contains none of `SECTIONS` at any depth.

    Args:
        data: flyteadmin's configuration, or documents that contain the configuration, such as Helm values.
        origin: the name of the converted file, for the first line of the settings.
        template_problems: finds problems in the template files that are made from the subject and body of flyteadmin's
            mails; a file with a problem is not made. None if no template files are wanted.

    """
    notifications = _find_section(data, "notifications")
    # The Helm chart flyte-core names this section cloud_events, flyteadmin names it cloudEvents.
    events = _find_section(data, "cloudEvents") or _find_section(data, "cloud_events")
    if notifications is None and events is None:
        return None
    config = ImportedConfig(
        [f"# From {_printable(origin)}. Do each TO DO, then run: dispatcher check --live --config FILE", ""]
    )
    _events(config, events or {})
    config.lines.append("")
    config.add_to_do(
        "say where FlyteAdmin is, or give launch plan files: the rules are there",
        "rules:",
        '  flyte_admin: {endpoint: "flyteadmin.flyte.svc.cluster.local:81", insecure: true}',
    )
    config.lines.append("")
    if notifications is not None:
        emailer = _section(notifications, "emailer")
        _mail(config, notifications, emailer)
        config.lines.append("")
        _templates(config, emailer, template_problems)
        config.add_to_do(
            "once the dispatcher works, remove notifications from flyteadmin's configuration, or everyone gets every "
            "notification twice"
        )
    return config


def _events(config: ImportedConfig, events: Mapping[str, Any]) -> None:
    kind, kafka, publisher = _text(events, "type"), _section(events, "kafka"), _section(events, "eventsPublisher")
    brokers = _texts(kafka, "brokers")
    if not _true(events, "enable"):
        config.add_to_do("set cloudEvents.enable: true in flyteadmin's configuration")
    if kind.lower() != "kafka" or not _is_valid(check_brokers, ",".join(brokers)):
        config.add_to_do(
            f"Flyte's events go to {_one_line(kind) or 'nowhere'}: give cloudEvents type: kafka and kafka.brokers, each "
            "as HOST:PORT, and name them here",
            'kafka: {bootstrap_servers: "kafka:9092"}',
        )
        return
    v2 = _text(events, "cloudEventVersion").lower() == "v2"
    if not v2:
        config.add_to_do(
            "cloudEvents.cloudEventVersion is not v2: without FlyteAdmin, events don't name their launch plan"
        )
    elif not _true(publisher, "enrichAllWorkflowEventTypes"):
        config.add_to_do(
            "cloudEvents.eventsPublisher.enrichAllWorkflowEventTypes is not true: without FlyteAdmin, only successes "
            "name their launch plan"
        )
    types = {name.lower() for name in _texts(publisher, "eventTypes")}
    if not v2 and types and not types & _WORKFLOWS:  # v2 ignores eventTypes
        config.add_to_do("cloudEvents.eventsPublisher.eventTypes leaves workflows out: set it to [all]")
    topic = _text(publisher, "topicName")
    config.lines.append("kafka:")
    config.add_option("bootstrap_servers", ",".join(brokers))
    if _is_valid(check_topic, topic):
        config.add_option("topics", [topic])
    else:
        reason = "is not a topic's name" if topic else "is not set"
        config.add_to_do(f"cloudEvents.eventsPublisher.topicName {reason}: name the topic", "topics: []", indent=2)
    _kafka_security(config, _section(kafka, "saslConfig"), _section(kafka, "tlsConfig"))


def _kafka_security(config: ImportedConfig, sasl: Mapping[str, Any], tls: Mapping[str, Any]) -> None:
    encrypted = _true(tls, "enabled")
    if encrypted:
        config.add_option("security_protocol", "SSL")
        if _true(tls, "insecureSkipVerify"):
            config.add_to_do(
                "tlsConfig.insecureSkipVerify: give the broker's certificate authority instead",
                "ca_file: FILE",
                indent=2,
            )
        if certificate := _text(tls, "certPath"):
            config.add_to_do(
                "mount the client certificate and key that flyteadmin uses",
                f"cert_file: {json.dumps(certificate)}",
                f"key_file: {json.dumps(_text(tls, 'keyPath'))}",
                indent=2,
            )
    if not _true(sasl, "enabled"):
        return
    mechanism = _text(sasl, "mechanism") or "PLAIN"
    if mechanism not in _MECHANISMS:
        config.add_to_do(f"saslConfig.mechanism {mechanism}: there are {', '.join(_MECHANISMS)}", indent=2)
        mechanism = "PLAIN"
    if mechanism != "PLAIN":
        config.add_to_do(
            f"saslConfig.mechanism {mechanism}: flyteadmin 1.16 ends at its start with it; give flyteadmin a login with "
            "PLAIN",
            indent=2,
        )
    config.add_to_do(
        "the login's password goes into a file, or into DISPATCHER__KAFKA__PASSWORD"
        f"{_where_from(_text(sasl, 'passwordPath'))}; "
        f"with it, {'replace security_protocol by' if encrypted else 'add'}:",
        f"security_protocol: {'SASL_SSL' if encrypted else 'SASL_PLAINTEXT'}",
        f"sasl_mechanism: {mechanism}",
        f"username: {json.dumps(_text(sasl, 'user'))}",
        "password_file: FILE",
        indent=2,
    )


def _mail(config: ImportedConfig, notifications: Mapping[str, Any], emailer: Mapping[str, Any]) -> None:
    server = _section(emailer, "emailServerConfig")
    service = _text(server, "serviceName").lower()
    host, port, user = (_text(server, name) for name in ("smtpServer", "smtpPort", "smtpUsername"))
    secret = _text(server, "smtpPasswordSecretName")
    if service == "sendgrid":
        host, port, user = _SENDGRID
        secret = _text(server, "apiKeyFilePath") or _text(server, "apiKeyEnvVar")
    elif not _is_valid(check_host, host):
        _no_relay(config, notifications, service)
        return
    config.lines += ["channels:", "  email:"]
    config.add_option("host", host, indent=4)
    if port.isdigit() and 0 < int(port) <= 65535:
        config.add_option("port", int(port), indent=4)
    config.add_option("security", "tls" if port == _IMPLICIT_TLS else "starttls", indent=4)
    if not user:
        config.add_to_do(
            "flyteadmin also works with a relay without STARTTLS; if this is one:", "security: none", indent=4
        )
    if _true(server, "smtpSkipTLSVerify"):
        config.add_to_do("smtpSkipTLSVerify: give the relay's certificate authority instead", "ca_file: FILE", indent=4)
    if user:
        config.add_to_do(
            "the relay's password goes into a file, or into DISPATCHER__CHANNELS__EMAIL__PASSWORD"
            f"{_where_from(secret)}; with it, add:",
            f"username: {json.dumps(user)}",
            "password_file: FILE",
            indent=4,
        )
    _sender(config, _text(emailer, "sender"))


def _no_relay(config: ImportedConfig, notifications: Mapping[str, Any], service: str) -> None:
    region = _text(_section(notifications, "aws"), "region") or _text(notifications, "region")
    kind = service or _text(notifications, "type") or "nothing"
    if kind.lower() == "aws":
        task = "flyteadmin sends mail through AWS's own API (SES): create SMTP credentials there"
        host = f"email-smtp.{region or 'REGION'}.amazonaws.com"
    else:
        task = f"flyteadmin sends mail through {_one_line(kind)}, which names no relay: name one"
        host = "relay.example.com"
    config.add_to_do(
        task,
        "channels:",
        f"  email: {{host: {host}, username: USER, password_file: FILE, from: flyte@example.com}}",
    )


def _sender(config: ImportedConfig, sender: str) -> None:
    if sender.isprintable() and _SENDER.fullmatch(sender.strip()):
        config.add_option("from", sender, indent=4)
        return
    why = "has variables, and only an address can be converted" if "{{" in sender else "is not a mail address"
    config.add_to_do(f"emailer.sender {why}: change this address", indent=4)
    config.add_option("from", "flyte@example.com", indent=4)


def _templates(config: ImportedConfig, emailer: Mapping[str, Any], template_problems: TemplateProblems | None) -> None:
    """Convert the subject and body of flyteadmin's mails to custom templates."""
    subject, body = _one_line(_text(emailer, "subject")), _text(emailer, "body").strip()
    if not subject and not body:
        return
    if template_problems is None:
        config.add_to_do("emailer.subject and body become template files next to the settings: give --output FILE")
        return
    made = {"subject": {"email/subject.txt.j2": as_jinja(subject)}} if subject else {}
    if body:
        made["body"] = {"email/html.html.j2": as_jinja(body)}
        if text := as_text(body):
            made["body"]["email/text.txt.j2"] = as_jinja(text)
    for name, files in made.items():
        if problems := template_problems(files):
            config.add_to_do(f"emailer.{name} can't be a template, so the built-in one is used: {problems[0]}")
        else:
            config.templates |= files
    if not config.templates:
        return
    config.lines += [
        "templates:",
        f"  path: [./{TEMPLATES}]   # remove this line for the built-in templates, which show more",
        "",
    ]


def _is_valid(check: Callable[[str], str], text: str) -> bool:
    try:
        check(text)
    except ValueError:
        return False
    return True


def _find_section(data: Any, name: str) -> Mapping[str, Any] | None:
    """Return the section named `name` that is nested least deeply in `data`; None if there is no such section."""
    queue = deque([data])
    while queue:
        node = queue.popleft()
        if isinstance(node, Mapping):
            section = _get(node, name)
            if isinstance(section, Mapping):
                return section
            queue.extend(node.values())
        elif isinstance(node, list):
            queue.extend(node)
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


def _where_from(place: str) -> str:
    """Return a remark on where flyteadmin reads a secret: a file, an environment variable or a Kubernetes secret."""
    return f" (flyteadmin has it from {place})" if place else ""


def _printable(line: str) -> str:
    """Replace control characters and line breaks with spaces, because a line break would end the YAML comment."""
    return "".join(character if character.isprintable() else " " for character in line)


def _one_line(text: str) -> str:
    return " ".join(text.split())
