"""`dispatcher import-flyteadmin`: the generated settings pass `dispatcher check` and contain no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from channels.registry import CHANNEL_TYPES
from dispatcher.config.import_flyteadmin import ImportedConfig, import_config
from dispatcher.config.settings import load
from dispatcher.model.event import ExecutionError
from dispatcher.model.phase import Phase
from dispatcher.rendering.renderer import Renderer
from tests.support.builders import a_launch_plan, an_event
from tests.support.service import command

SECRET = "hunter2-hunter2"
BODY = (
    "<p>{{ project }}/{{domain}} {{ name }} {{ phase }}.{{ error }}</p>\n"
    "{% if x %}{{ unknown }}{# no comment #} <b>{{{ launch_plan.name }}}</b> {{ launch_plan.version }} {{ workflow.name }}{"
)
FULL: dict[str, Any] = {
    "flyteadmin": {"roleNameKey": "iam.amazonaws.com/role"},
    "notifications": {
        "type": "smtp",
        "emailer": {
            "subject": 'Execution "{{ name }}" has {{ phase }} in "{{ domain }}".',
            "sender": "Flyte <flyte@example.com>",
            "body": BODY,
            "emailServerConfig": {
                "serviceName": "smtp",
                "smtpServer": "relay.example.com",
                "smtpPort": "465",
                "smtpUsername": "flyte",
                "smtpPasswordSecretName": "smtp_password",
            },
        },
    },
    "cloudEvents": {
        "enable": True,
        "type": "kafka",
        "cloudEventVersion": "v2",
        "kafka": {
            "version": "3.7.0",
            "brokers": ["a:9092", "b:9092"],
            "saslConfig": {"enabled": True, "user": "flyteadmin", "password": SECRET, "mechanism": "SCRAM-SHA-512"},
            "tlsConfig": {"enabled": True, "insecureSkipVerify": True, "certPath": "/c.pem", "keyPath": "/k.pem"},
        },
        "eventsPublisher": {"topicName": "flyte-events", "eventTypes": ["all"]},
    },
}


async def imported(folder: Path, given: Any, *, output: bool = True) -> tuple[Path, str, str]:
    """The path of the settings, and the command's standard output and error."""
    source, target = folder / "flyteadmin.yaml", folder / "generated" / "dispatcher.yaml"
    source.write_text(yaml.safe_dump(given))
    status, out, err = await command("import-flyteadmin", str(source), *(["--output", str(target)] if output else []))
    assert status == 0, err
    return target, out, err


async def assert_check_passes(file: Path) -> None:
    status, _, err = await command("check", "--config", str(file))
    assert (status, err) == (0, "")


async def test_every_option_with_a_counterpart_is_converted(tmp_path: Path) -> None:
    file, _, err = await imported(tmp_path, FULL)
    await assert_check_passes(file)
    loaded = load(file)
    assert loaded.kafka is not None
    assert (loaded.kafka.bootstrap_servers, loaded.kafka.topics) == ("a:9092,b:9092", ("flyte-events",))
    assert loaded.kafka.security_protocol == "SSL"
    mail = loaded.channel_sections["email"]
    assert (mail.host, mail.port, mail.security) == ("relay.example.com", 465, "tls")
    assert mail.sender == "Flyte <flyte@example.com>"
    text = file.read_text()
    for part in (
        'username: "flyte"',
        "flyteadmin has it from smtp_password",
        "security_protocol: SASL_SSL",
        "sasl_mechanism: SCRAM-SHA-512",
        "flyteadmin 1.16 ends at its start with it",
        "enrichAllWorkflowEventTypes is not true",
        'username: "flyteadmin"',
        "tlsConfig.insecureSkipVerify",
        'cert_file: "/c.pem"',
        "say where FlyteAdmin is",
    ):
        assert part in text, part
    assert err.count("\n  ") == text.count("TO DO: ")
    assert SECRET not in text + err


