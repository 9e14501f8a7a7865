"""An image without an engine: a Dockerfile carried out in overlays over this machine, each stage in one of its own.

What RUN says is done as root in a changed root; what is made is run as a container is: as its user, as process 1,
on a root file system that can't be written but for /tmp and the volumes, in a network of its own. The base image is
stood in for by this machine with a Python in /usr/local, so what a base image lacks can't be seen here.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from dockerfile_parse import DockerfileParser

_BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_TOOLS = ("unshare", "mount", "chroot", "ip", "useradd")


def missing() -> str | None:
    """Why this machine can't do it, if so."""
    if os.geteuid() != 0:
        return "root is needed, to change roots and mount overlays"
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(lacking)} on this machine"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


@dataclass(slots=True)
class _Stage:
    """Where a stage's root is, and what its instructions have set so far."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": _BASE_PATH, "HOME": "/root"})
    folder: str = "/"
    user: str = "0:0"
    volumes: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"

    def inside(self, command: str, *, user: str = "0:0") -> str:
        """A line of shell that does the command in the stage."""
        settings = " ".join(shlex.quote(f"{name}={value}") for name, value in self.env.items())
        # what this machine needs to reach a package index
        passed = " ".join(f'{name}="${name}"' for name in sorted(os.environ) if name.startswith(("PIP_", "SSL_")))
        line = shlex.quote(f"cd {self.folder} && {command}")
        return f"chroot --userspec={user} --groups= {self.root} env -i {passed} {settings} sh -c {line}"


class Image:
    """The Dockerfile as one shell script, to which a test adds what is to be done with the image."""

    def __init__(self, dockerfile: DockerfileParser, context: Path, scratch: Path) -> None:
        self._context = context
        self._scratch = scratch
        self._stages: dict[str, _Stage] = {}
        self._read_only: list[str] = []
        self._script = ["set -eu", "mount --make-rprivate /", f"mount -t tmpfs none {scratch}"]
        for entry in dockerfile.structure:
            self._take(entry["instruction"], entry["value"])

    @property
    def final(self) -> _Stage:
        return list(self._stages.values())[-1]

    def run(self, *after: str, files: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
        """Build, start the container with these files in it, do the lines of shell, stop it; they may use:
        `in_container COMMAND`, `$init` (process 1 as seen from outside).
        """
        stage = self.final
        for name, content in files.items():
            target = stage.root / name.lstrip("/")
            self._script += [f"mkdir -p {target.parent}", f"printf %s {shlex.quote(content)} >{target}"]
        self._script += [f"mount -o remount,ro {mount}" for mount in self._read_only]
        self._script.append(f"mount -t tmpfs none {stage.root}/tmp -o mode=1777")
        for volume in stage.volumes:
            where = f"{stage.root}{volume}"
            self._script += [
                f"owner=$(stat -c uid=%u,gid=%g,mode=%a {where})",
                f"mount -t tmpfs none {where} -o $owner",
            ]
        started = stage.inside(f"exec {shlex.join([*stage.entrypoint, *stage.command])}", user=stage.user)
        asked = stage.inside('"$0" "$@"', user=stage.user)
        self._script += [
            "ip link set lo up",
            f"unshare --pid --fork --kill-child {started} >{self._scratch}/log 2>&1 & outer=$!",
            f'in_container() {{ {asked} "$@"; }}',
            f"health() {{ in_container {shlex.join(stage.health)}; }}",
            "init() { cat /proc/$outer/task/$outer/children; }",
            *after,
            f"kill -s {stage.stop_signal.removeprefix('SIG')} $(init)",
            f"wait $outer || {{ echo ended with $?; cat {self._scratch}/log; exit 1; }} >&2",
            f"cat {self._scratch}/log",
        ]
        # The build reaches the package index; from the container on, there is only loopback.
        cut = self._script.index("ip link set lo up")
        inner = "\n".join(["set -eu", *self._script[cut:]])
        script = "\n".join([*self._script[:cut], f"exec unshare --net sh -c {shlex.quote(inner)}"])
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd=self._context,
        )

    def _take(self, instruction: str, value: str) -> None:
        stage = list(self._stages.values())[-1] if self._stages else None
        if instruction == "FROM":
            self._begin(value)
        elif stage is not None:
            self._do(stage, instruction, value)

    def _begin(self, value: str) -> None:
        name = value.rpartition(" AS ")[2] if " AS " in value else f"stage-{len(self._stages)}"
        root = self._scratch / name
        self._stages[name] = stage = _Stage(root)
        layers = f"lowerdir=/,upperdir={root}.upper,workdir={root}.work"
        python = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
        self._script += [
            f"mkdir {root} {root}.upper {root}.work",
            f"mount -t overlay overlay -o {layers} {root}",
            f"mount --rbind /proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            *(f"chmod a+x {root}{parent}" for parent in python.parents if str(parent) != "/"),
        ]
        if sys.base_prefix != "/usr/local":
            self._script += [f"mount -t tmpfs none {root}/usr/local", stage.inside(f"{python} -m venv /usr/local")]
            self._read_only.append(f"{root}/usr/local")
        self._read_only.append(str(root))

    def _do(self, stage: _Stage, instruction: str, value: str) -> None:
        match instruction:
            case "RUN":
                self._script.append(f"{stage.inside(f'set -e; {value}')} >&2")
            case "COPY":
                self._script += self._copied(stage, shlex.split(value))
            case "WORKDIR":
                stage.folder = value
                self._script.append(f"mkdir -p {stage.root}{value}")
            case "ENV":
                for name, _, given in (part.partition("=") for part in shlex.split(value)):
                    stage.env[name] = Template(given).substitute(stage.env)
            case "USER":
                stage.user = value
            case "VOLUME":
                stage.volumes.append(value)
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(value)
            case "CMD":
                stage.command = json.loads(value)
            case "HEALTHCHECK":
                stage.health = json.loads(value.partition("CMD ")[2])
            case "STOPSIGNAL":
                stage.stop_signal = value
            case "COMMENT" | "LABEL" | "EXPOSE" | "ARG":
                pass
            case _:
                raise NotImplementedError(f"{instruction} {value}")

    def _copied(self, stage: _Stage, words: list[str]) -> list[str]:
        source = self._context
        if words[0].startswith("--from="):
            source = self._stages[words.pop(0).removeprefix("--from=")].root
        *names, target = words
        where = stage.root / (Path(stage.folder) / target).relative_to("/")
        lines = []
        for name in names:
            given = source / name.lstrip("/")
            whole = not (self._context / name).is_file()
            lines.append(f"mkdir -p {where if whole or target.endswith('/') else where.parent}")
            lines.append(f"cp -R {'-T ' if whole else ''}{given} {where}")
        return lines
