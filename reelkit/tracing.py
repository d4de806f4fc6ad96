"""OpenTelemetry spans that cross processes by W3C trace context.

Spans are always made, so that a trace id reaches logs and the next process; they are
exported only where an OTLP endpoint is configured.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterable, Mapping

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from pydantic import Field

from reelkit.settings import Settings

_PROPAGATOR = TraceContextTextMapPropagator()


class TracingSettings(Settings):
    """Where spans go."""

    otlp_endpoint: str | None = Field(
        default=None,
        description="gRPC endpoint of an OpenTelemetry collector, such as "
        "http://collector:4317; off by default, since most sites have none.",
    )
    sample_ratio: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of new traces to record; a caller's decision is kept.",
    )


def setup_tracing(settings: TracingSettings, *, service: str, instance: str) -> TracerProvider:
    """Installs the process's tracer provider; call it once, ``shutdown()`` it at the end."""
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.instance.id": instance}),
        sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
    )
    if settings.otlp_endpoint is not None:
        # Imported here: the exporter costs 15 MB that an untraced process need not pay.
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(
            endpoint=settings.otlp_endpoint,
            insecure=settings.otlp_endpoint.startswith("http://"),
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider


def current_trace_id() -> str | None:
    """The current span's trace id in hex, or None outside a trace."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else None


def current_traceparent() -> str:
    """The current span as a W3C ``traceparent``, or "" outside a trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def outliving_context() -> contextvars.Context:
    """A copy of the current context, for work that goes on after the current span's end.

    It has the span's ids, all that logs and later spans need, and not the span: with its
    attributes and events that is 3 KB, kept for as long as the work lives.
    """
    context = contextvars.copy_context()
    ids = trace.NonRecordingSpan(trace.get_current_span().get_span_context())
    context.run(otel_context.attach, trace.set_span_in_context(ids))
    return context


def context_from(headers: Mapping[str, str]) -> otel_context.Context:
    """The caller's trace context from lower-case headers; an empty one where it has none."""
    return _PROPAGATOR.extract(dict(headers))


def context_from_metadata(
    metadata: Iterable[tuple[str, str | bytes]] | None,
) -> otel_context.Context:
    """The same from gRPC metadata."""
    return context_from({k: v for k, v in metadata or () if isinstance(v, str)})


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata of a gRPC call that carries the current span to the next process."""
    traceparent = current_traceparent()
    return (("traceparent", traceparent),) if traceparent else ()
