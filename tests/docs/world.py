"""The environment for the pages' commands: fake providers, FlyteAdmin, a broker, and a folder with the named files."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from starlette.applications import Starlette

from dispatcher.demo.fakes.flyte_admin import LocalFlyteAdmin, OAuthServer
from dispatcher.demo.fakes.inbox import MailReceiver, PagerDutyReceiver, SlackReceiver
from dispatcher.demo.fakes.slack import Conversation
from dispatcher.web.server import serving
from tests.support import samples
from tests.support.builders import an_execution
from tests.support.flyte_admin import a_finished_execution
from tests.support.service import ROUTING_KEY, ask, command
from tests.support.service import serving as a_replica

EXECUTIONS = ("akx7b9q2vjt5fm4c8h2d", "a7failed")
"""The execution names in the pages."""
PLAN = {
    "launch_plan": {"project": "flytesnacks", "domain": "production", "name": "train.daily"},
    "notifications": [
        {"phases": ["FAILED", "TIMED_OUT"], "slack": {"recipients_email": ["#alerts"]}},
        {"phases": ["FAILED"], "pager_duty": {"recipients_email": ["ml"]}},
        {"phases": ["SUCCEEDED"], "email": {"recipients_email": ["manager@example.com"]}},
    ],
}
SECRET = "0123456789abcdef0123456789abcdef"
READY = ("ready", "http://127.0.0.1")
"""A command that runs until it is stopped prints one of these when it is ready."""


@dataclass(frozen=True, slots=True)
class World:
    """A folder in which the pages' commands can run."""

    folder: Path
    key: str
    """The key of a delivery in the ledger."""

    @property
    def secrets(self) -> Path:
        return self.folder / "secrets"

    def copy(self, to: Path) -> World:
        """A copy of the folder, so that one block's changes do not affect the next."""
        shutil.copytree(self.folder, to)
        return World(to, self.key)

    def here(self, text: str) -> str:
        """A page's text with its placeholders replaced."""
        return text.replace("/run/secrets", str(self.secrets)).replace(" KEY ", f" {self.key} ")

    async def run(self, words: list[str]) -> tuple[int, str]:
        """Run a command. Returns its exit status and output. A server is stopped as soon as it is ready."""
        is_server = "serve" in words or "--serve" in words
        arguments = [*words[1:], "--port", "0"] if "--serve" in words else words[1:]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dispatcher", *arguments,
            cwd=self.folder, stdout=PIPE, stderr=STDOUT, env=os.environ | {"DISPATCHER_CONFIG": "dispatcher.yaml"},
        )  # fmt: skip
        assert process.stdout is not None
        output = b""
        async with asyncio.timeout(90):
            while is_server and (line := await process.stdout.readline()):
                output += line
                if any(word in line.decode() for word in READY):
                    process.send_signal(signal.SIGTERM if "serve" in words else signal.SIGINT)
                    break
            rest, _ = await process.communicate()
        return process.returncode or 0, (output + rest).decode()


@asynccontextmanager
async def world(folder: Path, kafka: str, topic: str) -> AsyncIterator[World]:
    """Start the environment; the ledger has one failure with its deliveries, and one rejected message."""
    slack = SlackReceiver(channels=[Conversation("C0000001", "alerts")])
    pagerduty = PagerDutyReceiver({ROUTING_KEY: "ML"})
    async with (
        serving(Starlette(routes=[*slack.routes(), *pagerduty.routes()]), "127.0.0.1", 0) as url,
        MailReceiver() as mail,
        LocalFlyteAdmin(oauth=OAuthServer()) as admin,
    ):
        assert admin.oauth is not None
        for name in EXECUTIONS:
            admin.add(a_finished_execution(an_execution(name), closure={"updatedAt": "2026-11-20T09:14:21Z"}))
        settings: dict[str, Any] = {
            "kafka": {"bootstrap_servers": kafka, "topics": [topic]},
            "http": {"listen": "127.0.0.1:0"},
            "rules": {"launch_plans": ["./launch_plans"]},
            "channels": {
                "email": {"host": "127.0.0.1", "port": mail.port, "security": "none", "from": "flyte@example.com"},
                "slack": {"token": slack.token, "api_url": f"{url}/api/"},
                "pagerduty": {"events_url": url, "services": {"ml": {"routing_key": ROUTING_KEY}}},
            },
        }
        _write_files(folder)
        key = await _fill_ledger(folder, settings)
        client = {"client_id": admin.oauth.client_id, "client_secret": admin.oauth.client_secret}
        settings["rules"] |= {"flyte_admin": {"endpoint": admin.endpoint, "insecure": True, **client}}
        (folder / "dispatcher.yaml").write_text(yaml.safe_dump(settings))
        yield World(folder, key)


async def _fill_ledger(folder: Path, settings: Mapping[str, Any]) -> str:
    """Publish a failure and an undecided event to a replica. Returns the key of a sent delivery."""
    async with a_replica(folder, settings) as replica:
        failure = ["--project", "flytesnacks", "--domain", "production", "--launch-plan", "train.daily"]
        for form, name in (("native", EXECUTIONS[1]), ("flyte-v1", "unknown")):
            arguments = [*failure, "--format", form, "--name", name] if form == "native" else ["--format", form]
            await command("publish", *arguments, "--to", "http", "--url", f"{replica.url}/events")
        file = folder / "dispatcher.yaml"
        async with asyncio.timeout(30):
            while not (sent := await ask(file, "deliveries", "list", "--state", "sent")):
                pass
    return str(sent[0]["key"])


def _write_files(folder: Path) -> None:
    """Write the files and folders that the pages name."""
    for name in (
        "launch_plans",
        "routes",
        "my-templates",
        "secrets",
        "templates/board",
        "templates/production",
        "templates/training",
        "templates/common",
    ):
        (folder / name).mkdir(parents=True)
    (folder / "launch_plans" / "train.daily.yaml").write_text(yaml.safe_dump(PLAN))
    for name in (
        "smtp",
        "slack",
        "pagerduty",
        "flyte",
        "slack-ops",
        "mail-client",
        "oidc",
        "ops-url",
        "ops-key",
        "ops-token",
        "other",
        "teams-ml",
        "db",
    ):
        secret = f"https://hooks.example.com/{SECRET}" if "url" in name or name in {"slack-ops", "teams-ml"} else SECRET
        (folder / "secrets" / name).write_text(secret)
    for name in ("event.json", "failed.json"):
        (folder / name).write_bytes(samples.structured("v2-workflow-failed-enriched")[1])
    admin = {
        "notifications": {
            "type": "smtp",
            "emailer": {
                "subject": "{{ name }} has {{ phase }}",
                "sender": "flyte@example.com",
                "body": "{{ error }}",
                "emailServerConfig": {"serviceName": "smtp", "smtpServer": "relay.example.com", "smtpPort": "587"},
            },
        }
    }
    (folder / "flyteadmin.yaml").write_text(yaml.safe_dump(admin))
