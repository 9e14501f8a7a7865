"""The settings: each option's name, default and meaning. Only this module reads environment variables.

Options come from a YAML file and from environment variables, which take precedence over the file. For example, the
variable for `kafka.bootstrap_servers` is `DISPATCHER__KAFKA__BOOTSTRAP_SERVERS`. Relative paths in the file start at
the file's folder.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from channels.common.comma_list import comma_list
from channels.common.network import check_http_url
from channels.common.secret import SecretFile
from channels.registry import CHANNEL_TYPES, PLUGIN_PROBLEMS
from dispatcher.errors import InvalidSettings, SettingsError
from dispatcher.flyte.admin import FlyteAdminConfig
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.model.rate_limit import RateLimit, RateOption
from dispatcher.model.retry import RetryPolicy
from dispatcher.observability.canary import CanaryConfig
from dispatcher.observability.watchdog import WatchdogConfig
from dispatcher.parsing.duration import Duration
from dispatcher.parsing.validation_errors import message_of
from dispatcher.parsing.yaml import Document, Malformed, Problem, parse, read_text, readable
from dispatcher.rendering import TemplateSet
from dispatcher.rendering.context import PROPELLER_LABELS
from dispatcher.tracing import TracingConfig
from dispatcher.web.config import HttpConfig

PREFIX = "DISPATCHER__"
CONFIG_VARIABLE = "DISPATCHER_CONFIG"
DEFAULT_LEDGER = "sqlite+aiosqlite:///./dispatcher.db"


_MESSAGES = {
    "missing": "must be set",
    "string_type": "must be text",
    "path_type": "must be the path of a file or folder",
    "url_type": "must be a URL",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "dict_type": "must be a mapping: option: value",
    "mapping_type": "must be a mapping: name: value",
    "model_type": "must be a mapping: option: value",
    "model_attributes_type": "must be a mapping: option: value",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "time_delta_type": "must be a duration: 500ms, 30s, 5m, 24h or 7d",
}
"""Messages instead of pydantic's, by pydantic's type of the error."""
_URL_WITH_PASSWORD = re.compile(r"[^:/]+://[^:/@]*:")
_LOGS_URL_NAMES = ("project", "domain", "name")


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where settings come from: the file, if there is one, and its content."""

    path: Path | None = None
    document: Document = field(default_factory=lambda: Document({}))

    def place(self, key: Sequence[str | int]) -> str:
        """Return the place of a setting, as the beginning of a message: `FILE:LINE: ` or `VARIABLE: `."""
        names = [PREFIX + "__".join(map(str, key[:length])).upper() for length in range(len(key), 0, -1)]
        variables = _variables()
        if names and names[0] in variables:
            return f"{names[0]}: "
        if not self._has(key):
            below = [name for name in variables if names and name.startswith(f"{names[0]}__")]
            for name in (*below, *(name for name in names if name in variables)):
                return f"{name}: "
        if self.path is None:
            return ""
        line = self.document.line_of(key) if key else 0
        return f"{readable(self.path)}:{line}: " if line else f"{readable(self.path)}: "

    def _has(self, key: Sequence[str | int]) -> bool:
        data = self.document.data
        for step in key:
            try:
                data = data[step]
            except (KeyError, IndexError, TypeError):
                return False
        return True


def _http_url_or_nothing(text: str) -> str:
    return check_http_url(text) if text else ""


