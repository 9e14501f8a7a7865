"""Every option, once: its name, its default, what it means. The only reader of the environment.

A YAML file gives the options; each can also come from the environment, which wins:
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

from channels.common.comma_list import listed
from channels.common.secret import SecretFile
from channels.registry import CHANNEL_TYPES, PROBLEMS
from dispatcher.errors import SettingsError
from dispatcher.flyte.admin import FlyteAdminConfig
from dispatcher.intake.kafka.consumer import KafkaConfig
from dispatcher.model.rate_limit import RateLimit, RateOption
from dispatcher.model.retry import RetryPolicy
from dispatcher.observability.canary import CanaryConfig
from dispatcher.observability.watchdog import WatchdogConfig
from dispatcher.parsing.duration import Duration
from dispatcher.parsing.yaml import Document, Malformed, parse
from dispatcher.rendering import Override
from dispatcher.tracing import TracingConfig
from dispatcher.web.config import HttpConfig

PREFIX = "DISPATCHER__"
CONFIG_VARIABLE = "DISPATCHER_CONFIG"
DEFAULT_LEDGER = "sqlite+aiosqlite:///./dispatcher.db"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Paths = Annotated[tuple[Path, ...], BeforeValidator(listed)]
Recipients = Annotated[tuple[str, ...], BeforeValidator(listed)]


class LedgerSettings(_Section):
    """Where the durable truth lies."""

    url: str = DEFAULT_LEDGER
    """`sqlite+aiosqlite:///FILE`, or `postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE` for several replicas."""
    password_file: SecretFile | None = None
    """PostgreSQL's password, in place of one in the URL; read at each connection, so it may rotate."""
    timeout: Duration = Field(timedelta(seconds=30), ge=timedelta(seconds=1), le=timedelta(minutes=10))
    """How long one statement may take on PostgreSQL, and so how long one that hangs is waited for."""
    retention: Duration = timedelta(days=90)
    """What is settled and older is forgotten, and so are rejected messages."""
    lease: Duration = Field(timedelta(minutes=3), ge=timedelta(seconds=3), le=timedelta(hours=1))
    """How long a claimed delivery is a worker's own. One that dies leaves its deliveries to others after this;
    no attempt may last longer than two thirds of it."""

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if self.password_file is not None and not self.url.startswith("postgres"):
            raise ValueError("password_file is for PostgreSQL; SQLite knows no passwords")
        if self.password_file is not None and urlsplit(self.url).password is not None:
            raise ValueError("give the password in url or in password_file, not both")
        return self


class RecipientAlias(RootModel[Mapping[str, str]]):
    """A channel and its recipient: `{teams: dev}`."""

    model_config = ConfigDict(frozen=True)

    @property
    def one(self) -> tuple[str, str]:
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
    """Files and folders of launch plans; read again when they change."""
    flyte_admin: FlyteAdminConfig | None = None
    """Where the engine itself is asked, before any file."""
    recipients: Mapping[str, RecipientAlias] = Field(default_factory=dict)
    """What recipients in rules stand for on another channel: `{"#dev": {teams: dev}}`. Flyte's launch plans know three
    channels; so they reach the others."""


