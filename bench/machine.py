"""Describes the machine of a run: CPU, memory, system and versions."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sysconfig
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
    """The lines of the description, by name."""
    return {
        "CPU": f"{psutil.cpu_count()} x {_processor()}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load before it began": f"{os.getloadavg()[0]:.1f}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, {_optimised()}, "
        f"SQLite {sqlite3.sqlite_version}",
        "libraries": ", ".join(f"{name} {_installed(name)}" for name in LIBRARIES),
        "Kafka": KAFKA,
        "PostgreSQL": _program_version(str(binaries() / "postgres"), "--version"),
        "Alertmanager": _program_version("prometheus-alertmanager", "--version"),
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _optimised() -> str:
    """Whether Python was built with profile-guided optimisation, which makes it a tenth faster."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    return f"{'with' if '--enable-optimizations' in arguments else 'without'} profile-guided optimisation"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _program_version(program: str, argument: str) -> str:
    """The first version number in a program's output."""
    if shutil.which(program) is None:
        return "not installed"
    done = subprocess.run([program, argument], capture_output=True, text=True, check=False)
    number = re.search(r"\d+\.\d[\w.]*", done.stdout + done.stderr)
    return number[0] if number else "unknown version"
