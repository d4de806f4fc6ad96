"""What a control plane counts, in Prometheus' format, on a small port of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)

# From a quick etcd on the same host to our own deadline.
_CALL_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Metrics:
    """The metrics of one control plane; nothing is global, so tests may have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._calls = Histogram(
            "reelmesh_control_store_call_seconds",
            "Calls to etcd by method and result: OK, a status, or GIVEN_UP after the last try.",
            ["method", "code"],
            buckets=_CALL_BUCKETS_S,
            registry=self.registry,
        )
        self._store_up = Gauge(
            "reelmesh_control_store_up",
            "1 while the last call to etcd was answered, 0 after one that was not.",
            registry=self.registry,
        )
        self._job_calls = Counter(
            "reelmesh_control_job_calls",
            "Calls of JobService by method and outcome: OK or an error's code.",
            ["method", "code"],
            registry=self.registry,
        )
        self._quota_calls = Counter(
            "reelmesh_control_quota_calls",
            "Calls of QuotaService by method and outcome: OK or an error's code.",
            ["method", "code"],
            registry=self.registry,
        )
        self._lost_leases = Counter(
            "reelmesh_control_leases_lost",
            "Leases that ran out while their agents reported.",
            registry=self.registry,
        )

    def observe_call(self, method: str, code: str, seconds: float, answered: bool) -> None:
        """Counts a call to the store."""
        self._calls.labels(method.rpartition("/")[2], code).observe(seconds)
        self._store_up.set(1 if answered else 0)

    def count_job_call(self, method: str, code: str) -> None:
        """Counts a call of JobService."""
        self._job_calls.labels(method, code).inc()

    def count_quota_call(self, method: str, code: str) -> None:
        """Counts a call of QuotaService."""
        self._quota_calls.labels(method, code).inc()

    def count_lost_lease(self) -> None:
        """Counts a lease that ran out under a reporting agent."""
        self._lost_leases.inc()

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Adds a gauge that is read when somebody asks."""
        Gauge(f"reelmesh_control_{name}", text, registry=self.registry).set_function(read)

    @contextlib.contextmanager
    def served(self, listen: str) -> Iterator[int]:
        """Serves /metrics on ``host:port`` from a thread; yields the port.

        Raises:
            OSError: The address cannot be bound.
        """
        host, _, port = listen.rpartition(":")
        server, thread = start_http_server(int(port), addr=host, registry=self.registry)
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
