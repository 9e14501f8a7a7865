"""The settings: each option's name, default and meaning. The only module that reads environment variables.

Options come from a YAML file. Each can also be an environment variable, which takes precedence:
`kafka.bootstrap_servers` is `DISPATCHER__KAFKA__BOOTSTRAP_SERVERS`. Relative paths start at the file's folder.
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
from dispatcher.parsing.yaml import Document, Malformed, parse
from dispatcher.rendering import TemplateSet
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
    """`sqlite+aiosqlite:///FILE`, or `postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE` for several replicas."""
    password_file: SecretFile | None = None
    """File with PostgreSQL's password, if `url` contains none. Read at each connection, so the password may rotate."""
    timeout: Duration = Field(timedelta(seconds=30), ge=timedelta(seconds=1), le=timedelta(minutes=10))
    """Maximum time of one PostgreSQL statement. A statement that takes longer is cancelled and retried."""
    retention: Duration = timedelta(days=90)
    """How long events and rejected messages are kept. Older ones are deleted, except events with waiting deliveries."""
    lease: Duration = Field(timedelta(minutes=3), ge=timedelta(seconds=3), le=timedelta(hours=1))
    """How long a worker owns a delivery that it claimed. If the worker dies, another worker claims the delivery after
    this time. An attempt may take two thirds of this time at most."""

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if self.password_file is not None and not self.url.startswith("postgres"):
            raise ValueError("password_file is for PostgreSQL; SQLite knows no passwords")
        if self.password_file is not None and urlsplit(self.url).password is not None:
            raise ValueError("give the password in url or in password_file, not both")
        return self


class RecipientAlias(RootModel[Mapping[str, str]]):
    """A channel and a recipient on it, such as `{teams: dev}`."""

    model_config = ConfigDict(frozen=True)

    @property
    def target(self) -> tuple[str, str]:
        """The channel and the recipient."""
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
    """Files and folders with the rules of launch plans; read again when they change."""
    flyte_admin: FlyteAdminConfig | None = None
    """Ask FlyteAdmin for an execution's effective rules; they take precedence over rule files."""
    recipients: Mapping[str, RecipientAlias] = Field(default_factory=dict)
    """Redirects recipients in rules to another channel, as in `{"#dev": {teams: dev}}`. Flyte's launch plans can name
    only email, Slack and PagerDuty recipients; this option redirects them to other channels."""


