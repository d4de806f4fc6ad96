"""Spans and the contexts that carry them."""

import gc
import weakref

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from reelkit.tracing import current_trace_id, current_traceparent, outliving_context


def test_what_outlives_a_span_is_part_of_its_trace_and_does_not_hold_it():
    tracer = TracerProvider().get_tracer("test")
    gc.disable()
    try:
        with tracer.start_as_current_span("request") as span:
            trace_id, traceparent = current_trace_id(), current_traceparent()
            context = outliving_context()
            assert trace.get_current_span() is span
        ended = weakref.ref(span)
        del span
        assert ended() is None
    finally:
        gc.enable()
    assert trace_id is not None
    assert context.run(current_trace_id) == trace_id
    assert context.run(current_traceparent) == traceparent


def test_outside_a_trace_there_is_none_to_be_part_of():
    assert outliving_context().run(current_trace_id) is None
