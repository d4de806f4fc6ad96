"""Time as a port, so that decisions can be tested without waiting."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What a component may know of time."""

    def monotonic(self) -> float:
        """Seconds that only rise; for measuring spans and deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch; for what people and records read."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Returns after ``delay_s`` seconds; cancellation ends it at once."""
        ...


class SystemClock:
    """The machine's own clock."""

    def monotonic(self) -> float:
        """Seconds of the machine's monotonic clock."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    async def sleep(self, delay_s: float) -> None:
        """Sleeps on the running event loop."""
        await asyncio.sleep(delay_s)


class ManualClock:
    """A clock that a test moves by hand; the fake beside the port."""

    def __init__(self, *, start_s: float = 1_000.0) -> None:
        self._now_s = start_s
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        """The time that the test has set."""
        return self._now_s

    def wall(self) -> float:
        """The same figure: wall and monotonic agree here."""
        return self._now_s

    async def sleep(self, delay_s: float) -> None:
        """Returns once the test moved the clock far enough."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (self._now_s + delay_s, future)
        self._sleepers.append(entry)
        try:
            await future
        finally:
            if entry in self._sleepers:
                self._sleepers.remove(entry)

    async def advance(self, delta_s: float) -> None:
        """Moves time forward, wakes the sleepers that are due and lets them run."""
        self._now_s += delta_s
        for due_s, future in sorted(self._sleepers, key=lambda entry: entry[0]):
            if due_s <= self._now_s and not future.done():
                future.set_result(None)
        # Several turns: a woken task may itself wake another.
        for _ in range(10):
            await asyncio.sleep(0)
