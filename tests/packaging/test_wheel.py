"""The wheel has all files, and works in a clean environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dispatcher.version import __version__

ROOT = Path(__file__).parents[2]


def _pythons() -> list[str]:
    """Every Python 3.11 or later on this machine."""
    candidates = [sys.executable, *(shutil.which(f"python3.{minor}") or "" for minor in range(11, 16))]
    candidates += map(str, Path.home().glob(".pyenv/versions/3.*/bin/python"))
    found: dict[tuple[int, ...], str] = {}
    for candidate in filter(None, candidates):
        version = _version(candidate)
        if version >= (3, 11):
            found.setdefault(version, candidate)
    return list(found.values())


def _version(python: str) -> tuple[int, ...]:
    """The major and minor version; empty if it does not run."""
    done = subprocess.run(
        [python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
    )
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_contains_all_needed_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "dispatcher/templates/email/html.html.j2",
        "dispatcher/templates/slack/message.yaml",
        "dispatcher/templates/samples/failed.json",
        "dispatcher/demo/fakes/pages/inbox.html.j2",
        "dispatcher/demo/fakes/pages/inbox.js",
        "dispatcher/workbench/pages/page.html",
        "dispatcher/workbench/pages/page.js",
        "dispatcher/workbench/pages/page.css",
        "dispatcher/templates/email/style.css",
        "dispatcher/ledger/migrations/versions/0001_initial.py",
        "dispatcher/py.typed",
        "channels/contract.py",
    ):
        assert name in names
    assert not [name for name in names if name.startswith(("tests/", "bench/"))]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("python", _pythons(), ids=lambda path: path.rsplit("/", 3)[-3])
def test_the_wheel_works_in_a_clean_environment(wheel: Path, python: str, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    # Installed with the pip of this environment, and not compiled: most modules are never imported.
    subprocess.run([python, "-m", "venv", "--without-pip", str(environment)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "--disable-pip-version-check"]
    install = [*pip, "install", "--quiet", "--no-compile", "--no-deps"]  # `check` below reports what is missing
    if _version(python) >= (3, 14):
        install.append("--ignore-requires-python")  # like the Makefile: flyteidl excludes 3.14 but works there
    subprocess.run([*install, "--require-hashes", "-r", str(ROOT / "requirements" / "demo.txt")], check=True)
    subprocess.run([*install, str(wheel)], check=True)
    subprocess.run([*pip, "check"], check=True)
    dispatcher = str(environment / "bin" / "dispatcher")
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [dispatcher, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert run("--version") == f"dispatcher {__version__}\n"
    assert "every expected message arrived" in run("demo", "--once")
    assert "train.daily failed" in run("preview", "--channel", "slack")


def test_requirements_are_pinned_with_hashes_and_name_no_index() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        text = file.read_text()
        assert not re.search(r"https?://|--index|--find-links|^-e", text, re.MULTILINE), file
        pins = re.findall(r"^[a-z0-9][\w.-]*==\S+", text, re.MULTILINE)
        assert pins
        assert text.count("--hash=sha256:") >= len(pins)
