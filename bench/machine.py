"""The machine that a run's figures come from, in the words that its readers compare by."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from tests.support.brokers.apache import VERSION as KAFKA
from tests.support.postgres import binaries

LIBRARIES = (
    "aiokafka",
    "aiosmtplib",
    "slack-sdk",
    "pdpyras",
    "SQLAlchemy",
    "aiosqlite",
    "asyncpg",
    "Jinja2",
    "orjson",
    "uvloop",
)


def machine() -> Mapping[str, str]:
    """What it is and what runs on it, a line each."""
    return {
        "CPU": f"{psutil.cpu_count()} x {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before it began": f"{os.getloadavg()[0]:.1f}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "libraries": ", ".join(f"{name} {_installed(name)}" for name in LIBRARIES),
        "Kafka": KAFKA,
        "PostgreSQL": _told(str(binaries() / "postgres"), "--version"),
        "Alertmanager": _told("prometheus-alertmanager", "--version"),
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not there"


def _told(program: str, argument: str) -> str:
    """The first version number that a program says."""
    if shutil.which(program) is None:
        return "not there"
    said = subprocess.run([program, argument], capture_output=True, text=True, check=False)
    number = re.search(r"\d+\.\d[\w.]*", said.stdout + said.stderr)
    return number[0] if number else "of unknown version"
