"""Events of executions, independent of the wire format that they arrive in."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AliasGenerator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from dispatcher.model.notification import Notification, excess_of_data
from dispatcher.model.phase import Phase


class _Incoming(BaseModel):
    """Base of models read from messages: unknown fields are ignored; names may be snake_case or lowerCamelCase."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        alias_generator=AliasGenerator(validation_alias=to_camel),
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict) or None not in data.values():
            return data
        return {name: value for name, value in data.items() if value is not None}


Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f/]+$")]
"""The name of a project, a domain or an execution: at most 255 characters, as in flyteadmin. Slashes and control
characters are not allowed, because they could make the names of two different executions look the same."""
EntityName = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]
"""The name of a launch plan or a workflow. flyteadmin accepts any name that is not empty, also with slashes, control
characters and line breaks (flyteadmin `validation/validation.go`, `ValidateEmptyStringField`). Its database refuses
NUL."""
MAX_SHORT = 255
"""Maximum number of characters of a text that `shortened` returns. An index row of PostgreSQL can hold two such texts
(2,704 bytes)."""


def shortened(text: str) -> str:
    """Return the text, or a text of `MAX_SHORT` characters if it is longer: its beginning and its SHA-256 hash.

    Used where the names and versions of launch plans are keys or part of a sentence, because they can have any length.
    """
    if len(text) <= MAX_SHORT:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{text[: MAX_SHORT - len(digest) - 1]}…{digest}"


MAX_EXECUTION_BYTES = 2000
"""Maximum number of bytes of an execution's `project/domain/name` in UTF-8. The ledger has it in indexes, and an index
row of PostgreSQL can hold 2,704 bytes. Flyte's own names are ASCII, so this limits only names from other engines."""


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("in UTC, this time is before the year 1 or after the year 9999") from None


Time = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with a zone, converted to UTC. It must be within the years 1 to 9999 in UTC, because the ledger and templates
need it in UTC."""


class ExecutionId(_Incoming):
    """An execution: `project/domain/name`."""

    project: Name
    domain: Name
    name: Name

    @model_validator(mode="after")
    def _fits_an_index(self) -> Self:
        text = str(self)
        if not text.isascii() and len(text.encode()) > MAX_EXECUTION_BYTES:
            raise ValueError(f"project, domain and name may have {MAX_EXECUTION_BYTES:,} bytes together")
        return self

    def __str__(self) -> str:
        return f"{self.project}/{self.domain}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `project/domain/name`. Raises ValueError for anything else."""
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{text!r} names no execution: write project/domain/name")
        project, domain, name = parts
        return cls(project=project, domain=domain, name=name)


def _only_task(resource_type: Any) -> str:
    """Return `TASK` for a task, in the name or number of `flyteidl.core.ResourceType`; otherwise an empty text."""
    return "TASK" if resource_type in ("TASK", 1) else ""


CANARY_PROJECT, CANARY_DOMAIN = "dispatcher", "canary"
"""The project and the domain of every canary's execution. The ledger and the console show them."""


class EntityId(_Incoming):
    """A launch plan or workflow and its version, or a task in place of the launch plan."""

    project: Name
    domain: Name
    name: EntityName
    version: Annotated[str, Field(pattern=r"^[^\x00]*$")] = ""
    """Any text, as in flyteadmin. Empty if the version is unknown."""
    resource_type: Annotated[str, BeforeValidator(_only_task)] = ""
    """`TASK` if the execution ran a single task without a workflow: Flyte then names the task in place of the launch
    plan. Otherwise empty."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a launch plan: `project/domain/name` or `project/domain/name@version`. The name may have slashes.

        Raises ValueError for anything else.
        """
        parts = text.split("/", 2)
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"{text!r} names no launch plan: write project/domain/name or project/domain/name@version")
        project, domain, rest = parts
        name, _, version = rest.partition("@")
        return cls(project=project, domain=domain, name=name, version=version)

    @property
    def noun(self) -> str:
        """What it is called in sentences: `task` or `launch plan`. Only for launch plans and tasks."""
        return "task" if self.resource_type else "launch plan"

    @property
    def key(self) -> str:
        """The key of all versions: `project/domain/name`, `shortened`. The name may have slashes, so a reader splits
        the key at the first two. The key of a task begins with `task `, because a launch plan may have the same name.
        """
        return shortened(f"{'task ' if self.resource_type else ''}{self.project}/{self.domain}/{self.name}")

    def __str__(self) -> str:
        version = f"@{shortened(self.version)}" if self.version else ""
        return f"{self.project}/{self.domain}/{shortened(self.name)}{version}"


