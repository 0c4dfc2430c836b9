"""Spans, by OpenTelemetry's API; imported only where tracing is switched on."""

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

#: The instrumentation scope of our spans and metrics, and the conventions that they follow.
SCOPE = "sandai.op"
SCHEMA_URL = "https://opentelemetry.io/schemas/1.44.0"
# Whatever the application propagates elsewhere: operators are told in W3C's words alone.
_w3c = TraceContextTextMapPropagator()


def scope_version() -> str:
    """Return our version, which the four distributions share."""
    try:
        return version("sandai-op-transport")
    except PackageNotFoundError:  # runs from the source tree
        return ""


class Tracing:
    """Starts spans, children of the span that is current."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(SCOPE, scope_version(), schema_url=SCHEMA_URL)

    def start(
        self, attributes: Mapping[str, Any], *, producer: bool, links: Iterable[object]
    ) -> "OpenSpan":
        """Start a span, named by what it does and its queue."""
        name = attributes["messaging.operation.name"]
        queue = attributes.get("messaging.destination.name")
        span = self._tracer.start_span(
            name if queue is None else f"{name} {queue}",
            kind=SpanKind.PRODUCER if producer else SpanKind.CLIENT,
            attributes=attributes,
            links=[Link(link) for link in links if isinstance(link, SpanContext)],
        )
        return OpenSpan(span)


class OpenSpan:
    """A span that has been started."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def link(self) -> SpanContext | None:
        """Its context, for links; ``None`` where nobody traces."""
        own = self._span.get_span_context()
        return own if own.is_valid else None

    def enter(self) -> object:
        """Make it the current span; return what :meth:`leave` takes."""
        return context.attach(trace.set_span_in_context(self._span))

    def leave(self, token: Any) -> None:
        """Have the span current that was so before."""
        context.detach(token)

    def carrier(self) -> dict[str, str]:
        """Return it as W3C's ``traceparent`` and ``tracestate``; empty where nobody traces."""
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, trace.set_span_in_context(self._span))
        return carrier

    def note(self, name: str, value: str | int | bool) -> None:
        """Set an attribute."""
        self._span.set_attribute(name, value)

    def end(self, error_type: str | None, said: str, raised: str | None) -> None:
        """End the span: as an error where there is an *error_type*, with what was *raised*."""
        if error_type is not None and self._span.is_recording():
            self._span.set_attribute("error.type", error_type)
            self._span.set_status(Status(StatusCode.ERROR, said or error_type))
            if raised is not None:
                # Not record_exception(): a traceback tells what the causes say, and our errors
                # alone are known to hold no password.
                event = {"exception.type": error_type, "exception.message": raised}
                self._span.add_event("exception", event)
        self._span.end()
