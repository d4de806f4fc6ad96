"""What is counted of the cache."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter
from reelmesh.v1 import video_pb2

_OUTCOMES: Final = {
    video_pb2.CACHE_STATUS_MISS: "miss",
    video_pb2.CACHE_STATUS_HIT: "hit",
    video_pb2.CACHE_STATUS_SHARED: "shared",
    video_pb2.CACHE_STATUS_REFRESHED: "refreshed",
    video_pb2.CACHE_STATUS_BYPASSED: "bypassed",
}


class CacheMetrics:
    """Counters; figures are read where they are (:mod:`gateway.core.caching`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "reelmesh_gateway_cache_requests",
            "New videos by what answers them: drawn (miss), from the cache (hit), from a run for "
            "others (shared), drawn since that was asked for (refreshed) or there is no cache "
            "(bypassed).",
            ("outcome",),
            registry=registry,
        )
        self._evictions = Counter(
            "reelmesh_gateway_cache_evictions",
            "Videos that gave way to others: in the index of finished ones, or among the copies "
            "of other regions'.",
            ("cache",),
            registry=registry,
        )

        self._kept_bytes = Counter(
            "reelmesh_gateway_kept_bytes",
            "Bytes of other regions' videos that clients were to have: those that were here, and "
            "those that had to be brought.",
            ("source",),
            registry=registry,
        )

    def kept_bytes(self, count: int, here: bool) -> None:
        """Counts bytes of other regions' videos."""
        self._kept_bytes.labels("here" if here else "home").inc(count)

    def request(self, status: video_pb2.CacheStatus.ValueType) -> None:
        """Counts a new video by what answers it."""
        self._requests.labels(_OUTCOMES.get(status, "other")).inc()

    def evicted(self, cache: str, count: int) -> None:
        """Counts what gave way in the "index", or among what was "kept"."""
        self._evictions.labels(cache).inc(count)
