"""What a gateway holds and knows now, as gauges."""

from __future__ import annotations

from gateway.core.lifetimes import Lifetimes
from gateway.core.metrics import GatewayMetrics
from gateway.core.videos import Videos
from gateway.fleet.nodes import Fleet
from gateway.fleet.waiting import WaitingRoom


def watch_figures(
    metrics: GatewayMetrics,
    fleet: Fleet,
    waiting: WaitingRoom,
    lifetimes: Lifetimes,
    videos: Videos,
) -> None:
    """Adds the gauges of what a gateway holds and knows."""
    watch = metrics.watch_figure
    watch("jobs_live", "Jobs that have not ended.", lambda: float(lifetimes.live))
    watch("jobs_held", "Jobs whose events are kept.", lambda: float(lifetimes.held))
    watch("jobs_waiting", "Jobs that wait for a node.", lambda: float(len(waiting)))
    watch("models_waited_for", "Model versions that jobs wait for.", lambda: float(waiting.lines))
    watch("predicted_wait_seconds", "Wait of a job for the default model.", videos.predicted_wait_s)
    watch("nodes", "Nodes known.", lambda: float(sum(1 for _ in fleet.links)))
    watch("ready_workers", "Workers that take work.", lambda: float(fleet.ready_workers))
