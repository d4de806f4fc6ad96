"""A small event loop in virtual time: a heap of moments, no sleeping.

Coroutines that wait for :meth:`VirtualTime.sleep`, a :class:`Signal` or an asyncio future run
on it unchanged, so that the product's own code can be driven through hours in seconds. Equal
moments run in the order in which they were asked for: a seed repeats a run exactly.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Coroutine, Generator
from typing import Any


class _Pause:
    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    def __await__(self) -> Generator[_Pause, None, None]:
        yield self


class Signal:
    """Something that one coroutine waits for; setting it twice is setting it once."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._set = False
        self._waiting: Coroutine[Any, Any, None] | None = None

    def set(self) -> None:
        """Lets the waiting coroutine go on, at this same moment."""
        self._set = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._time.at(0.0, self._time.step, waiting)

    def park(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Called by the loop."""
        self._waiting = coroutine

    def __await__(self) -> Generator[Signal, None, None]:
        if not self._set:
            yield self


class VirtualTime:
    """The loop; also a :class:`reelkit.clock.Clock` and the scope that spawns."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._moments: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._parked: dict[asyncio.Future[Any], Coroutine[Any, Any, None]] = {}

    def at(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        """Calls after so many virtual seconds."""
        heapq.heappush(self._moments, (self.now_s + delay_s, next(self._order), call, args))

    def run(self, until_s: float = float("inf")) -> None:
        """Runs until nothing is left to do, or the time is reached."""
        while self._moments and self._moments[0][0] <= until_s:
            self.now_s, _, call, args = heapq.heappop(self._moments)
            call(*args)
            if self._parked:
                self._look_at_parked()

    def step(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine until it waits again."""
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        if isinstance(awaited, _Pause):
            self.at(awaited.delay_s, self.step, coroutine)
        elif isinstance(awaited, Signal):
            awaited.park(coroutine)
        else:
            self._parked[awaited] = coroutine

    def _look_at_parked(self) -> None:
        for future in [future for future in self._parked if future.done()]:
            self.at(0.0, self.step, self._parked.pop(future))

    # --- as a scope ---

    def spawn(self, coroutine: Coroutine[Any, Any, None], **_named: Any) -> None:
        """Starts a coroutine at this moment."""
        self.at(0.0, self.step, coroutine)

    # --- as a clock ---

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def wall(self) -> float:
        """The same."""
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        """Returns after so many virtual seconds."""
        await _Pause(delay_s)
