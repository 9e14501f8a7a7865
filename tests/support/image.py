"""Builds and runs the image of a Dockerfile without a container engine.

Each stage has an overlay over this machine's root file system. RUN instructions run in it as root, with chroot. The
container then runs like in an engine: as its user, as process 1, with a read-only root file system except /tmp and the
volumes, and with its own network. In place of the base image, this machine with a Python in /usr/local is used, so
these tests can't notice a program that the base image lacks.
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
    """Why this machine can't build images, or None if it can."""
    if os.geteuid() != 0:
        return "root is needed for chroot and for mounting overlays"
    if lacking := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        return f"no {', '.join(lacking)} on this machine"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "true"], capture_output=True, text=True, check=False
    )
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


@dataclass(slots=True)
class _Stage:
    """The root folder of a stage, and what its instructions have set so far."""

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
        """A line of shell that runs the command in the stage."""
        settings = " ".join(shlex.quote(f"{name}={value}") for name, value in self.env.items())
        # this machine may need these variables to reach a package index
        passed_on = " ".join(f'{name}="${name}"' for name in sorted(os.environ) if name.startswith(("PIP_", "SSL_")))
        line = shlex.quote(f"cd {self.folder} && {command}")
        return f"chroot --userspec={user} --groups= {self.root} env -i {passed_on} {settings} sh -c {line}"


class Image:
    """Translates the Dockerfile to one shell script, to which a test adds commands for the running container."""

    def __init__(self, dockerfile: DockerfileParser, context: Path, scratch: Path) -> None:
        self._context = context
        self._scratch = scratch
        self._stages: dict[str, _Stage] = {}
        self._read_only: list[str] = []
        self._script = ["set -eu", "mount --make-rprivate /", f"mount -t tmpfs none {scratch}"]
        for entry in dockerfile.structure:
            self._add(entry["instruction"], entry["value"])

    @property
    def final(self) -> _Stage:
        return list(self._stages.values())[-1]

    def run(self, *commands: str, files: dict[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
        """Build the image, start the container with these files in it, run the shell commands, stop the container.

        The commands may use the functions `in_container COMMAND`, `health`, and `init`, which prints the id of the
        container's process 1 as seen from outside.
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
        start = stage.inside(f"exec {shlex.join([*stage.entrypoint, *stage.command])}", user=stage.user)
        in_container = stage.inside('"$0" "$@"', user=stage.user)
        self._script += [
            "ip link set lo up",
            f"unshare --pid --fork --kill-child {start} >{self._scratch}/log 2>&1 & outer=$!",
            f'in_container() {{ {in_container} "$@"; }}',
            f"health() {{ in_container {shlex.join(stage.health)}; }}",
            "init() { cat /proc/$outer/task/$outer/children; }",
            *commands,
            f"kill -s {stage.stop_signal.removeprefix('SIG')} $(init)",
            f"wait $outer || {{ echo ended with $?; cat {self._scratch}/log; exit 1; }} >&2",
            f"cat {self._scratch}/log",
        ]
        # The build may use the network for the package index; the container has only the loopback interface.
        split = self._script.index("ip link set lo up")
        inner = "\n".join(["set -eu", *self._script[split:]])
        script = "\n".join([*self._script[:split], f"exec unshare --net sh -c {shlex.quote(inner)}"])
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            cwd=self._context,
        )

    def _add(self, instruction: str, value: str) -> None:
        stage = list(self._stages.values())[-1] if self._stages else None
        if instruction == "FROM":
            self._begin_stage(value)
        elif stage is not None:
            self._translate(stage, instruction, value)

    def _begin_stage(self, value: str) -> None:
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

    def _translate(self, stage: _Stage, instruction: str, value: str) -> None:
        match instruction:
            case "RUN":
                self._script.append(f"{stage.inside(f'set -e; {value}')} >&2")
            case "COPY":
                self._script += self._copy(stage, shlex.split(value))
            case "WORKDIR":
                stage.folder = value
                self._script.append(f"mkdir -p {stage.root}{value}")
            case "ENV":
                for name, _, text in (part.partition("=") for part in shlex.split(value)):
                    stage.env[name] = Template(text).substitute(stage.env)
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

    def _copy(self, stage: _Stage, words: list[str]) -> list[str]:
        source = self._context
        if words[0].startswith("--from="):
            source = self._stages[words.pop(0).removeprefix("--from=")].root
        *names, target = words
        where = stage.root / (Path(stage.folder) / target).relative_to("/")
        lines = []
        for name in names:
            origin = source / name.lstrip("/")
            whole = not (self._context / name).is_file()
            lines.append(f"mkdir -p {where if whole or target.endswith('/') else where.parent}")
            lines.append(f"cp -R {'-T ' if whole else ''}{origin} {where}")
        return lines
