"""The container image: built from the Dockerfile and run like a container, without a container engine."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

from tests.support import image

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
CONFIG = """
http: {listen: "0.0.0.0:8080", token_file: token}
ledger: {url: "sqlite+aiosqlite:////var/lib/dispatcher/dispatcher.db"}
channels: {email: {host: 127.0.0.1, port: 9, security: none, from: flyte@example.com}}
"""
TOKEN = "0123456789abcdef0123456789abcdef"
EVENT = {
    "execution": {"project": "p", "domain": "d", "name": "n"},
    "phase": "FAILED",
    "occurred_at": "2026-11-20T09:14:21Z",
    "options": {"notifications": [{"phases": ["FAILED"], "email": {"recipients_email": ["a@example.com"]}}]},
}
PUBLISH = f"""
import http.client
headers = {{"Authorization": "Bearer {TOKEN}", "Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "1",
           "ce-source": "/test", "ce-type": "dispatcher.execution.phase_changed.v1"}}
connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=10)
connection.request("POST", "/events", {json.dumps(EVENT)!r}, headers)
print("answered", connection.getresponse().status)
"""
READY = "in_container python -m dispatcher.web.probe 127.0.0.1:8080 /readyz"


def test_the_image_builds_and_runs_with_a_read_only_file_system(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Runs every instruction, then checks health, recording of an event, that pip is absent, and SIGTERM to process 1."""
    if reason := image.missing():
        pytest.skip(f"the image is not built: {reason}")
    copy = tmp_path_factory.mktemp("docker") / "Dockerfile"  # the parser opens its file for writing
    copy.write_text((ROOT / "Dockerfile").read_text())
    built = image.Image(DockerfileParser(path=str(copy)), ROOT, tmp_path)
    done = built.run(
        "for _ in $(seq 120); do health 2>/dev/null && break; sleep 0.5; done; health && echo healthy",
        f"for _ in $(seq 120); do {READY} >/dev/null 2>&1 && break; sleep 0.5; done",
        f"in_container python -c {shlex.quote(PUBLISH)}",
        "in_container dispatcher deliveries list",
        "in_container id -u | sed 's/^/uid /'",
        "in_container touch /opt/dispatcher/x /etc/x /usr/local/x 2>&1 | grep -c 'Read-only' | sed 's/^/refused /'",
        "in_container python -c 'import pip' 2>&1 | tail -1",
        "in_container python -c 'import hatchling' 2>&1 | tail -1",
        files={"/etc/dispatcher/dispatcher.yaml": CONFIG, "/etc/dispatcher/token": TOKEN},
        seconds=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    output = done.stdout
    for line in (
        "healthy",
        "answered 202",
        "uid 10001",
        "refused 3",
        "No module named 'pip'",
        "No module named 'hatch",
    ):
        assert line in output, output
    assert "a@example.com" in output
    assert '"event":"stopped"' in output, "SIGTERM reached it, and it drained"
