"""Traces each event from its message to the provider. Without `tracing:` in the settings, nothing is traced.

Other packages use the classes of this module, which do nothing by themselves. `spans` has the classes that export; it
needs the extra `tracing` and is the only module that imports OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from dispatcher.errors import SettingsError

__all__ = ["NO_SPAN", "OFF", "Span", "Tracing", "TracingConfig", "open_tracing"]

AttributeValue = str | int
ReadTraceContext = Callable[[], Mapping[str, str]]
"""Reads the W3C trace context of a message: `traceparent` and `tracestate`, if it has them."""


class TracingConfig(BaseModel):
    """Where spans are sent (OTLP over HTTP). Options that are not set here can come from the variables `OTEL_…`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(pattern=r"^https?://[^\s/]+")
    """URL of an OpenTelemetry collector, such as `http://collector:4318`. If it has no path, `/v1/traces` is added."""
    service_name: str = Field("flyte-notification-dispatcher", min_length=1)
    """The name of this service in traces."""
    sample: float = Field(1.0, ge=0, le=1)
    """Share of events to trace if their messages have no trace context; otherwise the context decides."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """HTTP headers that the collector requires, such as an API key."""


class Span:
    """One step of an event. This base class records nothing."""

    __slots__ = ()

    @property
    def trace(self) -> str:
        """The trace context as the ledger stores it: `traceparent`, then `tracestate` after a space if there is one."""
        return ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The trace context as HTTP headers."""
        return {}

    @property
    def log_fields(self) -> Mapping[str, str]:
        """The trace's id, for log lines."""
        return {}

    def child(self, name: str) -> Span:
        """Start a span inside this one."""
        del name
        return self

    def end(self, *, failed: bool = False, **attributes: AttributeValue) -> None:
        """End the span. A span that does not end is not exported."""


class Tracing:
    """Starts spans. This base class starts none, and costs almost nothing."""

    def intake(self, read_context: ReadTraceContext) -> Span:
        """Start the span of an event that arrived; it continues the trace of its message."""
        del read_context
        return NO_SPAN

    def attempt(self, trace: str, *, first: bool, **attributes: AttributeValue) -> Span:
        """Start the span of a delivery attempt. `trace` is the stored trace context of its event.

        The first attempt belongs to the event's trace. Each later attempt starts a new trace, linked to the event's: a
        retry may run hours later, and such a long trace would be unreadable.
        """
        del trace, first, attributes
        return NO_SPAN

    def close(self) -> None:
        """Send the spans that are not sent yet; blocks for a few seconds at most."""


NO_SPAN = Span()
OFF = Tracing()


def open_tracing(config: TracingConfig | None) -> Tracing:
    """The tracing that the settings describe. Raises SettingsError if the extra is not installed."""
    if config is None:
        return OFF
    try:
        from dispatcher.tracing.spans import ExportingTracing  # noqa: PLC0415 - OpenTelemetry is an optional dependency
    except ImportError:
        raise SettingsError(
            "tracing needs OpenTelemetry: pip install 'flyte-notification-dispatcher[tracing]'"
        ) from None
    return ExportingTracing(config)
