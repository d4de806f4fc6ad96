"""How much of its limit a tenant asks this gateway for. Pure; times are passed in."""

from __future__ import annotations

from typing import Final

# Half of what was asked for counts no more after this.
HALF_LIFE_S: Final = 3.0
# Less than this is nothing.
_LEAST: Final = 0.01


class Demand:
    """A rate of calls, the newer the heavier."""

    def __init__(self, now_s: float) -> None:
        self.asked_s = now_s
        """When it was asked last."""
        self._rate = 0.0
        self._at_s = now_s

    def note(self, now_s: float) -> None:
        """Counts a call, taken or refused."""
        self._decay(now_s)
        self._rate += _WEIGHT
        self.asked_s = now_s

    def rate(self, now_s: float) -> float:
        """Calls a second."""
        self._decay(now_s)
        return self._rate if self._rate >= _LEAST else 0.0

    def _decay(self, now_s: float) -> None:
        self._rate *= 0.5 ** (max(now_s - self._at_s, 0.0) / HALF_LIFE_S)
        self._at_s = max(now_s, self._at_s)


# So that a steady stream of calls shows as its own rate.
_WEIGHT: Final = 0.693147 / HALF_LIFE_S
