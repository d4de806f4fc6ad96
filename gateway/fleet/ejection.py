"""When a node fails so many runs that it should rest, and how often a job may be retried.

Pure: both are figures over a sliding window of the caller's clock.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 60.0
MIN_RUNS: Final = 5
MAX_FAILURE_RATIO: Final = 0.5
EJECT_S: Final = 30.0
MAX_EJECTED_RATIO: Final = 0.5

RETRY_WINDOW_S: Final = 10.0
RETRY_FLOOR: Final = 10
RETRY_RATIO: Final = 0.2


class FailureRate:
    """How many of a node's latest runs failed for a cause of the node's own."""

    def __init__(self) -> None:
        self._ends: deque[tuple[float, bool]] = deque()

    def note(self, now_s: float, *, failed: bool) -> None:
        """Counts the end of a run."""
        self._ends.append((now_s, failed))
        while self._ends and self._ends[0][0] < now_s - WINDOW_S:
            self._ends.popleft()

    def too_high(self, now_s: float) -> bool:
        """Whether more than half of at least five runs of the last minute failed."""
        recent = [failed for at_s, failed in self._ends if at_s >= now_s - WINDOW_S]
        return len(recent) >= MIN_RUNS and sum(recent) / len(recent) > MAX_FAILURE_RATIO


def may_eject(*, ejected: int, nodes: int) -> bool:
    """Whether one more node may be ejected by error rate: never more than half of them."""
    return ejected + 1 <= nodes * MAX_EJECTED_RATIO


class RetryBudget:
    """Retries are at most 20% of the runs started in 10 s, and ten are always allowed.

    A retry beyond that waits, so that a failing fleet is not buried under retries; it
    never fails for that.
    """

    def __init__(self) -> None:
        self._starts: deque[float] = deque()
        self._retries: deque[float] = deque()

    def note_start(self, now_s: float) -> None:
        """Counts a run."""
        self._starts.append(now_s)
        self._trim(now_s)

    def take(self, now_s: float) -> float:
        """Seconds that a retry must wait; 0 takes it from the budget."""
        self._trim(now_s)
        allowed = max(RETRY_FLOOR, int(len(self._starts) * RETRY_RATIO))
        if len(self._retries) < allowed:
            self._retries.append(now_s)
            return 0.0
        return max(self._retries[len(self._retries) - allowed] + RETRY_WINDOW_S - now_s, 0.05)

    def _trim(self, now_s: float) -> None:
        for times in (self._starts, self._retries):
            while times and times[0] <= now_s - RETRY_WINDOW_S:
                times.popleft()
