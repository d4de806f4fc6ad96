"""A token bucket whose rate and size may change at any time. Pure; times are passed in.

Invariant (tests/unit/test_quota_buckets.py): over any span it lets through no more than its
largest size and what its rates brought in that span.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Figures with fractions that should add up to one may miss it by as much.
_SLACK: Final = 1e-9


@dataclass(slots=True)
class Bucket:
    """Begins empty but for ``tokens``: a gateway that was just started adds no burst."""

    tokens: float
    at_s: float
    rate: float = 0.0
    size: float = 0.0

    def set(self, now_s: float, *, rate: float, size: float) -> None:
        """Goes by another rate and size from now on; what does not fit any more is lost."""
        self._fill(now_s)
        self.rate, self.size = rate, size
        self.tokens = min(self.tokens, size)

    def take(self, now_s: float) -> float:
        """0 where one was there and is taken; else the seconds until one is, perhaps inf."""
        self._fill(now_s)
        if self.tokens >= 1 - _SLACK:
            self.tokens = max(self.tokens - 1, 0.0)
            return 0.0
        if self.size < 1 or self.rate <= 0:
            return float("inf")
        return (1 - self.tokens) / self.rate

    def _fill(self, now_s: float) -> None:
        passed_s = max(now_s - self.at_s, 0.0)
        self.tokens = min(self.tokens + passed_s * self.rate, max(self.size, self.tokens))
        self.at_s = max(now_s, self.at_s)
