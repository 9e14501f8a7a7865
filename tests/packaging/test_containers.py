"""Dockerfile and docker-compose.yml, as far as they can be tested without a container engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from dockerfile_parse import DockerfileParser
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dispatcher.config.settings import load
from dispatcher.rules.files import RuleFiles
from dispatcher.web.config import Scope
from dispatcher.web.server import serving
from tests.support.service import COMMAND
from tests.support.tls import a_certificate

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory: pytest.TempPathFactory) -> DockerfileParser:
    copy = tmp_path_factory.mktemp("docker") / "Dockerfile"  # the parser opens its file for writing
    copy.write_text((ROOT / "Dockerfile").read_text())
    return DockerfileParser(path=str(copy))


def instructions(dockerfile: DockerfileParser, name: str) -> list[str]:
    return [entry["value"] for entry in dockerfile.structure if entry["instruction"] == name]


def test_the_compose_file_is_valid_by_the_compose_specification() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        str(ROOT / "docker-compose.yml"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_image_is_pinned_to_a_full_version(dockerfile: DockerfileParser) -> None:
    images = [service["image"] for service in SERVICES.values()] + dockerfile.parent_images
    assert len(images) >= 6
    (named,) = re.findall(r'base.name="docker.io/library/(\S+)"', dockerfile.content)
    assert {named} == set(dockerfile.parent_images)
    assert all(re.search(r":v?\d+\.\d+(\.\d+)?", image) for image in images), images


def test_services_wait_for_healthchecks_and_mount_files_that_exist() -> None:
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[other], f"{name} waits for {other}"
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def environment(service: str) -> dict[str, str]:
    """The variables of a service, with the defaults of the variables in them."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in SERVICES[service]["environment"].items()
    }


def test_the_settings_and_rules_of_the_compose_file_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("dispatcher").items():
        monkeypatch.setenv(name, value)
    settings = load(ROOT / "deploy" / "compose" / "dispatcher.yaml")
    assert settings.kafka is not None
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.http is not None
    assert settings.http.console
    (you,) = settings.http.callers()
    assert (you.scopes, you.reveal()) == (frozenset(Scope), "compose-only-change-me")
    rules = RuleFiles(settings.rules.launch_plans)
    rules.load()
    assert not rules.problems
    assert len(rules.book.plans) == 1


def test_the_compose_files_commands_exist_and_its_settings_pass_the_check() -> None:
    """Each command with `--help`, and `check`, with the environment and settings of its service."""
    for name in ("dispatcher", "publish"):
        service = SERVICES[name]
        (config,) = (
            volume.split(":")[0] for volume in service["volumes"] if "/etc/dispatcher/dispatcher.yaml" in volume
        )
        commands = [["check"]] if name == "dispatcher" else [[*service["command"], "--help"]]
        for arguments in commands:
            done = subprocess.run(
                [*COMMAND, *arguments],
                cwd=ROOT,
                env={**os.environ, **environment(name), "DISPATCHER_CONFIG": config},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_dispatchers_containers_are_locked_down_and_get_enough_time_to_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment("dispatcher").items():
        monkeypatch.setenv(name, value)
    for name in ("dispatcher", "publish"):
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    shutdown_timeout = load(ROOT / "deploy" / "compose" / "dispatcher.yaml").shutdown_timeout.total_seconds()
    assert int(SERVICES["dispatcher"]["stop_grace_period"].removesuffix("s")) >= shutdown_timeout + 15


def test_the_image_runs_as_an_unprivileged_user_and_gets_signals_itself(dockerfile: DockerfileParser) -> None:
    assert instructions(dockerfile, "USER") == ["10001:10001"]
    assert json.loads(instructions(dockerfile, "ENTRYPOINT")[0]) == ["dispatcher"], "a shell would keep SIGTERM"
    assert instructions(dockerfile, "STOPSIGNAL") == ["SIGTERM"]
    assert len(instructions(dockerfile, "HEALTHCHECK")) == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_the_health_check_understands_a_service_with_and_without_tls(
    tls: bool, dockerfile: DockerfileParser, tmp_path: Path
) -> None:
    _, *arguments = json.loads(instructions(dockerfile, "HEALTHCHECK")[0].partition("CMD ")[2])
    statuses = {"/healthz": 200, "/readyz": 503}

    async def page(request: Request) -> Response:
        return Response("the page", statuses[request.url.path])

    async def status(server: str, *path: str) -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, server, *path, stdout=PIPE)
        output, _ = await process.communicate()
        return process.returncode, output

    certificate = a_certificate(tmp_path, trustme.CA()) if tls else None
    pages = Starlette(routes=[Route(path, page) for path in statuses])
    async with serving(pages, "127.0.0.1", 0, tls=certificate) as url:
        server = url.partition("//")[2]
        assert await status(server) == (0, b"the page\n")
        assert await status(server, "/readyz") == (1, b"the page\n")
    assert await status(server) == (1, b"")


def test_files_that_the_image_copies_exist_and_are_not_ignored(dockerfile: DockerfileParser) -> None:
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = [value for value in instructions(dockerfile, "COPY") if not value.startswith("--from")]
    for sources in copied:
        for source in sources.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in kept, source
