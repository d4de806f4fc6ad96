"""What a gateway counts, in Prometheus names; every label has a bounded set of values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Causes that this gateway and its nodes name; any other is counted as "other".
KNOWN_CAUSES: Final = frozenset(
    (
        "node_lost",
        "node_silent",
        "node_error",
        "node_cancelled",
        "stream_ended",
        "corrupt_stream",
        "corrupt_video",
        "worker_died",
        "worker_stalled",
        "worker_unavailable",
        "node_shutdown",
        "output_too_large",
        "out_of_memory",
        "rejected_by_node",
        "spool_full",
        "spool_failed",
        "artifact_store",
        "deadline_exceeded",
        "gateway_stopped",
        "internal",
        "poison",
        "client",
        "disconnected",
    )
)

_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)


class GatewayMetrics:
    """The application's own metrics; the edges count their requests themselves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        counter = partial(Counter, registry=registry)
        self._admitted = counter(
            "reelmesh_gateway_jobs_admitted",
            "Jobs admitted.",
        )
        self._adopted = counter(
            "reelmesh_gateway_jobs_adopted",
            "Jobs taken over from a gateway that was gone.",
        )
        self._refused = counter(
            "reelmesh_gateway_jobs_refused",
            "Jobs refused at admission, by the error's code.",
            ("code",),
        )
        self._ended = counter(
            "reelmesh_gateway_jobs_ended",
            "Jobs that ended, by how and why.",
            ("state", "cause"),
        )
        self._seconds = Histogram(
            "reelmesh_gateway_job_seconds",
            "Seconds from admission to the end.",
            ("state",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._placements = counter(
            "reelmesh_gateway_placements",
            "Jobs given to a node: it took them to an end, failed, or was full.",
            ("outcome",),
        )
        self._node_failures = counter(
            "reelmesh_gateway_node_failures",
            "Runs that failed for a cause of the node's own.",
            ("cause",),
        )
        self._ejections = counter(
            "reelmesh_gateway_node_ejections",
            "Nodes taken out for a while by their failure rate.",
        )
        self._damaged = counter(
            "reelmesh_gateway_artifacts_damaged",
            "Reads of finished videos whose bytes were not those that were drawn.",
        )
        self._browned_out = counter(
            "reelmesh_gateway_jobs_browned_out",
            "Jobs of quality auto that were given fewer steps, as there was load.",
        )
        self._offers = counter(
            "reelmesh_gateway_node_offers",
            "Slots that nodes offered to waiting jobs: taken, or declined by one placed elsewhere.",
            ("answer",),
        )
        self._bytes = counter(
            "reelmesh_gateway_video_bytes",
            "Bytes of finished videos.",
        )

    def watch_figure(self, name: str, text: str, figure: Callable[[], float]) -> None:
        """Adds a gauge that is read when somebody scrapes."""
        Gauge(f"reelmesh_gateway_{name}", text, registry=self._registry).set_function(figure)

    def admitted(self) -> None:
        """Counts an admitted job."""
        self._admitted.inc()

    def adopted(self) -> None:
        """Counts a job taken over."""
        self._adopted.inc()

    def refused(self, code: str) -> None:
        """Counts a refused one; ``code`` is one of :mod:`gateway.errors`."""
        self._refused.labels(code).inc()

    def ended(self, state: str, cause: str, seconds: float, video_bytes: int) -> None:
        """Counts a job's end; ``cause`` is "" for a completed one."""
        self._ended.labels(state, _bounded(cause)).inc()
        self._seconds.labels(state).observe(seconds)
        self._bytes.inc(video_bytes)

    def placed(self, outcome: str) -> None:
        """Counts what became of a placement: "ended" or "busy"."""
        self._placements.labels(outcome).inc()

    def offer_answered(self, answer: str) -> None:
        """Counts a node's offer: "taken" or "declined"."""
        self._offers.labels(answer).inc()

    def browned_out(self) -> None:
        """Counts a job that was given fewer steps under load."""
        self._browned_out.inc()

    def node_failed(self, cause: str) -> None:
        """Counts a run that failed for a cause of the node's own."""
        self._placements.labels("failed").inc()
        self._node_failures.labels(_bounded(cause)).inc()

    def artifact_damaged(self) -> None:
        """Counts a read of a finished video that was refused for its digest."""
        self._damaged.inc()

    def node_ejected(self) -> None:
        """Counts an ejection."""
        self._ejections.inc()


def _bounded(cause: str) -> str:
    return cause if not cause or cause in KNOWN_CAUSES else "other"