class ExecutionError(_Incoming):
    """`flyteidl.core.ExecutionError`: why the execution failed, often with a traceback."""

    code: str = ""
    message: str = ""
    kind: str = "UNKNOWN"
    """Whom Flyte blames for the error: USER, SYSTEM or UNKNOWN."""


def _plain_map(value: Any) -> Any:
    """Unwrap `{"values": {…}}`, flytekit's form of Labels and Annotations. People usually write only the inner map."""
    if isinstance(value, dict) and set(value) == {"values"} and isinstance(value["values"], dict):
        return value["values"]
    return value


Labels = Annotated[dict[str, str], BeforeValidator(_plain_map)]


MODES = ("manual", "scheduled", "system", "relaunch", "child", "recovered", "trigger")
"""How an execution can have been started: the names of `flyteidl.admin.ExecutionMetadata.ExecutionMode`, in the order of
their numbers. `child` is CHILD_WORKFLOW: a node of another execution started it."""


class Options(_Incoming):
    """flytekit's `Options` of one execution; fields without meaning for notifications are ignored.

    Refuses notifications beyond `MAX_RULES` and `MAX_RECIPIENTS`.
    """

    notifications: tuple[Notification, ...] = ()
    disable_notifications: bool = False
    labels: Labels = Field(default_factory=dict)
    annotations: Labels = Field(default_factory=dict)

    @field_validator("notifications", mode="before")
    @classmethod
    def _within_limits(cls, notifications: Any) -> Any:
        if reason := excess_of_data(notifications):
            raise ValueError(reason)
        return notifications


class Event(_Incoming):
    """The report that an execution entered a phase.

    Only `execution`, `phase` and `occurred_at` are always set. Whether Flyte's events have the other fields depends on
    Flyte's version, the phase and flyteadmin's settings (`cloudevents`).
    """

    execution: ExecutionId
    phase: Annotated[Phase, BeforeValidator(Phase.parse)]
    occurred_at: Time
    launch_plan: EntityId | None = None
    workflow: EntityId | None = None
    principal: str = ""
    labels: Labels = Field(default_factory=dict)
    url: str = ""
    started_at: Time | None = None
    error: ExecutionError | None = None
    options: Options | None = None
    mode: str = ""
    """How the execution was started: one of `MODES`; empty if that isn't known."""
    parent: ExecutionId | None = None
    """The execution that started this one (flyteidl `ExecutionMetadata.parent_node_execution`)."""
    reference_execution: ExecutionId | None = None
    """The execution that this execution recovers or relaunches (flyteidl `ExecutionMetadata.reference_execution`)."""
    origin: ExecutionId | None = None
    """The execution at the beginning of a chain of recoveries and relaunches. Intake sets it
    (`intake/origin.py`). None if the execution recovers and relaunches nothing."""
    looked_up: bool = False
    """True if FlyteAdmin was asked about the execution and knows it, so that empty fields are known to be absent. Intake
    sets it. Another workflow engine may set it in its events, if they name all that it knows."""

    @property
    def key(self) -> str:
        """The event's identity, `project/domain/name/PHASE`. It is the same for every copy of the event.

        The key does not contain the CloudEvents id, because the text form of this id differs between builds of Flyte.
        """
        return f"{self.execution}/{self.phase}"

    @property
    def is_canary(self) -> bool:
        """True for the dispatcher's own synthetic events. They are decided by their own rules alone."""
        return is_canary_key(self.key)


def is_canary_key(key: str) -> bool:
    """True for the key of a canary's event."""
    return key.startswith(f"{CANARY_PROJECT}/{CANARY_DOMAIN}/")


MAX_AHEAD = timedelta(minutes=1)
"""How far Flyte's clocks may be ahead of this one. The order of a thread's messages depends on Flyte's clocks alone."""


def possible(at: datetime, now: datetime) -> datetime:
    """Return an event's time, or `now` if the time is more than `MAX_AHEAD` in the future.

    Such a time comes from a wrong clock. It would make all failures until then look older than a success.
    """
    return at if at <= now + MAX_AHEAD else now
