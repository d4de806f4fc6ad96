"""Rate, errors and duration of every route and RPC, with bounded labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300, 1800)


def _is(read: Callable[[], str], word: str) -> float:
    return float(read() == word)


class EdgeMetrics:
    """The edges' metrics in one registry.

    Labels are bounded: ``route`` is a route's template or an RPC's full name, never a
    path that a client wrote; ``code`` is the HTTP status or the gRPC status name.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._requests = Counter(
            "reelmesh_gateway_requests",
            "Requests answered.",
            ("protocol", "route", "method", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "reelmesh_gateway_request_seconds",
            "Seconds from a request's headers to the end of its answer; streams included.",
            ("protocol", "route", "method"),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._in_flight = Gauge(
            "reelmesh_gateway_requests_in_flight",
            "Requests being answered, open streams included.",
            ("protocol", "route", "method"),
            registry=registry,
        )

        self._connections_refused = Counter(
            "reelmesh_gateway_connections_refused",
            "HTTP connections closed because their address held too many.",
            registry=registry,
        )

        self._quota_refusals = Counter(
            "reelmesh_gateway_quota_refusals",
            "Requests refused for a tenant's quota, by the limit's name.",
            ("quota",),
            registry=registry,
        )
        self._quota_mode = Gauge(
            "reelmesh_gateway_quota_mode",
            "1 for what the gateway goes by of tenants' divided limits: leased parts, those of a "
            "region on its own (region_safe), its safe parts while the control plane is away "
            "(safe), nothing (none), or no policy heard of yet, so no limit (unheard).",
            ("mode",),
            registry=registry,
        )

    def quota_refused(self, quota: str) -> None:
        """Counts a refusal for a limit."""
        self._quota_refusals.labels(quota).inc()

    def watch_quota_mode(self, modes: Iterable[str], read: Callable[[], str]) -> None:
        """Shows which of the modes holds whenever somebody scrapes."""
        for mode in modes:
            self._quota_mode.labels(mode).set_function(partial(_is, read, mode))

    def connection_refused(self) -> None:
        """Counts a connection that was one too many."""
        self._connections_refused.inc()

    def started(self, *, protocol: str, route: str, method: str) -> None:
        """Counts a request as being answered; :meth:`ended` must follow."""
        self._in_flight.labels(protocol, route, method).inc()

    def ended(self, *, protocol: str, route: str, method: str, code: str, seconds: float) -> None:
        """Counts its end with the status that the client was sent."""
        self._in_flight.labels(protocol, route, method).dec()
        self._requests.labels(protocol, route, method, code).inc()
        self._seconds.labels(protocol, route, method).observe(seconds)