async def test_the_loadedare_complete_once_the_passwords_are_added(tmp_path: Path) -> None:
    file, _, _ = await imported(tmp_path, FULL)
    (file.parent / "FILE").write_text(SECRET)
    lines = file.read_text().replace("security_protocol: SSL", "sasl: x").splitlines()
    wanted = ("security_protocol:", "sasl_mechanism:", "username:", "password_file:")
    done = [
        line.replace("# ", "", 1) if line.strip().startswith(tuple(f"# {name}" for name in wanted)) else line
        for line in lines
    ]
    file.write_text("\n".join(line for line in done if "sasl: x" not in line))
    await assert_check_passes(file)
    loaded = load(file)
    assert loaded.kafka is not None
    assert (loaded.kafka.security_protocol, loaded.kafka.username) == ("SASL_SSL", "flyteadmin")
    assert loaded.channel_sections["email"].username == "flyte"


@pytest.mark.parametrize(
    ("emailer", "template", "task"),
    [
        ({"subject": "{{ workflow.name }}", "body": "<p>{{ name }}</p>"}, "html.html.j2", "emailer.subject can't be a"),
        ({"subject": "{{ name }}", "body": "{{ error }}"}, "subject.txt.j2", "emailer.body can't be a template"),
        (
            {"subject": "{{ name }}", "body": "<p>" + "x" * 200_000},
            "subject.txt.j2",
            "emailer.body can't be a template",
        ),
    ],
)
async def test_a_subject_or_body_that_check_would_refuse_becomes_a_task(
    tmp_path: Path, emailer: dict[str, str], template: str, task: str
) -> None:
    server = {"smtpServer": "relay.example.com"}
    notifications = {"emailer": {"sender": "a@example.com", "emailServerConfig": server, **emailer}}
    file, _, err = await imported(tmp_path, {**FULL, "notifications": notifications})
    assert task in err
    assert [one.name for one in (file.parent / "flyte-templates" / "email").iterdir() if one.name == template] == [
        template
    ]
    await assert_check_passes(file)


async def test_subject_and_body_become_templates_with_the_same_text(tmp_path: Path) -> None:
    file, _, _ = await imported(tmp_path, FULL)
    renderer = Renderer(CHANNEL_TYPES, load(file).templates.path)
    boom = ExecutionError(code="USER:Unknown", message="ValueError: <lr> & {{ name }}", kind="USER")
    failed = renderer.draft("email", an_event(name="n1", launch_plan=a_launch_plan(), error=boom))
    assert failed["subject"] == 'Execution "n1" has failed in "production".'
    assert failed["html"] == (
        "<p>flytesnacks/production n1 failed. The execution failed with error: [ValueError: &lt;lr&gt; &amp; {{ name }}].</p>\n"
        "{% if x %}{{ unknown }}{# no comment #} <b>{train.daily}</b> v1.4.2 {"
    )
    assert failed["text"].startswith(
        "flytesnacks/production n1 failed. The execution failed with error: [ValueError: <lr> & {{ name }}]."
    )
    aborted = renderer.draft("email", an_event(Phase.ABORTED, name="n1", launch_plan=a_launch_plan(), error=boom))
    assert aborted["html"].startswith("<p>flytesnacks/production n1 aborted.</p>")
    succeeded = renderer.draft("email", an_event(Phase.SUCCEEDED, name="n1", launch_plan=a_launch_plan()))
    assert succeeded["html"].startswith("<p>flytesnacks/production n1 succeeded.</p>")


async def test_printed_settings_pass_the_check_and_say_what_templates_need(tmp_path: Path) -> None:
    _, out, err = await imported(tmp_path, FULL, output=False)
    assert (err, "give --output FILE" in out, "flyte-templates" in out) == ("", True, False)
    file = tmp_path / "printed.yaml"
    file.write_text(out)
    await assert_check_passes(file)