class ReconcileSettings(_Section):
    """Looks in FlyteAdmin for finished executions whose event was lost before Kafka. Needs `rules.flyte_admin`."""

    every: Duration = Field(timedelta(minutes=10), ge=timedelta(), le=timedelta(days=1))
    """How often to look; 0 switches reconciliation off."""
    look_back: Duration = Field(timedelta(hours=24), ge=timedelta(minutes=1))
    """Maximum time to look back, for example after a long outage."""
    min_age: Duration = Field(timedelta(minutes=5), ge=timedelta())
    """Time to wait after an execution has finished. If its event has not arrived by then, it counts as lost; before
    that, the event may still be in Kafka."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.look_back <= self.min_age:
            raise ValueError("look_back must be longer than min_age, or no execution is ever reconciled")
        return self


class TemplateSettings(_Section):
    """Templates that replace the built-in ones."""

    path: Paths = ()
    """Folders with the layout of the built-in `templates/`; a file in them replaces the built-in file of that name."""
    match: tuple[TemplateSet, ...] = ()
    """Folders for some messages only. They take precedence over `path`, and earlier entries over later ones."""


class RetrySettings(_Section):
    """When a failed delivery is retried, and when it is dead."""

    initial: Duration = timedelta(seconds=2)
    """Initial back-off. It doubles with each attempt; each wait is a random time up to the back-off."""
    ceiling: Duration = timedelta(minutes=10)
    """Maximum back-off."""
    deadline: Duration = timedelta(hours=24)
    """Total time before giving up; the delivery is then dead."""

    def policy(self) -> RetryPolicy:
        return RetryPolicy(initial=self.initial, ceiling=self.ceiling, deadline=self.deadline)


class DeliveryOptions(BaseModel):
    """The options that every channel has, besides its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retry: RetrySettings = RetrySettings()
    concurrency: int = Field(20, ge=1, le=1000)
    """Maximum number of deliveries in flight; one Slack channel or PagerDuty service gets at most a quarter of them."""
    rate: RateOption
    """Rate limit of one destination: a Slack channel, a PagerDuty service, the mail relay. Replicas share the limit."""
    burst: int
    """Maximum number of messages that a destination may get at once; after them, `rate` is the limit."""
    fallback_recipients: Mapping[str, Recipients] = Field(default_factory=dict)
    """Mapping from a channel to the recipients on it who are notified when a delivery is dead."""

    def rate_limit(self) -> RateLimit:
        """The limits of one destination: `rate`, `burst`, and a quarter of `concurrency`."""
        return RateLimit(rate=self.rate, burst=self.burst, max_in_flight=max(self.concurrency // 4, 1))


def _channel_sections() -> type[BaseModel]:
    """The model of `channels`: one optional section for each channel in the registry."""
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
    """Reads lists and mappings as JSON; a value that is not JSON stays a string, such as `a,b` for a list."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class Settings(BaseSettings):
    """All settings. A section that is absent is switched off."""

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
    channels: _Channels = Field(default_factory=_Channels)  # type: ignore[valid-type]  # the type is created above
    reconcile: ReconcileSettings = ReconcileSettings()
    templates: TemplateSettings = TemplateSettings()
    console_url: str = ""
    """URL of Flyte's console, such as `https://flyte.example.com/console`, for links to the execution."""
    logs_url: str = Field("", pattern=r"^(https?://[^\s<>\"'|]+)?$")
    """URL of an execution's logs. Its `{project}`, `{domain}` and `{name}` are replaced with those of the execution."""
    watchdog: WatchdogConfig = WatchdogConfig()
    canary: CanaryConfig | None = None
    tracing: TracingConfig | None = None
    shutdown_timeout: Duration = timedelta(seconds=20)
    """How long shutdown waits for in-flight deliveries."""
    log: Literal["json", "console", "auto"] = "auto"
    """Format of the log. `auto`: readable text at a terminal, otherwise JSON."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of the lines to log. Only lines of the level `debug` name recipients and mail addresses."""

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
        """The sections of the configured channels, by name."""
        sections = {name: getattr(self.channels, name) for name in CHANNEL_TYPES}
        return {name: section for name, section in sections.items() if section is not None}


def load(path: Path | None) -> Settings:
    """Read the settings from a file and the environment. Without a path, `DISPATCHER_CONFIG` may name the file.

    Raises SettingsError. Its message has one line for each problem, with the file and line or the environment variable.
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
    path = os.environ.get(CONFIG_VARIABLE)  # noqa: TID251 - this module alone may read the environment
    return Path(path) if path else None


def _read(path: Path) -> Document:
    try:
        documents = parse(path.read_text(encoding="utf-8"))
    except Malformed as error:
        raise SettingsError(f"{path}:{error.line}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: can't be read: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if len(documents) > 1 or not isinstance(documents[0].data if documents else {}, dict | None):
        raise SettingsError(f"{path}: the settings are one mapping: sections and their options")
    return documents[0] if documents else Document({})


def _resolve_paths(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The file's options. Relative paths in them become relative to the file's folder, not to the working directory."""
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
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        where = problem["loc"]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown option{_suggestion(where)}"
        elif problem["type"] == "missing":
            message = "must be set"
        lines.append(f"{_place(where, document, path)}{'.'.join(map(str, where))}: {message}")
    return lines


def _place(where: tuple[int | str, ...], document: Document, path: Path | None) -> str:
    variable = PREFIX + "__".join(map(str, where)).upper()
    if variable in os.environ or path is None:  # noqa: TID251 - this module alone may read the environment
        return f"{variable}: " if variable in os.environ else ""  # noqa: TID251
    return f"{path}:{document.line_of(where)}: "


def _suggestion(where: tuple[int | str, ...]) -> str:
    """The end of the message about an unknown option: the closest valid name, or all valid names."""
    model: Any = Settings
    for step in where[:-1]:
        if isinstance(step, int):  # an index into a list; the previous step found the items' model
            continue
        field = model.model_fields.get(step) if hasattr(model, "model_fields") else None
        model = _model_in(field.annotation) if field is not None else None
    names = [info.alias or name for name, info in model.model_fields.items()] if model is not None else []
    close = difflib.get_close_matches(str(where[-1]), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}" if names else ""


def _model_in(annotation: Any) -> Any:
    """Return the model in the annotation `Model` or `Model | None`; None if the annotation contains no model."""
    candidates = getattr(annotation, "__args__", (annotation,))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
