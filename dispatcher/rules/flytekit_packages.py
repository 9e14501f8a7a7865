"""Launch plans as flytekit serialises them: protobuf messages, alone or in the archive that `pyflyte package` writes.

Nothing is ever unpacked to disk, and no more than a bound of it into memory.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from dispatcher.parsing.yaml import Malformed

MOST_UNPACKED = 64 * 2**20
"""Bytes that an archive may unpack to; a package is messages of kilobytes, and perhaps packed source code."""
MOST_MEMBERS = 10_000
LARGEST_MESSAGE = 16 * 2**20

_NUMBERED = re.compile(r"(?:\d+_)?(?P<name>.+?)(?:_3)?")
"""flytekit's file names: a number, the entity's name, and 3 for a launch plan (`core.ResourceType`)."""
_PLACEHOLDERS = re.compile(r"\{\{ ?registration\.\w+ ?\}\}")
"""What a package holds where `flytectl register` fills in project, domain and version."""


@dataclass(slots=True)
class Package:
    """What was in an archive."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    """The protobuf files: their paths in the archive, and their bytes."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Members that no package of flytekit's has, and what is wrong with each."""


def read_package(path: Path) -> Package:
    """Read the protobuf files of a gzipped tar archive; other files are passed over.

    Raises Malformed for what is no such archive, is broken, or unpacks to too much; OSError where it can't be read.
    """
    unpacked = _unpacked(path)
    package = Package()
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for number, member in enumerate(archive, start=1):
                if number > MOST_MEMBERS:
                    raise Malformed(f"more than {MOST_MEMBERS} files: no package of launch plans", 0)
                _add(package, archive, member)
            if any(unpacked[archive.offset : archive.offset + tarfile.BLOCKSIZE]):  # tarfile takes this for the end
                raise Malformed(f"the archive is broken after {number} files", 0)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise Malformed(f"no tar archive that can be read: {error}", 0) from None
    return package


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as packed:
            content = packed.read(MOST_UNPACKED + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Malformed(f"no gzip file that can be read: {error}", 0) from None
    if len(content) > MOST_UNPACKED:
        raise Malformed(f"unpacks to more than {MOST_UNPACKED // 2**20} MiB: no package of launch plans", 0)
    return content


def _add(package: Package, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if not member.name.isprintable():  # nor could every ledger and terminal take it
        package.refused.append((member.name, "its name holds what can't be printed"))
    elif path.is_absolute() or ".." in path.parts:
        package.refused.append((member.name, "its path leaves the archive"))
    elif member.issym() or member.islnk():
        package.refused.append((member.name, "a link; links are not followed"))
    elif member.isdir() or path.suffix != ".pb" or path.name.startswith("."):
        return
    elif not member.isreg():
        package.refused.append((member.name, "not a file"))
    elif member.size > LARGEST_MESSAGE:  # a sparse file claims any size and takes no room in the archive
        package.refused.append((member.name, f"larger than {LARGEST_MESSAGE // 2**20} MiB: no launch plan"))
    elif (content := archive.extractfile(member)) is not None:
        package.messages.append((member.name, content.read()))


def launch_plan(content: bytes, name: str, home: Mapping[str, str]) -> dict[str, Any] | None:
    """The identity and notifications of a launch plan in a protobuf file, as protobuf's JSON has them.

    Takes a `flyteidl.admin.LaunchPlan`, or a `LaunchPlanSpec`, whose launch plan is named by the file and is
    otherwise its workflow's neighbour. None for the tasks and workflows that a package holds too. `home` is the
    project and domain for a message that leaves them to its registration. Raises Malformed for anything else.
    """
    from flyteidl.admin.launch_plan_pb2 import LaunchPlan, LaunchPlanSpec  # noqa: PLC0415 - only where such files exist
    from flyteidl.admin.task_pb2 import TaskSpec  # noqa: PLC0415
    from flyteidl.admin.workflow_pb2 import WorkflowSpec  # noqa: PLC0415
    from flyteidl.core.identifier_pb2 import LAUNCH_PLAN, TASK, UNSPECIFIED, WORKFLOW  # noqa: PLC0415
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415

    plan = _parsed(LaunchPlan, content)
    spec = _parsed(LaunchPlanSpec, content)
    if plan is not None and plan.id.resource_type == LAUNCH_PLAN:
        identity, spec = plan.id, plan.spec
    elif spec is not None and spec.workflow_id.resource_type == WORKFLOW:
        identity = spec.workflow_id
        identity.name = _named_by(name)
    elif _is(TaskSpec, content, TASK) or _is(WorkflowSpec, content, WORKFLOW):
        return None
    elif plan is not None and plan.id.resource_type == UNSPECIFIED:
        identity, spec = plan.id, plan.spec
    else:
        raise Malformed("not a flyteidl.admin.LaunchPlan in protobuf", 0)
    given = {part: getattr(identity, part) for part in ("project", "domain", "name", "version")}
    known = {part: value for part, value in given.items() if value and not _PLACEHOLDERS.fullmatch(value)}
    if "name" in known and not {"project", "domain"} & known.keys() and not home:
        raise Malformed(
            f"launch plan {known['name']} leaves its project and domain to registration: "
            "put the file into a folder PROJECT/DOMAIN of the launch plans' folder",
            0,
        )
    notifications = [MessageToDict(rule) for rule in spec.entity_metadata.notifications]
    return {"id": {**home, **known}, "notifications": notifications}


def _parsed(kind: Any, content: bytes) -> Any:
    """The bytes as a message of that kind; None where they are none."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    try:
        return kind.FromString(content)
    except DecodeError:
        return None


def _is(kind: Any, content: bytes, resource: int) -> bool:
    message = _parsed(kind, content)
    return message is not None and message.template.id.resource_type == resource


def _named_by(file: str) -> str:
    match = _NUMBERED.fullmatch(PurePosixPath(file).stem)
    return match["name"] if match is not None else ""
