"""Settings: defaults, the environment, readable messages with their place, and secrets that are never shown."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from dispatcher.config.settings import load
from dispatcher.errors import InvalidSettings, SettingsError
from dispatcher.model.hold import DigestOptions

A_TOKEN = "{name: a, token: long-enough-a-token, scopes: publish}"
EMAIL = "channels:\n  email: {host: relay, from: flyte@example.com}\n"


def written(folder: Path, text: str) -> Path:
    file = folder / "dispatcher.yaml"
    file.write_text(text)
    return file


def test_absent_sections_are_switched_off_and_absent_options_have_defaults(tmp_path: Path) -> None:
    settings = load(written(tmp_path, ""))
    assert (settings.kafka, settings.http, dict(settings.channel_sections)) == (None, None, {})
    settings = load(written(tmp_path, f"kafka: {{bootstrap_servers: 'a:1'}}\nhttp: {{}}\n{EMAIL}"))
    assert settings.kafka is not None
    assert (settings.kafka.topics, settings.kafka.group_id) == (("flyte-cloudevents",), "notification-dispatcher")
    assert settings.http is not None
    assert settings.http.address == ("127.0.0.1", 8080)
    email = settings.channel_sections["email"]
    assert (email.security, email.connections, email.retry.deadline) == ("starttls", 5, timedelta(hours=24))


def test_the_environment_takes_precedence_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_CONFIG", str(written(tmp_path, f"kafka: {{bootstrap_servers: 'file:1'}}\n{EMAIL}")))
    monkeypatch.setenv("DISPATCHER__KAFKA__BOOTSTRAP_SERVERS", "env:1,env:2")
    monkeypatch.setenv("DISPATCHER__KAFKA__TOPICS", "a, b")
    monkeypatch.setenv("DISPATCHER__CHANNELS__EMAIL__CONNECTIONS", "9")
    monkeypatch.setenv("DISPATCHER__CHANNELS__EMAIL__RETRY__INITIAL", "500ms")
    monkeypatch.setenv("DISPATCHER__CHANNELS__SLACK__TOKEN", "xoxb-from-env")
    monkeypatch.setenv("DISPATCHER__CHANNELS__SLACK__RECIPIENTS", '{"#dev": "C0000001"}')
    monkeypatch.setenv("DISPATCHER__RULES__FLYTE_ADMIN__ENDPOINT", "dns:///flyte.example.com")
    monkeypatch.setenv("DISPATCHER__RULES__FLYTE_ADMIN__CLIENT_ID", "dispatcher")
    monkeypatch.setenv("DISPATCHER__RULES__FLYTE_ADMIN__CLIENT_SECRET", "secret-from-env")
    monkeypatch.setenv("DISPATCHER__RULES__FLYTE_ADMIN__SCOPES", "all, offline")
    settings = load(None)
    admin = settings.rules.flyte_admin
    assert admin is not None
    assert (admin.endpoint, admin.scopes) == ("flyte.example.com", ("all", "offline"))
    assert "secret-from-env" not in repr(settings)
    assert settings.kafka is not None
    assert (settings.kafka.bootstrap_servers, settings.kafka.topics) == ("env:1,env:2", ("a", "b"))
    email = settings.channel_sections["email"]
    assert (email.host, email.connections, email.retry.initial) == ("relay", 9, timedelta(milliseconds=500))
    assert settings.channel_sections["slack"].recipients == {"#dev": "C0000001"}
    assert "xoxb-from-env" not in repr(settings)


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("secret\n")
    settings = load(
        written(
            tmp_path,
            EMAIL.replace("}", ", username: u, password_file: ./pw}")
            + "rules: {launch_plans: [./plans]}\nledger: {url: 'sqlite+aiosqlite:///./x.db'}\n",
        )
    )
    assert settings.rules.launch_plans == (tmp_path / "plans",)
    assert settings.ledger.url == f"sqlite+aiosqlite:///{tmp_path}/x.db"
    assert settings.channel_sections["email"].password_file == tmp_path / "pw"


def test_without_a_url_the_ledger_is_next_to_the_settings(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")).ledger.url == f"sqlite+aiosqlite:///{tmp_path}/dispatcher.db"


RELAYS = """channels:
  email:
    from: flyte@example.com
    username: flyte
    password_file: ./pw
    relays:
      - host: one.example.com
      - host: two.example.com
        username: other
        password_file: ./pw2
