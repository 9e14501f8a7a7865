"""Reads launch plans that flytekit wrote: single protobuf files, and the archives that `pyflyte package` writes.

Archives are unpacked only in memory, up to `MAX_UNPACKED_BYTES`.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from dispatcher.parsing.yaml import Malformed

MAX_UNPACKED_BYTES = 64 * 2**20
"""Maximum size of an unpacked archive. Its protobuf messages have only a few kilobytes each, but the archive may also
contain source code."""
MAX_MEMBERS = 10_000
MAX_MESSAGE_BYTES = 16 * 2**20

_NUMBERED = re.compile(r"(?:\d+_)?(?P<name>.+?)(?:_3)?")
"""Pattern of flytekit's file names: an optional number and `_`, the entity's name, and `_3` if it is a launch plan.

3 is the value of LAUNCH_PLAN in `core.ResourceType`.
"""
_PLACEHOLDERS = re.compile(r"\{\{ ?registration\.\w+ ?\}\}")
"""Pattern of the placeholders that `flytectl register` later replaces with a project, domain or version."""


@dataclass(slots=True)
class Package:
    """The launch plan files that were read from an archive, and the refused files."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    """The protobuf files, each as (path in the archive, content)."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """The refused files, each as (name, reason). An archive that flytekit wrote contains no such file."""


def read_package(packed: bytes) -> Package:
    """Read the protobuf files in a gzipped tar archive. Other files in the archive are skipped.

    Raises Malformed if `packed` is no gzipped tar archive, is broken, or unpacks to more than `MAX_UNPACKED_BYTES`.
    """
    unpacked = _unpacked(packed)
    package = Package()
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for number, member in enumerate(archive, start=1):
                if number > MAX_MEMBERS:
                    raise Malformed(f"more than {MAX_MEMBERS} files: no package of launch plans", 0)
                _add(package, archive, member)
            # tarfile also stops, without an error, at a broken header. Only at the real end, a block of zeros follows.
            if any(unpacked[archive.offset : archive.offset + tarfile.BLOCKSIZE]):
                raise Malformed(f"the archive is broken after {number} files", 0)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise Malformed(f"no tar archive that can be read: {error}", 0) from None
    return package


def _unpacked(packed: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            content = file.read(MAX_UNPACKED_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Malformed(f"no gzip file that can be read: {error}", 0) from None
    if len(content) > MAX_UNPACKED_BYTES:
        raise Malformed(f"unpacks to more than {MAX_UNPACKED_BYTES // 2**20} MiB: no package of launch plans", 0)
    return content


def _add(package: Package, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if not member.name.isprintable():  # because some databases and terminals reject such a name
        package.refused.append((member.name, "its name holds what can't be printed"))
    elif path.is_absolute() or ".." in path.parts:
        package.refused.append((member.name, "its path leaves the archive"))
    elif member.issym() or member.islnk():
        package.refused.append((member.name, "a link; links are not followed"))
    elif member.isdir() or path.suffix != ".pb" or path.name.startswith("."):
        return
    elif not member.isreg():
        package.refused.append((member.name, "not a file"))
    elif member.size > MAX_MESSAGE_BYTES:  # a sparse file can be huge, although its archive is small
        package.refused.append((member.name, f"larger than {MAX_MESSAGE_BYTES // 2**20} MiB: no launch plan"))
    elif (content := archive.extractfile(member)) is not None:
        package.messages.append((member.name, content.read()))


def launch_plan(content: bytes, name: str, place: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the id and the notifications of a launch plan in a protobuf file, in protobuf's JSON form.

    The file contains a `flyteidl.admin.LaunchPlan` or a `LaunchPlanSpec`. A `LaunchPlanSpec` does not contain the name
    of the launch plan, so the name is read from the file's name. Project, domain and version come from its workflow.
    Returns None if the file contains a task or a workflow, because archives also contain those. Raises Malformed for
    any other content.

    `place`: the project and domain to use if the file contains only placeholders for them.
    """
    from flyteidl.admin.launch_plan_pb2 import LaunchPlan, LaunchPlanSpec  # noqa: PLC0415 - only protobuf files need it
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
    if "name" in known and not {"project", "domain"} & known.keys() and not place:
        raise Malformed(
            f"launch plan {known['name']} leaves its project and domain to registration: "
            "put the file into a folder PROJECT/DOMAIN of the launch plans' folder",
            0,
        )
    notifications = [MessageToDict(rule) for rule in spec.entity_metadata.notifications]
    return {"id": {**place, **known}, "notifications": notifications}


def _parsed(message_type: Any, content: bytes) -> Any:
    """Decode the bytes as `message_type`. Returns None if that is not possible."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415

    try:
        return message_type.FromString(content)
    except DecodeError:
        return None


def _is(message_type: Any, content: bytes, resource: int) -> bool:
    message = _parsed(message_type, content)
    return message is not None and message.template.id.resource_type == resource


def _named_by(file: str) -> str:
    match = _NUMBERED.fullmatch(PurePosixPath(file).stem)
    return match["name"] if match is not None else ""
