"""When a delivery is tried again, and when a host is left alone. Pure.

A host's circuit opens after failures in a row and is tried by one delivery at a time, after
longer and longer pauses; one success closes it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

# From a failure to the next try, as the specification proposes; the last one repeats.
DELAYS_S: Final = (5.0, 30.0, 120.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 14_400.0)
_JITTER: Final = 0.25
FAILURES_TO_OPEN: Final = 5
_FIRST_PAUSE_S: Final = 10.0
_MAX_PAUSE_S: Final = 600.0
# Of hosts whose failures are remembered; the longest unheard of is forgotten first.
_MAX_HOSTS: Final = 10_000


def delay_s(failures: int, draw: float) -> float:
    """From the ``failures``-th failure in a row to the next try.

    Args:
        failures: From 1.
        draw: 0 to 1; spreads tries by a quarter each way.
    """
    base = DELAYS_S[min(failures, len(DELAYS_S)) - 1]
    return base * (1 - _JITTER + 2 * _JITTER * draw)


@dataclass(slots=True)
class _Host:
    failures: int = 0
    closed_at_s: float = 0.0
    """When it may be tried again."""


class Circuits:
    """Which hosts are left alone for a while."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    def wait_s(self, host: str, now_s: float) -> float:
        """How long a host is left alone yet; 0: not."""
        known = self._hosts.get(host)
        return 0.0 if known is None else max(known.closed_at_s - now_s, 0.0)

    def enter(self, host: str, now_s: float) -> bool:
        """Whether a host may be tried now; of an open circuit by one at a time."""
        known = self._hosts.get(host)
        if known is None or known.failures < FAILURES_TO_OPEN:
            return True
        if known.closed_at_s > now_s:
            return False
        # The others wait for what this one finds.
        known.closed_at_s = now_s + self._pause_s(known.failures)
        return True

    def succeeded(self, host: str) -> None:
        """It answered as it should."""
        self._hosts.pop(host, None)

    def failed(self, host: str, now_s: float) -> None:
        """It did not."""
        known = self._hosts.setdefault(host, _Host())
        self._hosts.move_to_end(host)
        known.failures += 1
        if known.failures >= FAILURES_TO_OPEN:
            known.closed_at_s = now_s + self._pause_s(known.failures)
        if len(self._hosts) > _MAX_HOSTS:
            self._hosts.popitem(last=False)

    @property
    def open(self) -> int:
        """Hosts that are left alone until they answer."""
        return sum(host.failures >= FAILURES_TO_OPEN for host in self._hosts.values())

    def _pause_s(self, failures: int) -> float:
        doublings = min(failures - FAILURES_TO_OPEN, 10)
        return min(_FIRST_PAUSE_S * 2.0**doublings, _MAX_PAUSE_S)
