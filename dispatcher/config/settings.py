"""The settings: each option's name, default and meaning. Only this module reads environment variables.

Options come from a YAML file and from environment variables, which take precedence over the file. For example, the
variable for `kafka.bootstrap_servers` is `DISPATCHER__KAFKA__BOOTSTRAP_SERVERS`. Relative paths in the file start at
the file's folder.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from channels.common.comma_list import comma_list
from channels.common.secret import SecretFile
from channels.registry import CHANNEL_TYPES, PLUGIN_PROBLEMS
from dispatcher.errors import SettingsError
from dispatcher.flyte.admin import FlyteAdminConfig
from dispatcher.intake.kafka.consumer import KafkaConfig
from dispatcher.model.rate_limit import RateLimit, RateOption
from dispatcher.model.retry import RetryPolicy
from dispatcher.observability.canary import CanaryConfig
from dispatcher.observability.watchdog import WatchdogConfig
from dispatcher.parsing.duration import Duration
from dispatcher.parsing.validation_errors import message_of
from dispatcher.parsing.yaml import Document, Malformed, Problem, parse, read_text
from dispatcher.rendering import TemplateSet
from dispatcher.rendering.context import PROPELLER_LABELS
from dispatcher.tracing import TracingConfig
from dispatcher.web.config import HttpConfig

PREFIX = "DISPATCHER__"
CONFIG_VARIABLE = "DISPATCHER_CONFIG"
DEFAULT_LEDGER = "sqlite+aiosqlite:///./dispatcher.db"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Paths = Annotated[tuple[Path, ...], BeforeValidator(comma_list)]
Recipients = Annotated[tuple[str, ...], BeforeValidator(comma_list)]


class LedgerSettings(_Section):
    """The database of events, deliveries and attempts."""

    url: str = DEFAULT_LEDGER
    """URL of the database: `sqlite+aiosqlite:///FILE` for one replica, or
    `postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE` for one or several replicas."""
    password_file: SecretFile | None = None
    """File with PostgreSQL's password, if `url` contains no password. Each new connection reads the file again, so the
    password may be changed at any time."""
    timeout: Duration = Field(timedelta(seconds=30), ge=timedelta(seconds=1), le=timedelta(minutes=10))
    """Maximum time of one PostgreSQL statement. A statement that takes longer is cancelled and retried."""
    retention: Duration = timedelta(days=90)
    """How long events and rejected messages are kept. After this time they are deleted, except events with waiting
    deliveries."""
    lease: Duration = Field(timedelta(minutes=3), ge=timedelta(seconds=3), le=timedelta(hours=1))
    """How long a worker owns a delivery that the worker has claimed. If the worker crashes, another worker claims the
    delivery after this time. An attempt may take two thirds of this time at most."""

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if self.password_file is not None and not self.url.startswith("postgres"):
            raise ValueError("password_file is for PostgreSQL; SQLite knows no passwords")
        if self.password_file is not None and urlsplit(self.url).password is not None:
            raise ValueError("give the password in url or in password_file, not both")
        return self


class RecipientAlias(RootModel[Mapping[str, str]]):
    """The recipient that replaces a rule's recipient: a channel and a recipient on that channel (`{teams: dev}`)."""

    model_config = ConfigDict(frozen=True)

    @property
    def target(self) -> tuple[str, str]:
        """The name of the channel, and the recipient on that channel."""
        ((channel, recipient),) = self.root.items()
        return channel, recipient

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if len(self.root) != 1:
            raise ValueError("name one channel and its recipient: {teams: dev}")
        return self


class RulesSettings(_Section):
    """Where the launch plans' rules come from."""

    launch_plans: Paths = ()
    """Files and folders with the rules of launch plans. The dispatcher reads a file again when the file changes."""
    flyte_admin: FlyteAdminConfig | None = None
    """FlyteAdmin, if the dispatcher asks it for effective rules. Effective rules take precedence over rule files."""
    recipients: Mapping[str, RecipientAlias] = Field(default_factory=dict)
    """Mapping from a recipient in rules to the recipient that replaces it, such as `{"#dev": {teams: dev}}`. Flyte's
    launch plans can name only email, Slack and PagerDuty recipients; this option redirects them to other channels."""