"""


def test_each_of_several_relays_has_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pw", "pw2"):
        (tmp_path / name).write_text("secret\n")
    one, two = load(written(tmp_path, RELAYS)).channel_sections["email"].routes
    assert (one.host, one.username, one.password_file) == ("one.example.com", "flyte", tmp_path / "pw")
    assert (two.host, two.username, two.password_file) == ("two.example.com", "other", tmp_path / "pw2")

    monkeypatch.setenv("DISPATCHER__CHANNELS__EMAIL__RELAYS", '[{"host": "from.env.example.com"}]')
    assert [route.host for route in load(tmp_path / "dispatcher.yaml").channel_sections["email"].routes] == [
        "from.env.example.com"
    ]


def test_a_misspelt_option_of_a_relay_is_reported_with_its_line(tmp_path: Path) -> None:
    for name in ("pw", "pw2"):
        (tmp_path / name).write_text("secret\n")
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, RELAYS.replace("username: other", "usernaem: other")))
    expected = "dispatcher.yaml:9: channels.email.relays.1.usernaem: unknown option; did you mean 'username'?"
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kafka: {}", "dispatcher.yaml:1: kafka.bootstrap_servers: must be set"),
        ("http:\n  listne: 127.0.0.1:1", "dispatcher.yaml:2: http.listne: unknown option; did you mean 'listen'?"),
        ("kafak: {}", "dispatcher.yaml:1: kafak: unknown option; did you mean 'kafka'?"),
        (EMAIL.replace("host", "hots"), "channels.email.hots: unknown option; did you mean 'host'?"),
        (
            EMAIL.replace("}", ", security: ssl}"),
            "channels.email.security: must be 'none', 'starttls' or 'tls'",
        ),
        ("http: {listen: '0.0.0.0:8080'}", "listen is not a loopback address: set token or token_file"),
        (
            "http: {tokens: [{name: a, token: short-and-hidden, scopes: [read]}, {name: b, token: short, scopes: [read]}]}",
            "http.tokens.1: a token has 16 characters at least",
        ),
        ("http: {public_url: notify.example.com}", "http.public_url: "),
        ("http: {public_url: 'https://notify.example.com/?x=1'}", "write the address that browsers open"),
        ("http: {token: short}", "http: a token has 16 characters at least"),
        ("http: {tokens: [{name: a, token: long-enough-a-token, scopes: [write]}]}", "'publish', 'read' or 'operate'"),
        (f"http: {{tokens: [{A_TOKEN}, {A_TOKEN}]}}", "each of tokens needs a unique name"),
        (f"http: {{console: true, tokens: [{A_TOKEN}]}}", "console needs one of tokens with the scope read"),
        ("ledger: {password_file: /dev/null}", "password_file: /dev/null is no file"),
        (f"ledger: {{password_file: {__file__}}}", "ledger: password_file is for PostgreSQL"),
        (
            f"ledger: {{password_file: {__file__}, url: 'postgresql+asyncpg://a:hidden@b/c'}}",
            "ledger: give the password in url or in password_file, not both",
        ),
        ("channels: {slack: {}}", "channels.slack: give token or token_file"),
        ("channels: {teams: {targets: {ml: {}}}}", "channels.teams.targets.ml: give url or url_file"),
        ("contacts: {ml: {}}", "contacts.ml: nobody is in it: give recipients of one of email, slack"),
        ("contacts: {ml: {slak: ['#a']}}", "contacts.ml.slak: unknown option; did you mean 'slack'?"),
        ("contacts: {ml: {slack: ['']}}", "contacts.ml.slack: an empty recipient"),
        ("contacts: {owner: {slack: ['#a']}}", "contacts.owner: owner means the owner of an execution"),
        ("contacts: {' a': {slack: ['#a']}}", "a contact's name has no spaces around it: leave them out"),
        ("owners: {fallback: ml}", "owners: it finds nobody: give map, label, or pattern and principals"),
        ("owners: {pattern: '{principal}@x.com'}", "owners: give pattern and principals together"),
        ("owners: {label: a, pattern: 'a@x.com, {principal}@y.com', principals: '.*'}", "owners.pattern: besides"),
        ("owners: {label: a, pattern: '{principal}@x.com', principals: '(a'}", "not a regular expression that RE2 can"),
        ("owners: {map: {'': ml}}", "owners.map."),
        ("owners: {map: {alice: owner}}", "owners.map.alice: owner means the owner of an execution"),
        ("owners: {labels: a}", "owners.labels: unknown option; did you mean 'label'?"),
        ("channels: {slack: {token: a, token_file: /dev/null}}", "channels.slack"),
        ("channels: {pagerduty: {services: {x: {}}}}", "give routing_key or routing_key_file"),
        ("channels: {slack: {token_file: ./nowhere}}", "no such file"),
        ("a: [", "broken YAML"),
        ("- a", "the settings are one mapping"),
        (EMAIL.replace("}", ", rate: fast}"), "is no rate: write 1/s, 120/min or 500/h"),
        ("ledger: {lease: 1s}", "ledger.lease: must be greater than or equal to 3 seconds"),
        ("rules:\n  flyte_admin: {}", "dispatcher.yaml:2: rules.flyte_admin.endpoint: must be set"),
        ("rules: {flyte_admin: {endpoint: 'https://flyte'}}", "rules.flyte_admin.endpoint: 'https://flyte' is no gRPC"),
        ("rules: {flyte_admin: {endpont: 'flyte:81'}}", "endpont: unknown option; did you mean 'endpoint'?"),
        (EMAIL.replace("}", ", retry: {initial: soon}}"), "is not a duration: write 500ms, 30s"),
    ],
)
def test_a_mistake_gives_one_readable_message_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_mistake_in_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER__HTTP__LISTEN", "here")
    with pytest.raises(SettingsError, match="DISPATCHER__HTTP__LISTEN"):
        load(None)


def test_no_secret_is_shown_in_a_message(tmp_path: Path) -> None:
    text = "channels: {slack: {token: xoxb-hidden, nonsense: 1}, pagerduty: {services: {x: {routing_key: hidden-key, y: 1}}}}"
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, text))
    assert "hidden" not in str(caught.value)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="can't be read: No such file"):
        load(tmp_path / "nowhere.yaml")


def test_each_channel_has_its_providers_rate_limit_unless_the_settings_change_it(tmp_path: Path) -> None:
    given = """
