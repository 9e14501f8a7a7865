"""Sections of the settings: each option's name, default and meaning. Other sections are defined where they are used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, timedelta
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    create_model,
    model_validator,
)

from channels.common.comma_list import comma_list
from channels.common.secret import SecretFile
from channels.registry import CHANNEL_TYPES
from dispatcher.flyte.admin import FlyteAdminConfig
from dispatcher.holding.silences import LONGEST
from dispatcher.holding.windows import LOOK_AHEAD, Windows
from dispatcher.intake.source import REST
from dispatcher.model.hold import DigestOptions
from dispatcher.model.notification import named_recipients
from dispatcher.model.rate_limit import RateLimit, RateOption
from dispatcher.model.retry import RetryPolicy
from dispatcher.model.severity import PASSES_QUIET_HOURS, Severity
from dispatcher.parsing.duration import Duration
from dispatcher.parsing.time_zone import TimeZone
from dispatcher.rendering.context import PROPELLER_LABELS
from dispatcher.rendering.template_set import TemplateSet
from dispatcher.rules.matcher import MAX_PATTERN, Matcher, expression
from dispatcher.rules.owners import OWNER, mail_pattern

DEFAULT_LEDGER = "sqlite+aiosqlite:///./dispatcher.db"
_URL_WITH_PASSWORD = re.compile(r"[^:/]+://[^:/@]*:")


class Section(BaseModel):
    """The base class of the sections in this module."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Paths = Annotated[tuple[Path, ...], BeforeValidator(comma_list)]
Recipients = Annotated[tuple[str, ...], AfterValidator(named_recipients), BeforeValidator(comma_list)]


def _contact_name(name: str) -> str:
    if (named := named_recipients([name])[0]) == OWNER:
        raise ValueError(f"{OWNER} means the owner of an execution, so no contact has this name: choose another")
    if named != name:
        raise ValueError("a contact's name has no spaces around it: leave them out")
    return named


ContactName = Annotated[str, AfterValidator(_contact_name)]
"""A rule names a contact in the place of a recipient, so both have the same form."""


class IntakeSettings(Section):
    """How messages are read and recorded."""

    rest: Duration = Field(REST, ge=timedelta(), le=timedelta(seconds=1))
    """How long reading rests after a batch of fewer than 100 messages, counted from the time at which the batch was
    read. Larger batches cost less CPU for each message. A message after a longer silence is read at once. On SQLite,
    settlements wait as long for other writes. 0 switches the rest off."""


class LedgerSettings(Section):
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


class HoldsSettings(Section):
    """How long deliveries may be held back by silences, quiet hours and digests."""

    longest: Duration = Field(LONGEST, ge=timedelta(minutes=1), le=LOOK_AHEAD)
    """Maximum time that a delivery is held. Then it is sent, whatever would hold it on."""


class DigestSettings(Section):
    """Digests: when a contact gets many messages, further ones are included in one message."""

    after: int = Field(3, ge=1, le=1000)
    """The first so many messages to an address that are recorded within `within` are sent at once."""
    within: Duration = Field(timedelta(minutes=10), ge=timedelta(seconds=1), le=timedelta(days=1))
    """The time in which `after` messages must be recorded until digests begin."""
    every: Duration = Field(timedelta(minutes=15), ge=timedelta(seconds=1), le=timedelta(days=1))
    """How long a digest gathers messages. Digests end when one of them has gathered none."""

    @property
    def options(self) -> DigestOptions:
        return DigestOptions(self.after, self.within, self.every)


class ContactOptions(Section):
    """A contact: who somebody is. In addition to these options, each channel's name is an option with its recipients."""

    include: Recipients = ()
    """Other contacts whose recipients belong to this contact too."""
    timezone: TimeZone | None = None
    """Time zone of the times in messages to the contact's own recipients, instead of `templates.timezone`."""
    templates: Paths = ()
    """Template folders for messages to the contact's own recipients. They go before the folders of `templates`."""
    severity: Severity | None = None
    """The severity of every event for the contact's own recipients, if no route gives a higher one."""
    quiet: Windows = ()
    """Quiet hours: one window or a list of them, in which messages to the contact's own recipients are held. Messages
    whose severity is critical are not held."""
    digest: DigestSettings | None = None
    """Digests for the contact's own recipients, except on channels that page."""

    @property
    def recipients(self) -> tuple[tuple[str, str], ...]:
        """The recipients that the contact lists itself, each with its channel."""
        return tuple((name, recipient) for name in CHANNEL_TYPES for recipient in getattr(self, name))

    @model_validator(mode="after")
    def _lists_somebody(self) -> Self:
        if not self.recipients and not self.include:
            channels = ", ".join(CHANNEL_TYPES)
            raise ValueError(f"nobody is in it: give recipients of one of {channels}, or include other contacts")
        return self

    @model_validator(mode="after")
    def _may_be_held(self) -> Self:
        if self.quiet and self.severity == PASSES_QUIET_HOURS:
            raise ValueError(f"quiet has no effect: every event is {self.severity} for it, which passes quiet hours")
        return self


