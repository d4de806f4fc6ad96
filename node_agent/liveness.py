"""When a worker counts as gone though its process still exists. Pure decisions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LivenessLimits:
    """Seconds of silence that are borne; see the settings of the same names."""

    heartbeat_timeout_s: float = 2.0
    loading_silence_s: float = 20.0
    start_timeout_s: float = 120.0
    load_timeout_s: float = 1800.0
    stall_floor_s: float = 30.0
    stall_steps: float = 10.0


class Liveness:
    """What was heard of one life of a worker, and the verdict on it."""

    def __init__(self, limits: LivenessLimits, *, now_s: float) -> None:
        self._limits = limits
        self._started_s = now_s
        self._heard_s: float | None = None
        self.serving = False

    def heard(self, now_s: float) -> None:
        """A frame came: its process runs."""
        self._heard_s = now_s

    def forgive(self, late_s: float) -> None:
        """The agent itself stood still for ``late_s``: that was no silence of the worker."""
        self._started_s += late_s
        if self._heard_s is not None:
            self._heard_s += late_s

    def stall_limit_s(self, step_s: float) -> float:
        """Silence that a run is granted when a denoising step takes ``step_s``."""
        return max(self._limits.stall_floor_s, self._limits.stall_steps * step_s)

    def verdict(self, *, now_s: float, silent_s: float, step_s: float) -> str | None:
        """Why the worker must be killed, or None.

        Args:
            now_s: The agent's monotonic time.
            silent_s: How long the run on the device (or a tail) made no progress.
            step_s: What a denoising step takes: the median seen, or the estimate for
                this run if that is longer.
        """
        limits = self._limits
        if self._heard_s is None:
            if now_s - self._started_s > limits.start_timeout_s:
                return f"did not start within {limits.start_timeout_s:g} s"
            return None
        silence_s = now_s - self._heard_s
        bearable_s = limits.heartbeat_timeout_s if self.serving else limits.loading_silence_s
        if silence_s > bearable_s:
            return f"no heartbeat for {silence_s:.1f} s"
        if not self.serving and now_s - self._started_s > limits.load_timeout_s:
            return f"did not load the model within {limits.load_timeout_s:g} s"
        stall_s = self.stall_limit_s(step_s)
        if self.serving and silent_s > stall_s:
            return f"the device made no progress for {silent_s:.1f} s (limit {stall_s:.1f} s)"
        return None
