"""The systemd unit, checked by systemd itself if it is installed."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dispatcher.config.settings import Settings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "flyte-notification-dispatcher.service"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine (Debian's package systemd)"
)


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # its documented way to keep capitals
    parser.read_string(UNIT.read_text())
    return parser


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the unit whose program exists on this machine."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?m)^(ExecStart)=.*$", r"\1=/bin/true", UNIT.read_text()))
    return copy


@needs_systemd
def test_systemd_verifies_the_unit_without_warnings(installed: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(installed)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_the_unit_has_a_low_exposure(installed: Path) -> None:
    """At most 1.5 of 10 in `systemd-analyze security`; a unit without any hardening has 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_systemd_waits_longer_than_shutdown_timeout(unit: configparser.ConfigParser) -> None:
    stop = int(unit["Service"]["TimeoutStopSec"].removesuffix("s"))
    assert stop >= Settings.model_fields["shutdown_timeout"].default.total_seconds() + 15


def test_the_unit_runs_the_command_and_names_the_files_that_the_docs_name(
    unit: configparser.ConfigParser,
) -> None:
    service = unit["Service"]
    program, command = service["ExecStart"].split()
    docs = (ROOT / "docs" / "deploy.md").read_text()
    assert command == "serve"
    assert program in docs
    for name in (*re.findall(r"/etc/\S+", service["Environment"] + service["LoadCredential"]), UNIT.name):
        assert name in docs
