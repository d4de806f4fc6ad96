"""How late this machine wakes a process that has nothing to do but wait.

``python -m benchmarks.machine``

A benchmark that reports milliseconds prints this beside its figures: on a shared machine the
delay of an idle process is a floor under every time that is measured, and says how quiet the
run was.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from reelkit.tasks import TaskScope

SLEEP_S = 0.002
SAMPLE_FOR_S = 2.0


@dataclass(frozen=True)
class Delay:
    """How much later than asked for a sleep ended, in seconds."""

    p50_s: float
    p99_s: float
    worst_s: float
    count: int

    @classmethod
    def of(cls, overshoots_s: Sequence[float]) -> Delay:
        """Summarises one sample or more."""
        ordered = sorted(overshoots_s)
        last = len(ordered) - 1
        return cls(ordered[last // 2], ordered[int(last * 0.99)], ordered[-1], len(ordered))

    def __str__(self) -> str:
        return (
            f"p50 {self.p50_s * 1e3:.2f} ms, p99 {self.p99_s * 1e3:.2f} ms, "
            f"worst {self.worst_s * 1e3:.1f} ms over {self.count} sleeps; "
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        )


def idle_delay(
    for_s: float = SAMPLE_FOR_S, *, sleep: Callable[[float], None] = time.sleep
) -> Delay:
    """Sleeps again and again for some seconds and tells by how much each sleep was late.

    Call it while nothing of the benchmark runs.
    """
    overshoots: list[float] = []
    end_s = time.perf_counter() + for_s
    while (began_s := time.perf_counter()) < end_s or not overshoots:
        sleep(SLEEP_S)
        overshoots.append(time.perf_counter() - began_s - SLEEP_S)
    return Delay.of(overshoots)


class LoopDelay:
    """Samples how late this event loop wakes, for as long as the block runs.

    Unlike :func:`idle_delay` it is taken beside the load: it tells how far the loop that
    takes the times may be behind.
    """

    def __init__(self, every_s: float = 0.02) -> None:
        self._every_s = every_s
        self._overshoots: list[float] = []
        self._scope = TaskScope("loop-delay")

    async def __aenter__(self) -> Self:
        self._scope.spawn(self._sample(), name="sample")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._scope.cancel_all()

    @property
    def delay(self) -> Delay:
        """What was seen so far."""
        return Delay.of(self._overshoots or [0.0])

    async def _sample(self) -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(self._every_s)
            self._overshoots.append(time.perf_counter() - began_s - self._every_s)


def main() -> None:
    """Prints the delay of this machine now."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SAMPLE_FOR_S)
    print(idle_delay(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
