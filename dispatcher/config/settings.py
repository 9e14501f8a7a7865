"""All settings, and how they are read. Only this package reads environment variables.

Options come from a YAML file and from environment variables, which take precedence over the file. For example, the
variable for `kafka.bootstrap_servers` is `DISPATCHER__KAFKA__BOOTSTRAP_SERVERS`. Relative paths in the file start at
the file's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from channels.common.comma_list import comma_list
from channels.common.network import check_http_url
from channels.registry import CHANNEL_TYPES, PLUGIN_PROBLEMS
from dispatcher.config.mistakes import PREFIX, Origin, empty_sections, sentences, unknown_variables, variables
from dispatcher.config.sections import (
    DEFAULT_LEDGER,
    ContactName,
    ContactOptions,
    HoldsSettings,
    IntakeSettings,
    LedgerSettings,
    OwnersSettings,
    ReconcileSettings,
    RulesSettings,
    TemplateSettings,
    channel_sections,
    contact_section,
)
from dispatcher.errors import InvalidSettings, SettingsError
from dispatcher.intake.kafka.config import KafkaConfig
from dispatcher.observability.canary import CanaryConfig
from dispatcher.observability.watchdog import WatchdogConfig
from dispatcher.parsing.duration import Duration
from dispatcher.parsing.yaml import Document, Malformed, Problem, parse, read_text, readable
from dispatcher.tracing import TracingConfig
from dispatcher.web.config import HttpConfig

CONFIG_VARIABLE = "DISPATCHER_CONFIG"


def _http_url_or_nothing(text: str) -> str:
    return check_http_url(text) if text else ""


def _logs_url(text: str) -> str:
    if any(sign in text for sign in "<>\"'|"):  # Slack's links and HTML attributes can't carry them
        raise ValueError("a URL has none of the characters < > \" ' |: write them percent-encoded")
    url = re.sub(r"\{(project|domain|name)\}", "x", text)
    if "{" in url or "}" in url:
        raise ValueError("only {project}, {domain} and {name} are replaced")
    _http_url_or_nothing(url)
    return text


_Channels = channel_sections()
_Contact = contact_section()


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
            names = [name for name, content in variables().items() if content == value]
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
    intake: IntakeSettings = IntakeSettings()
    ledger: LedgerSettings = LedgerSettings()
    rules: RulesSettings = RulesSettings()
    channels: _Channels = Field(default_factory=_Channels)  # type: ignore[valid-type]  # type created at run time
    contacts: Mapping[ContactName, _Contact] = Field(default_factory=dict)  # type: ignore[valid-type]  # type created at run time
    """Mapping from a contact's name to its recipients. A recipient in a rule that equals a contact's name means all of
    the contact's recipients."""
    owners: OwnersSettings | None = None
    holds: HoldsSettings = HoldsSettings()
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

    _origin: Origin = PrivateAttr(default_factory=Origin)

    def place(self, *key: str) -> str:
        """Return the place of a setting: `FILE:LINE`, or the environment variable; empty if nothing gives it."""
        return self._origin.place(key).removesuffix(": ")

    def located(self, problem: str) -> str:
        """Return a problem with its place in front: the file and the line of the key that begins the problem, or the
        environment variable. `problem`: a sentence such as `ledger.url: no such folder`.
        """
        key, colon, _ = problem.partition(": ")
        steps = self._origin.steps(key) if colon else ()
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
        *_: PydanticBaseSettingsSource,
        **_others: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return _Environment(settings_cls), init_settings

    @property
    def channel_sections(self) -> Mapping[str, Any]:
        """Mapping from the name of each configured channel to its section of the settings."""
        sections = {name: getattr(self.channels, name) for name in CHANNEL_TYPES}
        return {name: section for name, section in sections.items() if section is not None}

    @property
    def contact_sections(self) -> Mapping[str, ContactOptions]:
        """Mapping from each contact's name to its section of the settings."""
        return self.contacts


def load(path: Path | None) -> Settings:
    """Read the settings from a file and from environment variables.

    If `path` is None, the environment variable `DISPATCHER_CONFIG` can name the file. Raises InvalidSettings.
    """
    if PLUGIN_PROBLEMS:
        raise SettingsError("\n".join(f"{problem}; fix that package, or uninstall it" for problem in PLUGIN_PROBLEMS))
    named = os.environ.get(CONFIG_VARIABLE)  # noqa: TID251 - only this package may read the environment
    path = path or (Path(named) if named else None)
    origin = Origin(path, _read(path) if path is not None else Document({}))
    base = path.parent if path is not None else Path()
    given = {name: value for name, value in (origin.document.data or {}).items() if value is not None}
    data = {"ledger": {}, **given}
    if isinstance(data["ledger"], dict):
        data["ledger"] = {"url": DEFAULT_LEDGER, **data["ledger"]}
    problems = [*unknown_variables(Settings), *empty_sections(origin)]
    try:
        settings = Settings(**_resolve_paths(data, base))
    except ValidationError as error:
        problems += sentences(error, Settings, origin)
    if problems:
        raise InvalidSettings("\n".join(problems))
    settings._origin = origin  # noqa: SLF001 - pydantic knows private attributes only by a leading underscore
    return settings


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
        case (("map" | "labels"), dict()):  # its keys are principals or labels, whatever they are called
            return value
        case "url", str() if value.startswith("sqlite") and ":///" in value:
            driver, _, file = value.partition(":///")
            return value if file == ":memory:" else f"{driver}:///{base / file}"
        case (("launch_plans" | "routes" | "path" | "templates"), (str() | list())):
            return [base / part for part in comma_list(value) if isinstance(part, str)]
        case _, str() if name.endswith("_file"):
            return base / value
        case _, dict():
            return _resolve_paths(value, base)
        case _, list():
            return [_resolve_paths(part, base) if isinstance(part, dict) else part for part in value]
        case _:
            return value
