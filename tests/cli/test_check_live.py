"""`dispatcher check --live`: a line for each connection, and the exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from starlette.applications import Starlette

from channels.slack.answers import SCOPES
from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin, OAuthServer
from dispatcher.demo.fakes.inbox import MailReceiver, PagerDutyReceiver, SlackReceiver
from dispatcher.demo.fakes.slack import ALL_SCOPES
from dispatcher.web.server import serving
from tests.support.flyte_admin import a_finished_execution
from tests.support.service import ROUTING_KEY, command, free_port


async def test_each_working_connection_is_one_line(tmp_path: Path) -> None:
    slack, pagerduty = SlackReceiver(), PagerDutyReceiver({ROUTING_KEY: "ML"})
    async with (
        serving(Starlette(routes=[*slack.routes(), *pagerduty.routes()]), "127.0.0.1", 0) as url,
        MailReceiver() as mail,
        LocalFlyteAdmin(oauth=OAuthServer()) as admin,
    ):
        assert admin.oauth is not None
        admin.add(a_finished_execution())
        settings: dict[str, Any] = {
            "http": {},
            "rules": {
                "flyte_admin": {
                    "endpoint": admin.endpoint,
                    "insecure": True,
                    "client_id": admin.oauth.client_id,
                    "client_secret": admin.oauth.client_secret,
                }
            },
            "channels": {
                "email": {"host": "127.0.0.1", "port": mail.port, "security": "none", "from": "flyte@example.com"},
                "slack": {"token": slack.token, "api_url": f"{url}/api/"},
                "pagerduty": {"events_url": url, "services": {"ml": {"routing_key": ROUTING_KEY}}},
            },
        }
        file = tmp_path / "dispatcher.yaml"
        file.write_text(yaml.safe_dump(settings))
        assert (await command("ledger", "migrate", "--config", str(file)))[0] == 0
        status, out, err = await command("check", "--live", "--config", str(file))
        assert (status, err) == (0, "")
        assert out.splitlines()[4:] == [
            "ledger     ok: writable; no events yet",
            "admin      ok: it is reached, the token is accepted; projects that the client can see: 1",
            f"email      ok: mail relay 127.0.0.1:{mail.port} takes connections, it asks nobody to log in",
            "slack      ok: the token is accepted: dispatcher in workspace Demo",
            *(f"slack      ok: scope {scope} is there: it {SCOPES[scope]}" for scope in ALL_SCOPES),
            "pagerduty  ok: ml: PagerDuty is reached and has nothing against the routing key",
        ]

        slack.token = "another"
        admin.oauth.client_secret = "another"
        await admin.stop()
        await admin.start()
        status, out, err = await command("check", "--live", "--config", str(file))
        assert (status, err) == (1, "2 problems found\n")
        assert "admin      problem: rules.flyte_admin.client_secret: expired, or not this client's?" in out
        assert "slack      problem: Slack refused: invalid_auth" in out
        assert "email      ok:" in out
    assert (mail.mails, slack.messages, pagerduty.incidents) == ([], [], [])


async def test_each_failed_connection_is_one_line_with_the_setting_to_change(tmp_path: Path) -> None:
    unreachable = f"127.0.0.1:{free_port()}"
    settings = {
        "kafka": {"bootstrap_servers": unreachable},
        "channels": {"email": {"host": "127.0.0.1", "port": 1, "security": "none", "from": "flyte@example.com"}},
        "ledger": {"url": f"postgresql+asyncpg://nobody@{unreachable}/none"},
        "rules": {"flyte_admin": {"endpoint": unreachable, "insecure": True, "timeout": "1s"}},
    }
    file = tmp_path / "dispatcher.yaml"
    file.write_text(yaml.safe_dump(settings))
    status, out, err = await command("check", "--live", "--config", str(file))
    assert (status, err) == (1, "4 problems found\n")
    for name, setting in (
        ("kafka", "kafka.bootstrap_servers"),
        ("ledger", "ledger.url"),
        ("admin", "rules.flyte_admin.endpoint"),
    ):
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name:<10} problem:")]
        assert setting in line
    assert "Traceback" not in err + out
