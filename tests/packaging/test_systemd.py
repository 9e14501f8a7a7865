"""The systemd unit, by systemd's own judgement where it is on this machine."""

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
    """The unit as systemd would find it, with a program that this machine has."""
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"(?m)^(ExecStart)=.*$", r"\1=/bin/true", UNIT.read_text()))
    return copy


@needs_systemd
def test_systemd_understands_every_line_of_the_unit(installed: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(installed)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_systemd_finds_little_that_the_unit_leaves_open(installed: Path) -> None:
    """An exposure of at most 1.5 in 10; a unit without any hardening has 9.6."""
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_stop_may_last_longer_than_the_grace_period(unit: configparser.ConfigParser) -> None:
    stop = int(unit["Service"]["TimeoutStopSec"].removesuffix("s"))
    assert stop >= Settings.model_fields["grace"].default.total_seconds() + 15


def test_the_unit_starts_the_command_that_there_is_with_the_settings_that_the_docs_name(
    unit: configparser.ConfigParser,
) -> None:
    service = unit["Service"]
    program, command = service["ExecStart"].split()
    docs = (ROOT / "docs" / "deploy.md").read_text()
    assert command == "serve"
    assert program in docs
    for named in (*re.findall(r"/etc/\S+", service["Environment"] + service["LoadCredential"]), UNIT.name):
        assert named in docs
