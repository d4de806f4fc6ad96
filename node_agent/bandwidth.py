"""A bound on bytes a second: a token bucket that many may draw from."""

from __future__ import annotations

import threading
import time
from typing import Final

# A second's worth may go at once; what is drawn is far smaller.
_BURST_S: Final = 1.0


class TokenBucket:
    """Says how long whoever draws has to wait, so that no second sees more than the rate.

    Each draw is granted at once and paid for by waiting: over any span of time, no more has been
    waited for than rate times (span + one second), and one draw. Safe in any thread.

    Args:
        bytes_per_s: The rate; None: no bound.
        now_s: Of a clock that only rises.
    """

    def __init__(self, bytes_per_s: float | None, *, now_s: float) -> None:
        self._rate = bytes_per_s
        # When the bucket would be full again; draws move it on.
        self._full_at_s = now_s
        self._lock = threading.Lock()

    def draw(self, count: int, *, now_s: float) -> float:
        """Seconds to wait before ``count`` bytes may go."""
        if self._rate is None:
            return 0.0
        with self._lock:
            begin_s = max(self._full_at_s, now_s)
            self._full_at_s = begin_s + count / self._rate
            return max(0.0, begin_s - _BURST_S - now_s)


class Throttle:
    """A bucket for threads, which sleep in it."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._bucket = TokenBucket(bytes_per_s, now_s=time.monotonic())

    def take(self, count: int) -> None:
        """Returns when ``count`` bytes may go."""
        time.sleep(self._bucket.draw(count, now_s=time.monotonic()))
