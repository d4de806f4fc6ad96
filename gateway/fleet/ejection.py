"""When a node that fails runs should rest, and how often jobs may be retried.

Pure: everything is figured from the ends of runs and the caller's clock.

A node **rests** after three failures in a row, or when more than half of at least five
runs of the last minute failed. It rests for 30 s, twice as long each time up to five
minutes; two minutes of good time take one doubling back. Then it is **on trial**: it gets
one run, and its success makes the node one like any other, its failure sends it to rest
again. Whether a resting node really gets nothing is decided over all nodes, see
:mod:`gateway.fleet.candidates`: never more than half of them are kept out for this.

Only failures of the node's own making count, and those that were on the node together
when it failed count once: a worker that dies takes its neighbours along, and a cut
connection everything. A restarted agent is another process and has its trial at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

RETRY_WINDOW_S: Final = 10.0
RETRY_FLOOR: Final = 10
RETRY_RATIO: Final = 0.2


@dataclass(frozen=True, slots=True)
class EjectionRules:
    """Counts, shares and seconds."""

    failures_in_a_row: int = 3
    min_runs: int = 5
    """Below so many runs in the window a share says nothing."""
    max_failure_ratio: float = 0.5
    window_s: float = 60.0
    first_s: float = 30.0
    max_s: float = 300.0
    forgive_s: float = 120.0
    """Good time that takes one doubling back."""


class Standing:
    """What this gateway has seen of a node's runs, and what it makes of it."""

    def __init__(self, rules: EjectionRules | None = None) -> None:
        self._rules = rules or EjectionRules()
        self._ends: deque[tuple[float, bool]] = deque()
        self._in_a_row = 0
        self._failed_at_s = float("-inf")
        self._level = 0
        self._rests_from_s: float | None = None
        self._until_s = 0.0

    @property
    def suspect(self) -> bool:
        """Whether it rests or is on trial; one run at a time is all that it may get."""
        return self._rests_from_s is not None

    @property
    def rests_until_s(self) -> float:
        """When the rest ends; long past for a node that is on trial or has never rested."""
        return self._until_s if self.suspect else float("-inf")

    def note(self, now_s: float, *, sent_at_s: float, failed: bool) -> float:
        """Counts the end of a run.

        Args:
            now_s: When it ended.
            sent_at_s: When it was sent; before the last failure: that was this one's too.
            failed: For a cause of the node's own.

        Returns:
            Seconds for which the node is to rest, from now; 0 where nothing follows.
        """
        tried = self._rests_from_s is not None and sent_at_s >= self._rests_from_s
        if not failed:
            self._count(now_s, failed=False)
            self._in_a_row = 0
            if tried:
                self._rests_from_s = None
            return 0.0
        if sent_at_s < self._failed_at_s:
            return 0.0
        self._failed_at_s = now_s
        self._count(now_s, failed=True)
        self._in_a_row += 1
        if self.suspect and not tried:
            # Sent before the rest began: that has been judged.
            return 0.0
        if tried or self._in_a_row >= self._rules.failures_in_a_row or self._too_many():
            return self._rest(now_s)
        return 0.0

    def restarted(self, now_s: float) -> None:
        """The agent is another process: what its forerunner did says less of it."""
        self._in_a_row = 0
        self._ends.clear()
        self._until_s = min(self._until_s, now_s)

    def _count(self, now_s: float, *, failed: bool) -> None:
        self._ends.append((now_s, failed))
        while self._ends[0][0] < now_s - self._rules.window_s:
            self._ends.popleft()

    def _too_many(self) -> bool:
        failures = sum(failed for _, failed in self._ends)
        runs = len(self._ends)
        return runs >= self._rules.min_runs and failures > self._rules.max_failure_ratio * runs

    def _rest(self, now_s: float) -> float:
        rules = self._rules
        good_s = max(now_s - self._until_s, 0.0)
        self._level = max(self._level - int(good_s / rules.forgive_s), 0)
        rest_s = float(min(rules.first_s * 2**self._level, rules.max_s))
        if rest_s < rules.max_s:
            self._level += 1
        self._rests_from_s, self._until_s = now_s, now_s + rest_s
        self._in_a_row = 0
        self._ends.clear()
        return rest_s


class RetryBudget:
    """Retries are at most 20% of the runs started in 10 s, and ten are always allowed.

    A retry beyond that waits, so that a failing fleet is not buried under retries; it
    never fails for that.
    """

    def __init__(self) -> None:
        self._starts: deque[float] = deque()
        self._retries: deque[float] = deque()

    def note_start(self, now_s: float) -> None:
        """Counts a job that is run for the first time."""
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