class OwnersSettings(Section):
    """Who the owner of an execution is. A route notifies the owner if its `notify` has `owner`. The first option that
    finds somebody decides, in this order.
    """

    map: Mapping[Annotated[str, Field(min_length=1)], ContactName] = Field(default_factory=dict)
    """Mapping from a principal, as FlyteAdmin names who started an execution, to a contact."""
    label: str = ""
    """Name of the label whose value may be the name of a contact."""
    pattern: Annotated[str, AfterValidator(lambda text: mail_pattern(text) if text else text)] = ""
    """The mail address of a principal, such as `{principal}@example.com`."""
    principals: Annotated[str, Field(max_length=MAX_PATTERN), AfterValidator(expression)] = ""
    """Regular expression in RE2's syntax for the principals that `pattern` is for, such as `[a-z]+`. It must match the
    whole principal, which may also be a service or the subject id of an identity provider."""
    fallback: ContactName | None = None
    """The contact that is notified if the owner is not known, or if no provider knows the owner's address."""

    @model_validator(mode="after")
    def _finds_somebody(self) -> Self:
        if not self.map and not self.label and not self.pattern:
            raise ValueError("it finds nobody: give map, label, or pattern and principals")
        if bool(self.pattern) != bool(self.principals):
            raise ValueError("give pattern and principals together: a principal may be a service or a subject id")
        return self


class RulesSettings(Section):
    """Where the rules come from."""

    launch_plans: Paths = ()
    """Files and folders with the rules of launch plans. The dispatcher reads a file again when the file changes."""
    routes: Paths = ()
    """Files and folders with routes: rules of your own, which say whom to notify of which events. The dispatcher reads a
    file again when the file changes."""
    flyte_admin: FlyteAdminConfig | None = None
    """FlyteAdmin, if the dispatcher asks it for effective rules. Effective rules take precedence over rule files."""


class ReconcileSettings(Section):
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


class TemplateSettings(Section):
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
    timezone: TimeZone = UTC
    """Time zone of the times in mails and PagerDuty's incidents: a name of the IANA database, such as `Europe/Berlin`.
    Slack and Teams show each reader the time in the reader's own zone."""


class DeliveryOptions(Section):
    """The options that every channel has, in addition to the channel's own options."""

    retry: RetryPolicy = RetryPolicy()
    concurrency: int = Field(20, ge=1, le=1000)
    """Maximum number of deliveries in flight on this channel. One destination, such as a Slack channel or a PagerDuty
    service, gets at most a quarter of them."""
    claim_ahead: int = Field(0, ge=0, le=1000)
    """Maximum number of deliveries that are claimed before a slot is free for them, so that no slot waits for the
    ledger. If the dispatcher crashes, these may be sent late. Only without a rate limit (`rate: none`)."""
    rate: RateOption
    """Rate limit for one destination: a Slack channel, a PagerDuty service or the mail relay. All replicas share
    the limit."""
    burst: int
    """Maximum number of messages that a destination may get at once. After that, `rate` limits further messages."""
    fallback_recipients: Recipients = ()
    """The contacts that are notified when a delivery of this channel is dead."""

    @model_validator(mode="after")
    def _claims_ahead_without_rate(self) -> Self:
        if self.claim_ahead and self.rate is not None:
            raise ValueError("claim_ahead needs rate: none, because what the rate limit admits must be sent at once")
        return self

    def rate_limit(self) -> RateLimit:
        """Return the limits of one destination. At most a quarter of `concurrency` is in flight to a destination."""
        return RateLimit(rate=self.rate, burst=self.burst, max_in_flight=max(self.concurrency // 4, 1))


class SeverityRule(Matcher):
    """The severity of the events for which all other keys hold."""

    severity: Severity


class SeverityOptions(DeliveryOptions):
    """The options of channels whose content has a severity."""

    severities: tuple[SeverityRule, ...] = ()
    """Rules that determine the value of `severity` in templates. The first rule whose keys hold is used. If there is
    none, the value depends on the phase."""


def contact_section() -> type[ContactOptions]:
    """Create the pydantic model of one contact, with an option for each registered channel."""
    channels: dict[str, Any] = {
        name: (Recipients, Field((), description=f"Recipients on the channel `{name}`, written as in a rule."))
        for name in CHANNEL_TYPES
    }
    return create_model("ContactSettings", __base__=ContactOptions, __doc__=ContactOptions.__doc__, **channels)


def channel_sections() -> type[BaseModel]:
    """Create the pydantic model of the section `channels`, with one optional section for each registered channel."""
    sections: dict[str, Any] = {
        name: (
            create_model(
                f"{name.title()}Settings",
                __base__=(SeverityOptions if kind.severities else DeliveryOptions, kind.config),
                rate=(RateOption, Field(kind.rate, validate_default=True)),
                burst=(int, Field(kind.burst, ge=1, le=10_000)),
            )
            | None,
            None,
        )
        for name, kind in CHANNEL_TYPES.items()
    }
    return create_model("ChannelSettings", __base__=Section, **sections)
