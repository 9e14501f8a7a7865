"""`dispatcher import`: flyteadmin's configuration becomes ours, checks out, and holds no secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatcher.config.import_flyteadmin import Inherited, inherit
from dispatcher.config.settings import load
from dispatcher.model.event import ExecutionError
from dispatcher.model.phase import Phase
from dispatcher.rendering import Renderer
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
    """The settings that were written, or printed; what was said."""
    source, target = folder / "flyteadmin.yaml", folder / "made" / "dispatcher.yaml"
    source.write_text(yaml.safe_dump(given))
    status, out, err = await command("import", str(source), *(["--output", str(target)] if output else []))
    assert status == 0, err
    return target, out, err


async def checks_out(file: Path) -> None:
    status, _, err = await command("check", "--config", str(file))
    assert (status, err) == (0, "")


async def test_everything_that_has_a_place_here_is_taken_over(tmp_path: Path) -> None:
    file, _, said = await imported(tmp_path, FULL)
    await checks_out(file)
    made = load(file)
    assert made.kafka is not None
    assert (made.kafka.bootstrap_servers, made.kafka.topics) == ("a:9092,b:9092", ("flyte-events",))
    assert made.kafka.security_protocol == "SSL"
    mail = made.channel_sections["email"]
    assert (mail.host, mail.port, mail.security) == ("relay.example.com", 465, "tls")
    assert mail.sender == "Flyte <flyte@example.com>"
    text = file.read_text()
    for left in (
        'username: "flyte"',
        "flyteadmin has it from smtp_password",
        "security_protocol: SASL_SSL",
        "sasl_mechanism: SCRAM-SHA-512",
        'username: "flyteadmin"',
        "tlsConfig.insecureSkipVerify",
        'cert_file: "/c.pem"',
        "say where FlyteAdmin is",
    ):
        assert left in text, left
    assert said.count("\n  ") == text.count("TO DO: ")
    assert SECRET not in text + said


async def test_the_settings_are_whole_once_the_logins_are_given(tmp_path: Path) -> None:
    file, _, _ = await imported(tmp_path, FULL)
    (file.parent / "FILE").write_text(SECRET)
    lines = file.read_text().replace("security_protocol: SSL", "sasl: x").splitlines()
    wanted = ("security_protocol:", "sasl_mechanism:", "username:", "password_file:")
    done = [
        line.replace("# ", "", 1) if line.strip().startswith(tuple(f"# {name}" for name in wanted)) else line
        for line in lines
    ]
    file.write_text("\n".join(line for line in done if "sasl: x" not in line))
    await checks_out(file)
    made = load(file)
    assert made.kafka is not None
    assert (made.kafka.security_protocol, made.kafka.username) == ("SASL_SSL", "flyteadmin")
    assert made.channel_sections["email"].username == "flyte"


async def test_subject_and_body_are_templates_that_say_what_flyte_said(tmp_path: Path) -> None:
    file, _, _ = await imported(tmp_path, FULL)
    renderer = Renderer(load(file).templates.path)
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
    succeeded = renderer.draft("email", an_event(Phase.SUCCEEDED, name="n1", launch_plan=a_launch_plan()))
    assert succeeded["html"].startswith("<p>flytesnacks/production n1 succeeded.</p>")


async def test_printed_settings_check_out_too_and_say_what_templates_need(tmp_path: Path) -> None:
    _, out, err = await imported(tmp_path, FULL, output=False)
    assert (err, "give --output FILE" in out, "flyte-templates" in out) == ("", True, False)
    file = tmp_path / "printed.yaml"
    file.write_text(out)
    await checks_out(file)


async def test_what_is_there_is_not_written_over_unless_forced(tmp_path: Path) -> None:
    file, _, _ = await imported(tmp_path, FULL)
    file.write_text("mine")
    again = ("import", str(tmp_path / "flyteadmin.yaml"), "--output", str(file))
    status, _, err = await command(*again)
    assert (status, f"{file}" in err, file.read_text()) == (1, True, "mine")
    assert (await command(*again, "--force"))[0] == 0
    await checks_out(file)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("a: [", "broken YAML"),
        ("admin: {endpoint: x}", "neither of flyteadmin's sections notifications and cloudEvents"),
        (None, "can't be read"),
    ],
)
async def test_a_file_that_is_something_else_is_one_message(tmp_path: Path, given: str | None, words: str) -> None:
    source = tmp_path / "flyteadmin.yaml"
    if given is not None:
        source.write_text(given)
    status, out, err = await command("import", str(source))
    assert (status, out, words in err, "Traceback" in err) == (1, "", True, False)


def made_of(given: Any) -> Inherited:
    made = inherit(given, "test", with_templates=True)
    assert made is not None
    return made


def test_sendgrid_becomes_its_relay() -> None:
    server = {"serviceName": "sendgrid", "apiKeyEnvVar": "SENDGRID_API_KEY"}
    text = made_of({"notifications": {"emailer": {"sender": "a@example.com", "emailServerConfig": server}}}).text
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
def test_a_sender_that_is_no_address_is_left_to_a_person(sender: str, why: str) -> None:
    server = {"serviceName": "smtp", "smtpServer": "relay.example.com", "smtpPort": "25"}
    made = made_of({"notifications": {"emailer": {"sender": sender, "emailServerConfig": server}}})
    assert yaml.safe_load(made.text)["channels"]["email"]["from"] == "flyte@example.com"
    assert any(left.startswith(f"emailer.sender {why}") for left in made.left)
    assert "security: none" in made.text


def test_what_names_no_relay_is_left_to_a_person() -> None:
    aws = made_of({"notifications": {"type": "aws", "aws": {"region": "eu-west-1"}, "emailer": {"sender": "a@b.c"}}})
    assert "email-smtp.eu-west-1.amazonaws.com" in aws.text
    assert "channels" not in (yaml.safe_load(aws.text) or {})
    other = made_of({"notifications": {"type": "sandbox"}})
    assert "flyteadmin mails by sandbox, which names no relay" in other.text


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ({"enable": True, "type": "redis"}, "Flyte's events go to redis"),
        ({"enable": False, "type": "kafka", "kafka": {"brokers": ["a:1"]}}, "set cloudEvents.enable: true"),
        ({"enable": True, "type": "kafka", "kafka": {"brokers": ["a:1"]}}, "cloudEventVersion is not v2"),
        ({"type": "kafka", "kafka": {"brokers": ["a:1"]}}, "topicName is not set"),
        (
            {"type": "kafka", "kafka": {"brokers": ["a:1"]}, "eventsPublisher": {"eventTypes": ["node"]}},
            "leaves workflows out",
        ),
        (
            {"type": "kafka", "kafka": {"brokers": ["a:1"], "saslConfig": {"enabled": True, "mechanism": "GSSAPI"}}},
            "saslConfig.mechanism GSSAPI",
        ),
    ],
)
def test_events_that_would_not_come_are_told(events: dict[str, Any], words: str) -> None:
    assert any(words in left for left in made_of({"cloudEvents": events}).left)


def test_the_sections_are_found_inside_helms_values_whatever_their_case() -> None:
    inner = {"Notifications": FULL["notifications"], "cloudevents": FULL["cloudEvents"]}
    assert made_of({"configuration": {"inline": inner}}).text == made_of(FULL).text
    core = {
        "workflow_notifications": {"enabled": True, "config": {"notifications": FULL["notifications"]}},
        "cloud_events": FULL["cloudEvents"],
    }
    assert made_of(core).text == made_of(FULL).text


async def test_a_config_map_is_looked_into(tmp_path: Path) -> None:
    mounted = {f"{name}.yaml": yaml.safe_dump({name: FULL[name]}) for name in ("notifications", "cloudEvents")}
    file, _, _ = await imported(tmp_path, {"kind": "ConfigMap", "data": {**mounted, "empty.yaml": ""}})
    assert load(file).kafka is not None
    assert "email" in load(file).channel_sections
    await checks_out(file)


words = st.text(max_size=20) | st.sampled_from(
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
leaves = st.none() | st.booleans() | st.integers() | words | st.lists(words, max_size=2)


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
def test_whatever_it_says_the_result_can_be_read_and_gives_no_password_away(
    tmp_path_factory: pytest.TempPathFactory, notifications: dict[str, Any], events: dict[str, Any], name: Any
) -> None:
    sasl = {"enabled": True, "user": name, "mechanism": name, "password": SECRET}
    tls = {"enabled": True, "certPath": name}
    events = {**events, "type": "kafka", "kafka": {"brokers": ["a:1"], "saslConfig": sasl, "tlsConfig": tls}}
    made = made_of({"notifications": notifications, "cloudEvents": events})
    folder = tmp_path_factory.mktemp("made")
    for file, content in made.templates.items():
        (folder / "flyte-templates" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "flyte-templates" / file).write_text(content)
    (folder / "dispatcher.yaml").write_text(made.text)
    read = load(folder / "dispatcher.yaml")
    assert read.kafka is not None
    assert SECRET not in made.text
    if made.templates:  # without, it is the built-in ones that would be compiled once more
        assert Renderer(read.templates.path).check() == []
