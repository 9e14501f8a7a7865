"""Traces: one an event, from the message that told of it to what was sent. Without `tracing:` in the settings, nothing.

What the rooms see is here, and does nothing by itself; `spans` does it, needs the extra `tracing`, and is the only
module that names OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from dispatcher.errors import SettingsError

__all__ = ["OFF", "UNSEEN", "Span", "Tracing", "TracingConfig", "open_tracing"]

Fact = str | int
Brought = Callable[[], Mapping[str, str]]
"""Looks for the W3C trace context that a message brings: `traceparent`, `tracestate`."""


class TracingConfig(BaseModel):
    """Where spans go, by OTLP over HTTP; of what is not said here OpenTelemetry's own variables (`OTEL_…`) may tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(pattern=r"^https?://[^\s/]+")
    """The collector, as `http://collector:4318`; `/v1/traces` is added where no path is given."""
    service_name: str = Field("flyte-notification-dispatcher", min_length=1)
    sample: float = Field(1.0, ge=0, le=1)
    """Which share of the events is traced whose messages bring no trace; those that bring one have it decided."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """What the collector wants to see of us, as a key."""


class Span:
    """A step on an event's way. This one is seen by nobody."""

    __slots__ = ()

    @property
    def trace(self) -> str:
        """What to keep, so that a later step finds its way back: `traceparent`, and `tracestate` after a blank."""
        return ""

    @property
    def headers(self) -> Mapping[str, str]:
        """What to give to whoever carries the trace on."""
        return {}

    @property
    def named(self) -> Mapping[str, str]:
        """The trace's id, for a line of the log."""
        return {}

    def part(self, name: str) -> Span:
        """Begin a step within this one."""
        del name
        return self

    def end(self, *, failed: bool = False, **facts: Fact) -> None:
        """The step is over. One that is never ended is never shown."""


class Tracing:
    """Begins spans. This one begins none, and costs next to nothing."""

    def intake(self, brought: Brought) -> Span:
        """An event comes in; its trace goes on from what its message brought."""
        del brought
        return UNSEEN

    def attempt(self, trace: str, *, first: bool, **facts: Fact) -> Span:
        """A delivery is attempted, for the event of this trace.

        The first attempt is a part of that trace. One that comes later, be it hours, is a trace of its own, linked to
        the event's: a trace that never seems to end is read by nobody.
        """
        del trace, first, facts
        return UNSEEN

    def close(self) -> None:
        """Send what waits, for some seconds at most. Blocks."""


UNSEEN = Span()
OFF = Tracing()


def open_tracing(config: TracingConfig | None) -> Tracing:
    """What traces as the settings say. Raises SettingsError where the extra isn't installed."""
    if config is None:
        return OFF
    try:
        from dispatcher.tracing.spans import Exporting  # noqa: PLC0415 - an extra: only who traces needs it
    except ImportError:
        raise SettingsError(
            "tracing needs OpenTelemetry: pip install 'flyte-notification-dispatcher[tracing]'"
        ) from None
    return Exporting(config)
