"""Traces each event from its message to the provider. Without `tracing:` in the settings, nothing is traced.

Other packages use the base classes of this module, which do nothing. The module `spans` has the subclasses that export
traces. It needs the package's optional dependencies `tracing`, because it imports OpenTelemetry; no other module does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from channels.common.network import HEADER_NAME, HttpUrl
from channels.common.secret import HeaderLine
from dispatcher.errors import SettingsError

__all__ = ["NO_SPAN", "OFF", "Span", "Tracing", "TracingConfig", "open_tracing"]

AttributeValue = str | int
ReadTraceContext = Callable[[], Mapping[str, str]]
"""Function that reads the W3C trace context of a message: `traceparent` and `tracestate`, if the message has them."""


class TracingConfig(BaseModel):
    """Where traces are sent (OTLP over HTTP). Options that are not set here can be set through the environment
    variables `OTEL_…`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: HttpUrl
    """URL of an OpenTelemetry collector, such as `http://collector:4318`. If it has no path, `/v1/traces` is added."""
    service_name: str = Field("flyte-notification-dispatcher", min_length=1)
    """The name of this service in traces."""
    sample: float = Field(1.0, ge=0, le=1)
    """Share of the events that are traced, from 0 to 1. It applies to events whose message has no trace context;
    otherwise the trace context decides."""
    headers: Mapping[Annotated[str, Field(pattern=HEADER_NAME)], HeaderLine] = Field(default_factory=dict)
    """HTTP headers that the collector requires, such as an API key."""


class Span:
    """One step in the processing of an event. This base class records nothing."""

    __slots__ = ()

    @property
    def trace(self) -> str:
        """The trace context as the ledger stores it: `traceparent`, or `traceparent` and `tracestate` with a space
        between them.
        """
        return ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The trace context as HTTP headers."""
        return {}

    @property
    def log_fields(self) -> Mapping[str, str]:
        """The fields for log lines: the id of the trace."""
        return {}

    def child(self, name: str) -> Span:
        """Start a span inside this span."""
        del name
        return self

    def end(self, *, failed: bool = False, **attributes: AttributeValue) -> None:
        """End the span. A span that is never ended is not exported."""


class Tracing:
    """Starts spans. This base class, which is used if tracing is off, starts no spans and costs almost nothing."""

    def intake(self, read_context: ReadTraceContext) -> Span:
        """Start the span of an event that arrived. The span continues the trace of the event's message, if there is
        one.
        """
        del read_context
        return NO_SPAN

    def attempt(self, trace: str, *, first: bool, **attributes: AttributeValue) -> Span:
        """Start the span of a delivery attempt. `trace` is the stored trace context of the delivery's event.

        The first attempt belongs to the event's trace. Each later attempt starts a new trace, which is linked to the
        event's trace. A retry may run hours later, and a trace that is hours long would be unreadable.
        """
        del trace, first, attributes
        return NO_SPAN

    def close(self) -> None:
        """Send the spans that have not been sent yet. Blocks for a few seconds at most."""


NO_SPAN = Span()
OFF = Tracing()


def open_tracing(config: TracingConfig | None) -> Tracing:
    """Return the tracing that the settings describe. Raises SettingsError if it needs OpenTelemetry, which isn't
    installed.
    """
    if config is None:
        return OFF
    try:
        from dispatcher.tracing.spans import ExportingTracing  # noqa: PLC0415 - OpenTelemetry is an optional dependency
    except ImportError:
        raise SettingsError(
            "tracing needs OpenTelemetry: pip install 'flyte-notification-dispatcher[tracing]'"
        ) from None
    return ExportingTracing(config)
