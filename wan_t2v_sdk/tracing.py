"""A W3C trace context for each call, so that the mesh's logs and spans can be found."""

from __future__ import annotations

import secrets
import sys


def new_traceparent() -> str:
    """The caller's own span where OpenTelemetry is in use, else a fresh trace."""
    # Never imported for its own sake: it is no dependency of the library.
    propagate = sys.modules.get("opentelemetry.propagate")
    if propagate is not None:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        if "traceparent" in carrier:
            return carrier["traceparent"]
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def trace_id_of(traceparent: str) -> str:
    """The trace's id in hex."""
    return traceparent.split("-")[1]