async def test_existing_files_are_overwritten_only_with_force(tmp_path: Path) -> None:
    file, _, _ = await imported(tmp_path, FULL)
    file.write_text("mine")
    again = ("import-flyteadmin", str(tmp_path / "flyteadmin.yaml"), "--output", str(file))
    status, _, err = await command(*again)
    assert (status, f"{file}" in err, file.read_text()) == (1, True, "mine")
    assert (await command(*again, "--force"))[0] == 0
    await assert_check_passes(file)


@pytest.mark.parametrize(
    ("given", "expected", "message"),
    [
        ("a: [", 1, "broken YAML"),
        ("admin: {endpoint: x}", 1, "neither of flyteadmin's sections notifications and cloudEvents"),
        (None, 2, "can't be read"),
    ],
)
async def test_a_file_without_flyteadmins_sections_gives_one_message(
    tmp_path: Path, given: str | None, expected: int, message: str
) -> None:
    source = tmp_path / "flyteadmin.yaml"
    if given is not None:
        source.write_text(given)
    status, out, err = await command("import-flyteadmin", str(source))
    assert (status, out, message in err, "Traceback" in err) == (expected, "", True, False)


def import_from(given: Any) -> ImportedConfig:
    config = import_config(given, "test", template_problems=lambda _: [])
    assert config is not None
    return config


def test_sendgrid_is_converted_to_its_relay() -> None:
    server = {"serviceName": "sendgrid", "apiKeyEnvVar": "SENDGRID_API_KEY"}
    text = import_from({"notifications": {"emailer": {"sender": "a@example.com", "emailServerConfig": server}}}).text
    assert yaml.safe_load(text)["channels"]["email"] == {
        "host": "smtp.sendgrid.net",
        "port": 587,
        "security": "starttls",
        "from": "a@example.com",
    }
    assert 'username: "apikey"' in text
    assert "flyteadmin has it from SENDGRID_API_KEY" in text


@pytest.mark.parametrize(
    ("sender", "why"),
    [("{{ project }}@example.com", "has variables"), ("flyte", "is not a mail address"), ("a[b@c,d", "is not a mail")],
)
def test_a_sender_that_is_not_an_address_becomes_a_to_do(sender: str, why: str) -> None:
    server = {"serviceName": "smtp", "smtpServer": "relay.example.com", "smtpPort": "25"}
    config = import_from({"notifications": {"emailer": {"sender": sender, "emailServerConfig": server}}})
    assert yaml.safe_load(config.text)["channels"]["email"]["from"] == "flyte@example.com"
    assert any(task.startswith(f"emailer.sender {why}") for task in config.to_do)
    assert "security: none" in config.text


def test_a_senders_name_may_contain_an_at_sign() -> None:
    server = {"serviceName": "smtp", "smtpServer": "relay.example.com", "smtpPort": "25"}
    sender = "Flyte @ Example <flyte@example.com>"
    config = import_from({"notifications": {"emailer": {"sender": sender, "emailServerConfig": server}}})
    assert yaml.safe_load(config.text)["channels"]["email"]["from"] == sender


def test_what_names_no_relay_is_left_to_a_person() -> None:
    aws = import_from(
        {"notifications": {"type": "aws", "aws": {"region": "eu-west-1"}, "emailer": {"sender": "a@b.c"}}}
    )
    assert "email-smtp.eu-west-1.amazonaws.com" in aws.text
    assert "channels" not in (yaml.safe_load(aws.text) or {})
    other = import_from({"notifications": {"type": "sandbox"}})
    assert "flyteadmin sends mail through sandbox, which names no relay" in other.text


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ({"enable": True, "type": "redis"}, "Flyte's events go to redis"),
        ({"enable": False, "type": "kafka", "kafka": {"brokers": ["a:1"]}}, "set cloudEvents.enable: true"),
        ({"enable": True, "type": "kafka", "kafka": {"brokers": ["a:1"]}}, "cloudEventVersion is not v2"),
        ({"type": "kafka", "kafka": {"brokers": ["a:1"]}}, "topicName is not set"),
        (
            {"type": "kafka", "kafka": {"brokers": ["a:1"]}, "eventsPublisher": {"eventTypes": ["node"]}},
            "leaves workflows out",
        ),
        ({"cloudEventVersion": "v2", "type": "kafka", "kafka": {"brokers": ["a:1"]}}, "only successes name"),
        (
            {"type": "kafka", "kafka": {"brokers": ["a:1"], "saslConfig": {"enabled": True, "mechanism": "GSSAPI"}}},
            "saslConfig.mechanism GSSAPI",
        ),
    ],
)
def test_event_settings_that_would_bring_no_events_become_a_to_do(events: dict[str, Any], text: str) -> None:
    assert any(text in task for task in import_from({"cloudEvents": events}).to_do)