class ReconcileSettings(_Section):
    """Searches FlyteAdmin for finished executions whose event never reached Kafka. Needs `rules.flyte_admin`."""

    every: Duration = Field(timedelta(minutes=10), ge=timedelta(), le=timedelta(days=1))
    """Time between two searches. 0 switches reconciliation off."""
    look_back: Duration = Field(timedelta(hours=24), ge=timedelta(minutes=1))
    """Maximum age of the executions that a search includes. This limits the search after a long outage."""
    min_age: Duration = Field(timedelta(minutes=5), ge=timedelta())
    """Time to wait after an execution has finished. If the execution's event has not arrived by then, the event counts
    as lost. Before that time, the event may still be in Kafka."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.look_back <= self.min_age:
            raise ValueError("look_back must be longer than min_age, or no execution is ever reconciled")
        return self


class TemplateSettings(_Section):
    """Custom templates that replace the built-in templates."""

    path: Paths = ()
    """Folders with the same layout as the built-in `templates/`. A file in such a folder replaces the built-in file
    with the same path."""
    match: tuple[TemplateSet, ...] = ()
    """Folders with templates for some messages only. These folders take precedence over `path`. If several entries
    match a message, the earlier entry takes precedence."""
    hide_labels: Annotated[tuple[str, ...], BeforeValidator(comma_list)] = PROPELLER_LABELS
    """Names of labels that messages don't show. The default is the labels that flytepropeller sets itself: an execution
    that another execution started inherits them, and they name the other execution."""


class RetrySettings(_Section):
    """When a delivery is retried after an attempt without success, and when the dispatcher gives the delivery up."""

    initial: Duration = timedelta(seconds=2)
    """Initial back-off. The back-off doubles with each attempt. Before a retry, the dispatcher waits for a random
    time up to the back-off."""
    ceiling: Duration = timedelta(minutes=10)
    """Maximum back-off."""
    deadline: Duration = timedelta(hours=24)
    """Maximum time for all attempts of a delivery. After this time, the delivery is dead."""

    def policy(self) -> RetryPolicy:
        return RetryPolicy(initial=self.initial, ceiling=self.ceiling, deadline=self.deadline)


class DeliveryOptions(BaseModel):
    """The options that every channel has, in addition to the channel's own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retry: RetrySettings = RetrySettings()
    concurrency: int = Field(20, ge=1, le=1000)
    """Maximum number of deliveries in flight on this channel. One destination, such as a Slack channel or a PagerDuty
    service, gets at most a quarter of them."""
    rate: RateOption
    """Rate limit for one destination: a Slack channel, a PagerDuty service or the mail relay. All replicas share
    the limit."""
    burst: int
    """Maximum number of messages that a destination may get at once. After that, `rate` limits further messages."""
    fallback_recipients: Mapping[str, Recipients] = Field(default_factory=dict)
    """Recipients who are notified when a delivery of this channel is dead: a mapping from a channel to the recipients
    on that channel."""

    def rate_limit(self) -> RateLimit:
        """Return the limits of one destination. At most a quarter of `concurrency` is in flight to a destination."""
        return RateLimit(rate=self.rate, burst=self.burst, max_in_flight=max(self.concurrency // 4, 1))


def _channel_sections() -> type[BaseModel]:
    """Create the pydantic model of the section `channels`, with one optional section for each registered channel."""
    sections: dict[str, Any] = {
        name: (
            create_model(
                f"{name.title()}Settings",
                __base__=(DeliveryOptions, kind.config),
                rate=(RateOption, Field(kind.rate, validate_default=True)),
                burst=(int, Field(kind.burst, ge=1, le=10_000)),
            )
            | None,
            None,
        )
        for name, kind in CHANNEL_TYPES.items()
    }
    return create_model("ChannelSettings", __base__=_Section, **sections)


_Channels = _channel_sections()


class _Environment(EnvSettingsSource):
    """Reads lists and mappings in environment variables as JSON.

    A value that is not JSON, such as `a,b`, stays a string.
    """

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class Settings(BaseSettings):
    """All settings. If an optional section such as `kafka` is missing, that part of the dispatcher is switched off."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    kafka: KafkaConfig | None = None
    http: HttpConfig | None = None
    ledger: LedgerSettings = LedgerSettings()
    rules: RulesSettings = RulesSettings()
    channels: _Channels = Field(default_factory=_Channels)  # type: ignore[valid-type]  # type created at run time
    reconcile: ReconcileSettings = ReconcileSettings()
    templates: TemplateSettings = TemplateSettings()
    console_url: str = ""
    """URL of Flyte's console, such as `https://flyte.example.com/console`. Messages link to the execution there."""
    logs_url: str = Field("", pattern=r"^(https?://[^\s<>\"'|]+)?$")
    """URL of an execution's logs. `{project}`, `{domain}` and `{name}` in this URL are replaced with the execution's
    values."""
    watchdog: WatchdogConfig = WatchdogConfig()
    canary: CanaryConfig | None = None
    tracing: TracingConfig | None = None
    shutdown_timeout: Duration = timedelta(seconds=20)
    """Maximum time that the dispatcher waits at shutdown until the deliveries in flight are finished."""
    log: Literal["json", "console", "auto"] = "auto"
    """Format of the log. `auto` means readable text if the output is a terminal, and JSON otherwise."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of the log lines that are written. Only lines of the level `debug` contain recipients and mail
    addresses."""

    @model_validator(mode="after")
    def _reconcile_has_flyte_admin(self) -> Self:
        if "reconcile" in self.model_fields_set and self.rules.flyte_admin is None:
            raise ValueError("reconcile needs rules.flyte_admin: it is FlyteAdmin that knows of every execution")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del env_settings, dotenv_settings, file_secret_settings
        return _Environment(settings_cls), init_settings

    @property
    def channel_sections(self) -> Mapping[str, Any]:
        """Mapping from the name of each configured channel to its section of the settings."""
        sections = {name: getattr(self.channels, name) for name in CHANNEL_TYPES}
        return {name: section for name, section in sections.items() if section is not None}


def load(path: Path | None) -> Settings:
    """Read the settings from a file and from environment variables.

    If `path` is None, the environment variable `DISPATCHER_CONFIG` can name the file. Raises SettingsError. The error's
    message has one line for each problem, with the file and line or the environment variable.
    """
    if PLUGIN_PROBLEMS:
        raise SettingsError("\n".join(f"{problem}; fix that package, or uninstall it" for problem in PLUGIN_PROBLEMS))
    path = path or _path_from_environment()
    document = _read(path) if path is not None else Document({})
    base = path.parent if path is not None else Path()
    data = {"ledger": {}, **(document.data or {})}
    if isinstance(data["ledger"], dict):
        data["ledger"] = {"url": DEFAULT_LEDGER, **data["ledger"]}
    try:
        return Settings(**_resolve_paths(data, base))
    except ValidationError as error:
        raise SettingsError("\n".join(_problems(error, document, path))) from None


def _path_from_environment() -> Path | None:
    path = os.environ.get(CONFIG_VARIABLE)  # noqa: TID251 - only this module may read the environment
    return Path(path) if path else None


def _read(path: Path) -> Document:
    try:
        documents = parse(read_text(path))
    except Malformed as error:
        raise SettingsError(str(Problem(path, error.line, str(error)))) from None
    except OSError as error:
        raise SettingsError(f"{path}: can't be read: {error.strerror}") from None
    if len(documents) > 1 or not isinstance(documents[0].data if documents else {}, dict | None):
        raise SettingsError(f"{path}: the settings are one mapping: sections and their options")
    return documents[0] if documents else Document({})


def _resolve_paths(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """Return the file's options, in which each relative path starts at the file's folder `base`."""
    return {name: _resolve_value(name, value, base) for name, value in data.items()}


def _resolve_value(name: str, value: Any, base: Path) -> Any:
    match name, value:
        case "url", str() if value.startswith("sqlite") and ":///" in value:
            driver, _, file = value.partition(":///")
            return value if file == ":memory:" else f"{driver}:///{base / file}"
        case (("launch_plans" | "path"), (str() | list())):
            return [base / part for part in comma_list(value) if isinstance(part, str)]
        case _, str() if name.endswith("_file"):
            return base / value
        case _, dict():
            return _resolve_paths(value, base)
        case _, list():
            return [_resolve_paths(part, base) if isinstance(part, dict) else part for part in value]
        case _:
            return value


def _problems(error: ValidationError, document: Document, path: Path | None) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        where = problem["loc"]
        message = message_of(problem)
        if problem["type"] == "extra_forbidden":
            message = f"unknown option{_suggestion(where)}"
        elif problem["type"] == "missing":
            message = "must be set"
        lines.append(f"{_place(where, document, path)}{'.'.join(map(str, where))}: {message}")
    return lines


def _place(where: tuple[int | str, ...], document: Document, path: Path | None) -> str:
    variable = PREFIX + "__".join(map(str, where)).upper()
    if variable in os.environ or path is None:  # noqa: TID251 - only this module may read the environment
        return f"{variable}: " if variable in os.environ else ""  # noqa: TID251
    return f"{path}:{document.line_of(where)}: "


def _suggestion(where: tuple[int | str, ...]) -> str:
    """Return the end of the error message for an unknown option: the closest valid name, or all valid names."""
    model: Any = Settings
    for step in where[:-1]:
        if isinstance(step, int):  # skip an index into a list: `model` is already the model of the list's items
            continue
        field = model.model_fields.get(step) if hasattr(model, "model_fields") else None
        model = _model_in(field.annotation) if field is not None else None
    names = [info.alias or name for name, info in model.model_fields.items()] if model is not None else []
    close = difflib.get_close_matches(str(where[-1]), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}" if names else ""


def _model_in(annotation: Any) -> Any:
    """Return the pydantic model in a type annotation such as `Model | None`; None if the annotation has no model."""
    candidates = getattr(annotation, "__args__", (annotation,))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
