"""Mistakes in settings: each is one sentence with its place and key, and no secret, found without any connection."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from channels.common.secret import reveal
from dispatcher.config.settings import load
from dispatcher.errors import InvalidSettings
from dispatcher.runtime.preflight import problems_of

BASE = {"http": "http: {}", "channels": "channels: {webhook: {}}"}
TOKEN = "long-enough-a-token"
AT = "@"
"""A secret scanner would take a whole URL with a login for a secret."""
MAIL = "channels: {email: {host: relay, from: a@example.com, %s}}"
FILES = {
    "bom": b"\xef\xbb\xbfxoxb-t\n",
    "utf16": "xoxb-hidden".encode("utf-16"),
    "utf16-without-bom": "xoxb-hidden".encode("utf-16-le"),
    "latin1": "pässword-hidden".encode("latin-1"),
    "empty": b" \n",
    "large": b"x" * 70_000,
    "lines": b"xoxb-hidden\nmore",
    "dash": "xoxb\u2014hidden-and-long".encode(),
    "short": b"hidden",
    "pem": b"-----BEGIN CERTIFICATE-----\nhidden\n-----END CERTIFICATE-----\n",
}


def found(folder: Path, text: str) -> list[str]:
    """The problems that `check` and `serve` report. Sections that the text does not give are valid."""
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    file = folder / "s.yaml"
    file.write_text("\n".join([*(line for key, line in BASE.items() if f"{key}:" not in text), text]))
    try:
        problems = problems_of(load(file))
    except InvalidSettings as error:
        problems = str(error).splitlines()
    return [problem.replace(f"{folder}/", "") for problem in problems]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "channels: {slack: {token: t, recipients: {2024: C01234567}}}",
            "s.yaml:2: broken YAML: channels.slack.recipients",
        ),
        (
            "channels: {slack: {token: t, recipients: {x: nonsense}}}",
            "s.yaml:2: channels.slack.recipients: x: neither a #",
        ),
        (
            "templates: {timezone: Europe/Berlim}",
            "s.yaml:3: templates.timezone: no such time zone; did you mean Europe/Berlin?",
        ),
        ("log: json\nlog: auto", "s.yaml:4: broken YAML: the key 'log' is there twice"),
        ("http: {listen: '127.0.0.1:99999'}", "s.yaml:2: http.listen: no such port: ports are 0 to 65535"),
        ("http: {listen: '::1:8080'}", "http.listen: write HOST:PORT, and [HOST]:PORT for an IPv6 address"),
        ("http: {listen: 8080}", "http.listen: a number where text is expected: quote it"),
        ("http: {listen: 010}", "http.listen: some YAML readers take this for text, others do not: quote it"),
        ("http: {listen: 'a b:80'}", "http.listen: not a host"),
        ("http: {token_file: utf16}", "http.token_file: utf16 can't be used: it is not UTF-8 text: save it as UTF-8"),
        ("http: {token_file: short}", "http: a token has 16 characters at least"),
        (
            f"http: {{token: {TOKEN}, trusted_proxies: ['*']}}",
            "http.trusted_proxies.0: write a proxy's address or network",
        ),
        (f"http: {{token: {TOKEN}, trusted_proxies: [10.0.0.1/8]}}", "http.trusted_proxies.0: write a proxy's address"),
        (f"http: {{token: {TOKEN}, trusted_proxies: ['::/0']}}", "http.trusted_proxies.0: this trusts every client"),
        (
            "http: {tls: {cert_file: pem, key_file: pem}}",
            "http.tls: cert_file and key_file are not a certificate and its key",
        ),
        (
            "http: {session_key_file: utf16}",
            "http.session_key_file: utf16 can't be used: it needs one key per line, in UTF-8",
        ),
        ("http: {rate: 5}", "http.rate: '5' is no rate: write 1/s"),
        (
            "channels: {slack: {token_file: utf16}}",
            "channels.slack.token_file: utf16 can't be used: it is not UTF-8 text",
        ),
        ("channels: {slack: {token_file: utf16-without-bom}}", "it is not UTF-8 text: save it as UTF-8"),
        ("channels: {slack: {token_file: empty}}", "channels.slack.token_file: empty can't be used: it is empty"),
        (
            "channels: {slack: {token_file: large}}",
            "channels.slack.token_file: large can't be used: it is larger than 64 KiB",
        ),
        ("channels: {slack: {token_file: lines}}", "channels.slack.token_file: it has characters that an HTTP header"),
        ("channels: {slack: {token_file: dash}}", "channels.slack.token_file: it has characters that an HTTP header"),
        ("channels: {slack: {token: ''}}", "channels.slack.token: it is empty"),
        (
            "channels: {slack: {token: t, api_url: 'https://x:99999/'}}",
            "channels.slack.api_url: write https://HOST/PATH; a po",
        ),
        (
            MAIL % "username: u, password_file: latin1",
            "channels.email.password_file: latin1 can't be used: it is not UTF-8",
        ),
        (MAIL % "port: 99999", "channels.email.port: must be less than or equal to 65535"),
        (MAIL % "ca_file: pem", "channels.email.ca_file: pem has no certificate that can be read: PEM is expected"),
        (MAIL % "cert_file: pem", "channels.email: cert_file and key_file are not a certificate and its key"),
        (MAIL % "retry: {initial: 0s}", "channels.email.retry.initial: must be greater than 0 seconds"),
        (MAIL % "retry: {initial: 20m}", "channels.email.retry: initial is longer than ceiling, the maximum back-off"),
        (
            MAIL % "retry: {deadline: 9999999999d}",
            "channels.email.retry.deadline: '9999999999d' is too long: 36500d is the",
        ),
        (
            MAIL % "fallback_recipients: [oncal]" + "\ncontacts: {on-call: {email: [a@example.com]}}",
            "s.yaml:2: channels.email.fallback_recipients: there is no contact 'oncal': did you mean on-call?",
        ),
        (
            "channels: {email: {host: 'relay:25', from: a@example.com}}",
            "channels.email.host: not a host: write a name or an",
        ),
        ("channels: {pagerduty: {events_url: 'https://['}}", "channels.pagerduty.events_url: write https://HOST/PATH"),
        (
            "channels: {pagerduty: {services: {a: {routing_key_file: dash}}}}",
            "services.a.routing_key_file: it has characters",
        ),
        (
            "channels: {teams: {targets: {a: {url: nonsense}}}}",
            "channels.teams.targets.a: url: write https://HOST/PATH",
        ),
        (
            "channels: {teams: {targets: {a: {url: 'http://x.example.com/hidden'}}}}",
            "channels.teams: targets.a: the URL is not",
        ),
        (
            "channels: {webhook: {targets: {a: {url: 'https://10.0.0.1/hidden'}}}}",
            "targets.a: the URL leads to a private",
        ),
        (
            "channels: {webhook: {targets: {a: {url: 'https://x', secret: whsec_hidden!}}}}",
            "targets.a: what follows whsec_ in",
        ),
        *(
            (f"channels: {{webhook: {{allow_hosts: ['{host}']}}}}", f"channels.webhook.allow_hosts.0: {words}")
            for host, words in {
                "https://hooks.example.com": "not a host",
                "*.example.com/path": "not a host",
                "user@hooks.example.com": "not a host",
                "10.0.0.0/8": "not a host",
                "hooks.example.com:443": "leave out the ports 443 and 80",
                "hooks.example.com.": "leave out the dot",
                "bücher.example": "a host name is written in ASCII",
                "2001:db8::1": "put an IPv6 address in brackets",
            }.items()
        ),
        (
            "channels: {webhook: {allow_hosts: [10.0.0.1]}}",
            "channels.webhook: allow_hosts: 10.0.0.1 is a private or reserved",
        ),
        ("channels: {webhook: {allow_hosts: [1.2.3]}}", "channels.webhook.allow_hosts.0: not a host"),
        ("channels: {webhook: }", "channels.webhook: nothing is in it: write {} for its defaults, or remove it"),
        ("channels: []", "s.yaml:2: channels: must be a mapping: option: value"),
        ("kafka: {bootstrap_servers: 'kafka:99999'}", "kafka.bootstrap_servers: no such port: ports are 1 to 65535"),
        ("kafka: {bootstrap_servers: 'kafka://a:9092'}", "kafka.bootstrap_servers: write HOST:PORT"),
        ("kafka: {bootstrap_servers: a, topics: ['a b']}", "kafka.topics.0: not a topic's name"),
        (
            "kafka: {bootstrap_servers: a, session_timeout: 2h}",
            "kafka.session_timeout: must be less than or equal",
        ),
        (
            "kafka: {bootstrap_servers: a, security_protocol: SSL, ca_file: pem}",
            "kafka.ca_file: pem has no certificate",
        ),
        (f"ledger: {{url: 'mysql://u:hidden{AT}h/d'}}", "s.yaml:3: ledger.url: no such kind of ledger, 'mysql'"),
        (
            f"ledger: {{url: 'postgresql://u:p{AT}hidden{AT}h/d'}}",
            "s.yaml:3: ledger.url: two @ are in it: write an @ in the password as",
        ),
        ("ledger: {url: 'postgresql://u@h:99999/d'}", "ledger.url: no such port: ports are 1 to 65535"),
        ("ledger: {url: 'sqlite:////no/such/x.db'}", "s.yaml:3: ledger.url: no such folder: /no/such"),
        ("ledger: {retention: 0s}", "ledger.retention: must be greater than or equal to 1 hour"),
        ("rules: {flyte_admin: {endpoint: 'a:99999'}}", "rules.flyte_admin.endpoint: 'a:99999' is no gRPC endpoint"),
        ("rules: {flyte_admin: {endpoint: a, ca_file: pem}}", "rules.flyte_admin.ca_file: pem has no certificate"),
        (
            "contacts:\n  ops@example.com:\n    teams: [dev]",
            "s.yaml:5: contacts.ops@example.com.teams: dev: no such channel is configured: add",
        ),
        (
            "contacts:\n  ml: {include: [on-cal]}\n  On-call: {include: [ml]}",
            "s.yaml:4: contacts.ml.include: there is no contact 'on-cal': did you mean On-call?",
        ),
        (
            "contacts:\n  a.b: {include: [c]}\n  c: {include: [d]}\n  d: {include: [c]}",
            "contacts.c.include: c includes d, d includes c: a contact can't include itself",
        ),
        (
            "contacts:\n  ml: {include: [ops], severity: fatal}",
            "s.yaml:4: contacts.ml.severity: must be 'critical', 'error', 'warning' or 'info'",
        ),
        (
            "contacts:\n  ml: {include: [ops], timezone: Berlin}",
            "s.yaml:4: contacts.ml.timezone: no such time zone; did",
        ),
        (
            "contacts:\n  ml: {include: [ops], templates: x, timezone: UTC}\n  ops: {include: [ml]}",
            "s.yaml:4: contacts.ml.templates: no such folder: x",
        ),
        ("templates: {path: [nowhere]}", "s.yaml:3: templates.path: no such folder: nowhere"),
        (
            "templates: {match: [{project: p, path: [nowhere]}]}",
            "s.yaml:3: templates.match.0.path: no such folder: nowhere",
        ),
        (
            "templates: {match: [{phases: [FAILED], path: [x]}]}",
            "s.yaml:3: templates.match.0.phases: unknown option; did you mean 'phase'?",
        ),
        (
            "templates:\n  match:\n    - path: [x]\n      not: {domian: d}",
            "s.yaml:6: templates.match.0.not.domian: unknown option; did you mean 'domain'?",
        ),
        (
            "templates:\n  match:\n    - path: [x]\n      error: {message: '(a'}",
            "s.yaml:6: templates.match.0.error.message: not a regular expression that RE2 can read: missing ): (a",
        ),
        (
            "channels: {pagerduty: {services: {}, severities: [{severity: info}]}}",
            "channels.pagerduty.severities.0: has no key",
        ),
        ("console_url: nonsense", "s.yaml:3: console_url: write https://HOST/PATH"),
        ("logs_url: 'https://x/{nonsense}'", "logs_url: only {project}, {domain} and {name} are replaced"),
        ("tracing: {endpoint: 'http://x:99999'}", "tracing.endpoint: write https://HOST/PATH; a port is 1 to 65535"),
        ("reconcile: {every: 1m}", "s.yaml: reconcile needs rules.flyte_admin"),
        ("channels: {slack: {token: hidden, claim_ahead: 5}}", "channels.slack: claim_ahead needs rate: none"),
        ("shutdown_timeout: 99999999d", "shutdown_timeout: '99999999d' is too long"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place_and_key(tmp_path: Path, text: str, problem: str) -> None:
    (sentence,) = found(tmp_path, text)
    assert sentence.startswith("s.yaml:")
    assert problem in sentence
    assert "hidden" not in sentence


@pytest.mark.parametrize(
    "text",
    [
        "channels: {slack: {token_file: bom}}",
        "http: {listen: '[::1]:0'}",
        f"http: {{token: {TOKEN}, trusted_proxies: '10.0.0.0/8, ::1'}}",
        "kafka: {bootstrap_servers: 'a, [::1]:9092, b:1'}",
        "channels: {webhook: {allow_hosts: ['*', '*.example.com', 'x.example.com:8443', '[2600::1]', '127.0.0.1:*']}}",
        "channels: {webhook: {allow_hosts: [10.0.0.1], allow_networks: [10.0.0.0/8]}}",
        f"ledger: {{url: 'postgresql://u:p%40ss{AT}h:5432/d'}}",
        "logs_url: 'https://logs.example.com/{project}/{domain}?q={name}'",
        "rules: {flyte_admin: {endpoint: 'dns:///flyte.example.com'}}",
    ],
)
def test_what_is_meant_is_accepted(tmp_path: Path, text: str) -> None:
    assert found(tmp_path, text) == []


def test_a_byte_order_mark_is_not_part_of_the_secret(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(FILES["bom"])
    (tmp_path / "s.yaml").write_text("channels: {slack: {token_file: token}}")
    file = load(tmp_path / "s.yaml").channel_sections["slack"].token_file
    assert reveal(None, file) == "xoxb-t"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        (
            {"CHANNEL__EMAIL__HOST": "relay"},
            "DISPATCHER__CHANNEL__EMAIL__HOST: no such setting; did you mean DISPATCHER__CHANN",
        ),
        ({"KAFAK__BOOTSTRAP_SERVERS": "a:1"}, "did you mean DISPATCHER__KAFKA__BOOTSTRAP_SERVERS?"),
        ({"LOG_LEVL": "debug"}, "DISPATCHER__LOG_LEVL: no such setting; did you mean DISPATCHER__LOG_LEVEL?"),
        ({"HTTP__LISTNE": "a:1"}, "DISPATCHER__HTTP__LISTNE: http.listne: unknown option; did you mean 'listen'?"),
        ({"HTTP__LISTEN": "a:99999"}, "DISPATCHER__HTTP__LISTEN: http.listen: no such port"),
        ({"HTTP": "{"}, "DISPATCHER__HTTP: broken JSON"),
        ({"HTTP": "[" * 100_000}, "DISPATCHER__HTTP: broken JSON"),
        (
            {"CHANNELS": '{"webhook": {}, "webhook": {}}'},
            "DISPATCHER__CHANNELS: broken JSON: the key 'webhook' is there twice",
        ),
        ({"HTTP__LISTEN__X": "y"}, "DISPATCHER__HTTP__LISTEN__X: http.listen: must be text"),
        ({"": "x"}, "DISPATCHER__: no such setting; there are kafka, http"),
        ({"HTTP_LISTEN": "a:1"}, "DISPATCHER__HTTP_LISTEN: no such setting; did you mean DISPATCHER__HTTP__LISTEN?"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], problem: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"DISPATCHER__{name}", value)
    assert problem in "\n".join(found(tmp_path, ""))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DISPATCHER_KAFKA__BOOTSTRAP_SERVERS", "DISPATCHER__KAFKA__BOOTSTRAP_SERVERS"),
        ("DISPATCHER_LEDGER_URL", "DISPATCHER__LEDGER__URL"),
        ("dispatcher_log_level", "DISPATCHER__LOG_LEVEL"),
    ],
)
def test_a_variable_that_lacks_an_underscore_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "x")
    assert found(tmp_path, "") == [f"{name.upper()}: no such setting; did you mean {meant}?"]


def test_a_variable_that_replaces_the_files_value_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER__HTTP__LISTEN__X", "y")
    assert found(tmp_path, "http: {listen: '127.0.0.1:80'}") == [
        "DISPATCHER__HTTP__LISTEN__X: http.listen: must be text"
    ]


def test_variables_that_kubernetes_sets_for_a_service_named_dispatcher_are_no_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPATCHER_SERVICE_HOST", "10.0.0.1")
    for name in ("PORT", "PORT_8080_TCP", "PORT_8080_TCP_ADDR", "HTTP_SERVICE_PORT", "SERVICE_PORT_HTTP", "HTTP_PORT"):
        monkeypatch.setenv(f"DISPATCHER_{name}", "tcp://10.0.0.1:8080")
    assert found(tmp_path, "") == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (
            "http: {}\nchannels: {}",
            ["s.yaml: nobody can be notified: add one of email, slack, pagerduty, teams, webhook to"],
        ),
        ("http: {}", ["s.yaml: nobody can be notified"]),
        ("log: auto", ["s.yaml: no events can arrive: add kafka or http", "s.yaml: nobody can be notified"]),
        (
            f"http: {{tokens: [{{name: a, token: {TOKEN}, scopes: read}}]}}\nchannels: {{webhook: {{}}}}",
            ["s.yaml: no events can arrive: add kafka, or a token with the scope publish to http.tokens"],
        ),
    ],
)
def test_settings_without_a_source_or_without_a_channel_are_refused(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    (tmp_path / "s.yaml").write_text(text)
    sentences = problems_of(load(tmp_path / "s.yaml"))
    assert len(sentences) == len(problems)
    assert all(f"{tmp_path}/{start}" in sentence for start, sentence in zip(problems, sentences, strict=True))


def test_a_certificate_needs_its_own_key_without_a_passphrase(tmp_path: Path) -> None:
    authority = trustme.CA()
    for name in ("one", "other"):
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.crt"))
    key = serialization.load_pem_private_key((tmp_path / "one.key").read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"open sesame")
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    (tmp_path / "locked.key").write_bytes(pem)
    text = "http: {{tls: {{cert_file: one.crt, key_file: {key}}}}}"
    assert found(tmp_path, text.format(key="one.key")) == []
    for wrong in ("other.key", "locked.key", "one.crt"):
        (sentence,) = found(tmp_path, text.format(key=wrong))
        assert "http.tls: cert_file and key_file are not a certificate and its key" in sentence