def test_the_sections_are_found_inside_helm_values_in_any_case() -> None:
    inner = {"Notifications": FULL["notifications"], "cloudevents": FULL["cloudEvents"]}
    assert import_from({"configuration": {"inline": inner}}).text == import_from(FULL).text
    core = {
        "workflow_notifications": {"enabled": True, "config": {"notifications": FULL["notifications"]}},
        "cloud_events": FULL["cloudEvents"],
    }
    assert import_from(core).text == import_from(FULL).text


async def test_a_config_map_is_read(tmp_path: Path) -> None:
    mounted = {f"{name}.yaml": yaml.safe_dump({name: FULL[name]}) for name in ("notifications", "cloudEvents")}
    file, _, _ = await imported(tmp_path, {"kind": "ConfigMap", "data": {**mounted, "empty.yaml": ""}})
    assert load(file).kafka is not None
    assert "email" in load(file).channel_sections
    await assert_check_passes(file)


texts = st.text(max_size=20) | st.sampled_from(
    [
        "kafka",
        "smtp",
        "sendgrid",
        "465",
        "0",
        "a\n  b: c",
        "x: {",
        "\x7f\u2028#",
        "{{ name }}",
        "{%",
        "a@b",
        "A b <a@b c>",
    ]
)
leaves = st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2)


def a_section(*names: str, **inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {}, optional={**dict.fromkeys(names, leaves), **{k: v | leaves for k, v in inner.items()}}
    )


mailings = a_section(
    "type",
    "region",
    emailer=a_section(
        "sender",
        "subject",
        "body",
        emailServerConfig=a_section("serviceName", "smtpServer", "smtpPort", "smtpUsername", "smtpPasswordSecretName"),
    ),
)
publishing = a_section("enable", "cloudEventVersion", eventsPublisher=a_section("topicName", "eventTypes"))


@settings(deadline=None, max_examples=100)
@given(mailings, publishing, leaves)
@example({"emailer": {"subject": "\n", "body": " "}}, {}, None)
def test_any_configuration_gives_settings_that_load_and_contain_no_password(
    tmp_path_factory: pytest.TempPathFactory, notifications: dict[str, Any], events: dict[str, Any], name: Any
) -> None:
    sasl = {"enabled": True, "user": name, "mechanism": name, "password": SECRET}
    tls = {"enabled": True, "certPath": name}
    events = {**events, "type": "kafka", "kafka": {"brokers": ["a:1"], "saslConfig": sasl, "tlsConfig": tls}}
    config = import_from({"notifications": notifications, "cloudEvents": events})
    folder = tmp_path_factory.mktemp("generated")
    for file, content in config.templates.items():
        (folder / "flyte-templates" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "flyte-templates" / file).write_text(content)
    (folder / "dispatcher.yaml").write_text(config.text)
    loaded = load(folder / "dispatcher.yaml")
    assert loaded.kafka is not None
    assert SECRET not in config.text
    if config.templates:  # otherwise only the built-in templates would be compiled again
        assert Renderer(CHANNEL_TYPES, loaded.templates.path).check() == []
