"""A notification of a launch plan or of an execution's Options: phases, a channel and its recipients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from dispatcher.model.phase import Phase

CHANNEL_FIELDS = {
    "email": "email",
    "slack": "slack",
    "pager_duty": "pagerduty",
    "pagerDuty": "pagerduty",
    "pagerduty": "pagerduty",
    "teams": "teams",
    "webhook": "webhook",
}
"""Mapping from a field of the notification to the channel: first the fields of `flyteidl.admin.Notification`, in each
spelling, then the fields for channels that Flyte does not have."""
FIELDS = {channel: field for field, channel in reversed(CHANNEL_FIELDS.items())}
"""Mapping from a channel to the first of its fields. Other channels have no field."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Matches a control character. No name or address has one, and databases can't store or search text with NUL."""
MAX_RECIPIENT = 512
"""Maximum number of characters of a recipient, and of a destination's name in the ledger. A mail address has at most
320 characters (RFC 5321, 4.5.3.1), and the URL of a webhook seldom more."""
MAX_CHANNEL = 32
"""Maximum number of characters of a channel's name in the ledger."""
_RECIPIENT_FIELDS = ("recipients_email", "recipientsEmail", "recipients")


MAX_RULES = 100
"""Maximum number of rules that apply to one event. With more rules, one event could keep a replica busy for minutes."""
MAX_RECIPIENTS = 1000
"""Maximum number of recipients in these rules together. A recipient that several rules name counts each time,
a contact once with all its recipients."""


def excess(rules: int, recipients: int, *, whose: str = "the event") -> str:
    """Return a sentence if an event has more rules or recipients than it may have; otherwise an empty text."""
    if rules <= MAX_RULES and recipients <= MAX_RECIPIENTS:
        return ""
    return (
        f"{whose} has {rules:,} rules with {recipients:,} recipients: it may have {MAX_RULES:,} rules with "
        f"{MAX_RECIPIENTS:,} recipients"
    )


def excess_of_data(notifications: Any) -> str:
    """The same as `excess`, for notifications that are not validated yet, in any form that `Notification` reads.

    So a message with many notifications is refused before the time is spent to validate them all.
    """
    if not isinstance(notifications, list | tuple):
        return ""
    lists = [
        body[field]
        for one in notifications
        if isinstance(one, dict)
        for body in (one, *one.values())
        if isinstance(body, dict)
        for field in _RECIPIENT_FIELDS
        if isinstance(body.get(field), list | tuple)
    ]
    return excess(len(notifications), sum(map(len, lists)))


def named_recipients(recipients: Sequence[str]) -> tuple[str, ...]:
    """Return the recipients without spaces around them. Raises ValueError if a text can't be a recipient."""
    named = tuple(recipient.strip() for recipient in recipients)
    if not all(named):
        raise ValueError("an empty recipient")
    if any(map(_CONTROL.search, named)):
        raise ValueError("a recipient with control characters")
    if (longest := max(map(len, named), default=0)) > MAX_RECIPIENT:
        raise ValueError(f"a recipient of {longest} characters: at most {MAX_RECIPIENT} are allowed")
    return named


class Notification(BaseModel):
    """The recipients to notify, the channel, and the terminal phases in which to notify them.

    Reads Flyte's form, `{phases: […], email|slack|pagerDuty: {recipientsEmail: […], template}}`, in snake_case and
    lowerCamelCase, also with the fields `teams` and `webhook`, which Flyte does not have. Any other channel is written
    `{phases: […], channel: NAME, recipients: […]}`.

    Rejects what flytekit and flyteadmin reject (flytekit `core/notification.py`, flyteadmin
    `notifications/validators`): no phases, a phase that is not terminal, no recipients, an empty recipient, no channel
    or several. Also rejects channels and recipients with control characters, and recipients of more than
    `MAX_RECIPIENT` characters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    phases: Annotated[tuple[Annotated[Phase, BeforeValidator(Phase.parse)], ...], Field()]
    channel: Annotated[str, Field(max_length=MAX_CHANNEL)]
    recipients: tuple[str, ...]
    template: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_flyte_shape(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError("a notification is a mapping with phases and one channel")  # noqa: TRY004
        if "channel" in data:
            return data
        fields = [field for field in data if field != "phases"]
        unknown = [field for field in fields if field not in CHANNEL_FIELDS]
        if unknown:
            raise ValueError(
                f"unknown channel {str(unknown[0])[:60]!r}; a notification names one of email, slack, pager_duty, "
                "teams, webhook; another as channel: NAME, recipients: […]"
            )
        given = [field for field in fields if data[field] is not None]
        if len(given) != 1:
            named = ", ".join(given) or "none"
            raise ValueError(f"a notification names exactly one channel (email, slack or pager_duty), not {named}")
        body = data[given[0]]
        if not isinstance(body, dict):
            raise ValueError(f"{given[0]} must be a mapping with recipients_email")  # noqa: TRY004
        listed = [field for field in _RECIPIENT_FIELDS if body.get(field)]
        if len(listed) > 1:
            raise ValueError(f"{' and '.join(listed)} say the same: keep one of them")
        recipients = body[listed[0]] if listed else ()
        return {
            "phases": data.get("phases") or (),
            "channel": CHANNEL_FIELDS[given[0]],
            "recipients": recipients,
            "template": body.get("template") or None,
        }

    @field_validator("phases")
    @classmethod
    def _phases_are_terminal(cls, phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
        if not phases:
            raise ValueError("no phases: name at least one of SUCCEEDED, FAILED, ABORTED, TIMED_OUT")
        for phase in phases:
            if not phase.terminal:
                raise ValueError(
                    f"{phase} is not a terminal phase: only SUCCEEDED, FAILED, ABORTED and TIMED_OUT notify"
                )
        return phases

    @field_validator("channel")
    @classmethod
    def _channel_is_printable(cls, channel: str) -> str:
        if _CONTROL.search(channel):
            raise ValueError("a channel with control characters")
        return channel

    @field_validator("recipients")
    @classmethod
    def _recipients_are_named(cls, recipients: tuple[str, ...]) -> tuple[str, ...]:
        if not recipients:
            raise ValueError("no recipients: name at least one in recipients_email")
        return named_recipients(recipients)