channels:
  email: {host: localhost, from: f@x.com}
  slack: {token: a, fallback_recipients: "oncall, boss"}
  pagerduty: {rate: none, burst: 5, concurrency: 3}
"""
    sections = load(written(tmp_path, given)).channel_sections
    limits = {name: (section.rate and str(section.rate), section.burst) for name, section in sections.items()}
    assert limits == {"email": (None, 1), "slack": ("1/s", 3), "pagerduty": (None, 5)}
    assert [section.rate_limit().max_in_flight for section in sections.values()] == [5, 5, 1]
    assert sections["slack"].fallback_recipients == ("oncall", "boss")


def test_owners_may_have_any_principals_in_their_map(tmp_path: Path) -> None:
    text = "owners: {map: {url: a, templates: b, key_file: c, al.ice@x.com: d}, label: team, fallback: e}"
    owners = load(written(tmp_path, text)).owners
    assert owners is not None
    assert owners.map == {"url": "a", "templates": "b", "key_file": "c", "al.ice@x.com": "d"}


def test_a_contact_has_recipients_on_each_channel_and_may_include_others(tmp_path: Path) -> None:
    text = (
        "contacts: {ml: {slack: ['#ml', '#ops'], email: 'a@x.com, b@x.com', include: on-call}, on-call: {teams: [x]}}"
    )
    contacts = load(written(tmp_path, text)).contact_sections
    assert {name: (one.recipients, one.include) for name, one in contacts.items()} == {
        "ml": (
            (("email", "a@x.com"), ("email", "b@x.com"), ("slack", "#ml"), ("slack", "#ops")),
            ("on-call",),
        ),
        "on-call": ((("teams", "x"),), ()),
    }


def test_quiet_hours_and_digests_of_a_contact(tmp_path: Path) -> None:
    quiet = '{days: [mon-fri], from: "22:00", to: "07:00", zone: Europe/Berlin, except: [2026-12-31]}'
    text = "holds: {longest: 2d}\ncontacts: {ml: {email: a@x.com, quiet: QUIET, digest: {every: 1h}}}"
    for given in (quiet, f"[{quiet}]", quiet.replace('"', "")):
        settings = load(written(tmp_path, text.replace("QUIET", given)))
        contact = settings.contact_sections["ml"]
        assert [str(one) for one in contact.quiet] == ["mon-fri 22:00-07:00 Europe/Berlin except 2026-12-31"]
        assert contact.digest is not None
        assert contact.digest.options == DigestOptions(3, timedelta(minutes=10), timedelta(hours=1))
    assert settings.holds.longest == timedelta(days=2)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("quiet: []", "contacts.ml.quiet: must not be empty"),
        ("quiet: {from: 22:00:00, zone: UTC}", "contacts.ml.quiet.0.from: some YAML readers take this for text"),
        ('quiet: {from: "22:00"}', "contacts.ml.quiet.0.zone: must be set"),
        ('quiet: {form: "22:00", zone: UTC}', "contacts.ml.quiet.0.form: unknown option; did you mean 'from'?"),
        (
            "severity: critical, quiet: {days: sat, zone: UTC}",
            "contacts.ml: quiet has no effect: every event is critical",
        ),
        ("digest: {after: 0}", "contacts.ml.digest.after: must be greater than or equal to 1"),
        ("digest: {every: 2d}", "contacts.ml.digest.every: must be less than or equal to 1 day"),
    ],
)
def test_mistakes_in_quiet_hours_and_digests_have_their_place(tmp_path: Path, options: str, problem: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        load(written(tmp_path, f"contacts:\n  ml: {{email: a@x.com, {options}}}\n"))
    assert re.fullmatch(rf"[^:]+:2: {re.escape(problem)}.*", str(refused.value)), refused.value


def test_a_webhooks_lists_may_be_comma_separated_and_its_files_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text("https://hooks.example.com/hidden")
    (tmp_path / "token").write_text("hidden")
    monkeypatch.setenv("DISPATCHER__CHANNELS__WEBHOOK__ALLOW_HOSTS", "hooks.example.com, *.example.org")
    monkeypatch.setenv("DISPATCHER__CHANNELS__WEBHOOK__ALLOW_NETWORKS", "10.20.0.0/16,fd00::/8")
    text = "channels: {webhook: {targets: {ops: {url_file: url, headers: {Authorization: {value_file: token}, X: hidden}}}}}"
    section = load(written(tmp_path, text)).channel_sections["webhook"]
    assert section.allow_hosts == ("hooks.example.com", "*.example.org")
    assert [str(network) for network in section.allow_networks] == ["10.20.0.0/16", "fd00::/8"]
    assert section.targets["ops"].url_file == tmp_path / "url"
    assert section.targets["ops"].headers["Authorization"].value_file == tmp_path / "token"
    assert "hidden" not in repr(section)
