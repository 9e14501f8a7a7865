"""What happened to an execution: the facts every other room reasons about. Knows no wire format."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AliasGenerator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from dispatcher.model.notification import Notification
from dispatcher.model.phase import Phase


class _Fact(BaseModel):
    """Comes from outside: unknown fields pass, names are read in snake_case and lowerCamelCase."""

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
"""flyteadmin's own limit is 255; a slash or a control character could make two executions look like one."""


class ExecutionId(_Fact):
    """One run: `project/domain/name`."""

    project: Name
    domain: Name
    name: Name

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


class EntityId(_Fact):
    """A launch plan or a workflow, in one version."""

    project: Name
    domain: Name
    name: Name
    version: str = ""

    def __str__(self) -> str:
        version = f"@{self.version}" if self.version else ""
        return f"{self.project}/{self.domain}/{self.name}{version}"


class ExecutionError(_Fact):
    """`flyteidl.core.ExecutionError`: why it failed, often with a whole traceback."""

    code: str = ""
    message: str = ""
    kind: str = "UNKNOWN"
    """USER, SYSTEM or UNKNOWN: whose fault the engine thinks it is."""


def _plain_map(value: Any) -> Any:
    """Flytekit's Labels and Annotations serialise as `{"values": {…}}`; people write the map itself."""
    if isinstance(value, dict) and set(value) == {"values"} and isinstance(value["values"], dict):
        return value["values"]
    return value


Labels = Annotated[dict[str, str], BeforeValidator(_plain_map)]


class Options(_Fact):
    """flytekit's `Options` as given to one execution; the fields that decide nothing here pass unread."""

    notifications: tuple[Notification, ...] = ()
    disable_notifications: bool = False
    labels: Labels = Field(default_factory=dict)
    annotations: Labels = Field(default_factory=dict)


class Event(_Fact):
    """An execution entered a phase.

    Only `execution`, `phase` and `occurred_at` are always known: Flyte's own events say more, or not,
    by version, phase and setting (flyteadmin `cloudevents`).
    """

    execution: ExecutionId
    phase: Annotated[Phase, BeforeValidator(Phase.parse)]
    occurred_at: AwareDatetime
    launch_plan: EntityId | None = None
    workflow: EntityId | None = None
    principal: str = ""
    labels: Labels = Field(default_factory=dict)
    url: str = ""
    started_at: AwareDatetime | None = None
    error: ExecutionError | None = None
    options: Options | None = None

    @property
    def key(self) -> str:
        """The same for every copy of this event: `project/domain/name/PHASE`.

        Made from the data, never from CloudEvents' id, whose text form differs between builds of Flyte.
        """
        return f"{self.execution}/{self.phase}"