def _logs_url(text: str) -> str:
    if any(sign in text for sign in "<>\"'|"):  # Slack's links and HTML attributes can't carry them
        raise ValueError("a URL has none of the characters < > \" ' |: write them percent-encoded")
    url = text
    for name in _LOGS_URL_NAMES:
        url = url.replace(f"{{{name}}}", "x")
    if "{" in url or "}" in url:
        raise ValueError("only {project}, {domain} and {name} are replaced")
    _http_url_or_nothing(url)
    return text


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
    retention: Duration = Field(timedelta(days=90), ge=timedelta(hours=1))
    """How long events and rejected messages are kept. After this time they are deleted, except events with waiting
    deliveries."""
    lease: Duration = Field(timedelta(minutes=3), ge=timedelta(seconds=3), le=timedelta(hours=1))
    """How long a worker owns a delivery that the worker has claimed. If the worker crashes, another worker claims the
    delivery after this time. An attempt may take two thirds of this time at most."""

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if self.password_file is not None and not self.url.startswith("postgres"):
            raise ValueError("password_file is for PostgreSQL; SQLite knows no passwords")
        if self.password_file is not None and _URL_WITH_PASSWORD.match(self.url):
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

    initial: Duration = Field(timedelta(seconds=2), gt=timedelta())
    """Initial back-off. The back-off doubles with each attempt. Before a retry, the dispatcher waits for a random
    time up to the back-off."""
    ceiling: Duration = Field(timedelta(minutes=10), gt=timedelta())
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
    """Reads lists and mappings in environment variables as JSON, with the limits of JSON files.

    A value that does not begin like a list or mapping, such as `a,b`, stays a string. Raises InvalidSettings for JSON
    that is broken.
    """

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        del field
        if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
            return value
        try:
            return parse(value, json=True)[0].data
        except Malformed as error:
            names = [name for name, content in _variables().items() if content == value]
            raise InvalidSettings(f"{names[0] if names else field_name}: {error}") from None


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
    console_url: Annotated[str, AfterValidator(_http_url_or_nothing)] = ""
    """URL of Flyte's console, such as `https://flyte.example.com/console`. Messages link to the execution there."""
    logs_url: Annotated[str, AfterValidator(_logs_url)] = ""
    """URL of an execution's logs. `{project}`, `{domain}` and `{name}` in this URL are replaced with the execution's
    values."""
    watchdog: WatchdogConfig = WatchdogConfig()
    canary: CanaryConfig | None = None
    tracing: TracingConfig | None = None
    shutdown_timeout: Duration = Field(timedelta(seconds=20), le=timedelta(days=1))
    """Maximum time that the dispatcher waits at shutdown until the deliveries in flight are finished."""
    log: Literal["json", "console", "auto"] = "auto"
    """Format of the log. `auto` means readable text if the output is a terminal, and JSON otherwise."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of the log lines that are written. Only lines of the level `debug` contain recipients and mail
    addresses."""

    _origin: _Origin = PrivateAttr(default_factory=_Origin)

    def located(self, problem: str) -> str:
        """Return a problem with its place in front: the file and the line of the key that begins the problem, or the
        environment variable. `problem`: a sentence such as `ledger.url: no such folder`.
        """
        key, colon, _ = problem.partition(": ")
        steps = tuple(key.split(".")) if colon and " " not in key else ()
        return f"{self._origin.place(steps if steps and steps[0] in Settings.model_fields else ())}{problem}"

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

    If `path` is None, the environment variable `DISPATCHER_CONFIG` can name the file. Raises InvalidSettings.
    """
    if PLUGIN_PROBLEMS:
        raise SettingsError("\n".join(f"{problem}; fix that package, or uninstall it" for problem in PLUGIN_PROBLEMS))
    path = path or _path_from_environment()
    origin = _Origin(path, _read(path) if path is not None else Document({}))
    base = path.parent if path is not None else Path()
    given = {name: value for name, value in (origin.document.data or {}).items() if value is not None}
    data = {"ledger": {}, **given}
    if isinstance(data["ledger"], dict):
        data["ledger"] = {"url": DEFAULT_LEDGER, **data["ledger"]}
    problems = [*_unknown_variables(), *_empty_sections(origin)]
    try:
        settings = Settings(**_resolve_paths(data, base))
    except ValidationError as error:
        problems += _problems(error, origin)
    if problems:
        raise InvalidSettings("\n".join(problems))
    settings._origin = origin  # noqa: SLF001 - pydantic knows private attributes only by a leading underscore
    return settings


def _variables() -> dict[str, str]:
    """Return the environment variables that are settings, with their names in upper case, as pydantic finds them."""
    items = os.environ.items()  # noqa: TID251 - only this module may read the environment
    return {name.upper(): value for name, value in items if name.upper().startswith(PREFIX)}


def _unknown_variables() -> Iterator[str]:
    """Yield a problem for each variable of a section that does not exist. pydantic reports unknown options in sections
    that exist, and ignores all other variables.
    """
    for name in _variables():
        section, _, rest = name.removeprefix(PREFIX).partition("__")
        if section.lower() not in Settings.model_fields:
            close = difflib.get_close_matches(section.lower(), Settings.model_fields, n=1)
            nearest = (
                "__".join([PREFIX.removesuffix("__"), close[0].upper(), *([rest] if rest else [])]) if close else ""
            )
            hint = f"did you mean {nearest}?" if close else f"there are {', '.join(Settings.model_fields)}"
            yield f"{name}: no such setting; {hint}"


def _empty_sections(origin: _Origin) -> Iterator[str]:
    """Yield a problem for each section of the file without a value, which would be the same as no section at all."""
    data = origin.document.data or {}
    channels = data.get("channels")
    sections: dict[tuple[str, ...], Any] = {(name,): value for name, value in data.items()}
    if isinstance(channels, dict):
        sections |= {("channels", name): value for name, value in channels.items()}
    for key, value in sections.items():
        if value is None:
            yield f"{origin.place(key)}{'.'.join(key)}: nothing is in it: write {{}} for its defaults, or remove it"


def _path_from_environment() -> Path | None:
    path = os.environ.get(CONFIG_VARIABLE)  # noqa: TID251 - only this module may read the environment
    return Path(path) if path else None


def _read(path: Path) -> Document:
    try:
        documents = parse(read_text(path))
    except Malformed as error:
        raise InvalidSettings(str(Problem(path, error.line, str(error)))) from None
    except OSError as error:
        raise InvalidSettings(f"{readable(path)}: can't be read: {error.strerror}") from None
    if len(documents) > 1 or not isinstance(documents[0].data if documents else {}, dict | None):
        raise InvalidSettings(f"{readable(path)}: the settings are one mapping: sections and their options")
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


def _problems(error: ValidationError, origin: _Origin) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False):
        where = tuple(step for step in problem["loc"] if step != "[key]")
        message = message_of(problem)
        if problem["type"] == "extra_forbidden":
            message = f"unknown option{_suggestion(where)}"
        elif message == problem["msg"]:
            message = _MESSAGES.get(problem["type"], message)
        key = f"{'.'.join(map(str, where))}: " if where else ""
        yield f"{origin.place(where)}{key}{message}"


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