class ReconcileSettings(_Section):
    """Whether FlyteAdmin is asked for executions whose event was lost before Kafka; only where it is configured."""

    every: Duration = Field(timedelta(minutes=10), ge=timedelta(), le=timedelta(days=1))
    """How often; 0 switches it off."""
    window: Duration = Field(timedelta(hours=24), ge=timedelta(minutes=1))
    """How far back is looked at most, as after a long stop."""
    patience: Duration = Field(timedelta(minutes=5), ge=timedelta())
    """How long after an execution's end its event is not missed yet: Kafka may be behind."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.window <= self.patience:
            raise ValueError("window must be longer than patience, or nothing is ever looked at")
        return self


class TemplateSettings(_Section):
    """Where templates come from besides the built-in ones."""

    path: Paths = ()
    """Folders laid out as the built-in `templates/`; a file here replaces the built-in one of its name."""
    match: tuple[Override, ...] = ()
    """Folders for some messages alone; they go before `path`, the first that holds before the next."""


class RetrySettings(_Section):
    """How patient a channel is."""

    initial: Duration = timedelta(seconds=2)
    """The bound of the first wait; doubles with each attempt, and the wait is drawn below it."""
    ceiling: Duration = timedelta(minutes=10)
    """The bound never grows past this."""
    deadline: Duration = timedelta(hours=24)
    """Past this a delivery is dead."""

    def policy(self) -> RetryPolicy:
        return RetryPolicy(initial=self.initial, ceiling=self.ceiling, deadline=self.deadline)


class DeliveryOptions(BaseModel):
    """What every channel's section has beside the channel's own options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    retry: RetrySettings = RetrySettings()
    concurrency: int = Field(20, ge=1, le=1000)
    """How many messages are on their way at once."""
    rate: RateOption
    """How many messages one destination takes: a Slack channel, a PagerDuty service, the mail relay."""
    burst: int
    """So many of them may go at once after a quiet while."""
    fallback_recipients: Mapping[str, Recipients] = Field(default_factory=dict)
    """By channel: who is told of a delivery that has died."""

    def pace(self) -> RateLimit:
        """A destination of its own never has more than a quarter of the hands."""
        return RateLimit(rate=self.rate, burst=self.burst, at_once=max(self.concurrency // 4, 1))


def _channel_sections() -> type[BaseModel]:
    """One optional section a channel, made from the catalog."""
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
    """Lists and mappings are JSON in the environment; what is no JSON is a plain string, as `a,b` for a list."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class Settings(BaseSettings):
    """The whole configuration. A section that is absent is switched off."""

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
    channels: _Channels = Field(default_factory=_Channels)  # type: ignore[valid-type]  # made from the catalog above
    reconcile: ReconcileSettings = ReconcileSettings()
    templates: TemplateSettings = TemplateSettings()
    console_url: str = ""
    """Flyte's console, as `https://flyte.example.com/console`: messages link to the execution's page."""
    logs_url: str = Field("", pattern=r"^(https?://[^\s<>\"'|]+)?$")
    """Where an execution's logs are: an address with `{project}`, `{domain}` and `{name}` in it, to be filled in."""
    watchdog: WatchdogConfig = WatchdogConfig()
    canary: CanaryConfig | None = None
    tracing: TracingConfig | None = None
    shutdown_timeout: Duration = timedelta(seconds=20)
    """How long a stop waits for messages that are on their way."""
    log: Literal["json", "console", "auto"] = "auto"
    """`auto`: readable at a terminal, JSON elsewhere."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """`debug` names recipients and addresses, which no other level does."""

    @model_validator(mode="after")
    def _reconciles_with_someone(self) -> Self:
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
        """The channels that are switched on, by name."""
        sections = {name: getattr(self.channels, name) for name in CHANNEL_TYPES}
        return {name: section for name, section in sections.items() if section is not None}


def load(path: Path | None) -> Settings:
    """Read the settings from a file and the environment; without a file, from the environment alone.

    Raises SettingsError: one readable message, a line for each problem, with file and line or the key.
    """
    if PROBLEMS:
        raise SettingsError("\n".join(f"{problem}; mend that package, or take it away" for problem in PROBLEMS))
    path = path or _path_from_environment()
    document = _read(path) if path is not None else Document({})
    base = path.parent if path is not None else Path()
    data = {"ledger": {}, **(document.data or {})}
    if isinstance(data["ledger"], dict):
        data["ledger"] = {"url": DEFAULT_LEDGER, **data["ledger"]}
    try:
        return Settings(**_rooted(data, base))
    except ValidationError as error:
        raise SettingsError("\n".join(_problems(error, document, path))) from None


def _path_from_environment() -> Path | None:
    given = os.environ.get(CONFIG_VARIABLE)  # noqa: TID251 - the one place
    return Path(given) if given else None


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


def _rooted(data: dict[str, Any], base: Path) -> dict[str, Any]:
    """The file's options with its relative paths starting at its own folder, wherever we were started."""
    return {name: _rooted_value(name, value, base) for name, value in data.items()}


def _rooted_value(name: str, value: Any, base: Path) -> Any:
    match name, value:
        case "url", str() if value.startswith("sqlite") and ":///" in value:
            driver, _, file = value.partition(":///")
            return value if file == ":memory:" else f"{driver}:///{base / file}"
        case (("launch_plans" | "path"), (str() | list())):
            return [base / part for part in listed(value) if isinstance(part, str)]
        case _, str() if name.endswith("_file"):
            return base / value
        case _, dict():
            return _rooted(value, base)
        case _, list():
            return [_rooted(part, base) if isinstance(part, dict) else part for part in value]
        case _:
            return value


def _problems(error: ValidationError, document: Document, path: Path | None) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        where = problem["loc"]
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown option{_meant(where)}"
        elif problem["type"] == "missing":
            message = "must be set"
        lines.append(f"{_place(where, document, path)}{'.'.join(map(str, where))}: {message}")
    return lines


def _place(where: tuple[int | str, ...], document: Document, path: Path | None) -> str:
    variable = PREFIX + "__".join(map(str, where)).upper()
    if variable in os.environ or path is None:  # noqa: TID251 - to say whose option it was
        return f"{variable}: " if variable in os.environ else ""  # noqa: TID251
    return f"{path}:{document.line_of(where)}: "


def _meant(where: tuple[int | str, ...]) -> str:
    """A guess at what a misspelt option was meant to be."""
    model: Any = Settings
    for step in where[:-1]:
        if isinstance(step, int):  # one of a list, whose model was found already
            continue
        field = model.model_fields.get(step) if hasattr(model, "model_fields") else None
        model = _model_in(field.annotation) if field is not None else None
    names = [info.alias or name for name, info in model.model_fields.items()] if model is not None else []
    close = difflib.get_close_matches(str(where[-1]), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names)}" if names else ""


def _model_in(annotation: Any) -> Any:
    """The model in `Model` or `Model | None`."""
    candidates = getattr(annotation, "__args__", (annotation,))
    return next((kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
