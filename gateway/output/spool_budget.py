"""How many bytes all spool files of a gateway may hold together."""

from __future__ import annotations

import asyncio
from collections import deque

from reelkit.clock import Clock


class SpoolFull(Exception):  # noqa: N818 - named for what it says
    """No room for a video's bytes within the time that a node can be held back."""


class SpoolBudget:
    """Shares out the bound; a video that finds no room waits for others to end.

    Args:
        max_bytes: Bound of all files together.
        max_bytes_per_video: Bound of one; a larger video is refused at once.
        patience_s: How long a video may wait for room.
        clock: Measures the wait.
    """

    def __init__(
        self, *, max_bytes: int, max_bytes_per_video: int, patience_s: float, clock: Clock
    ) -> None:
        self._max_bytes = max_bytes
        self._max_bytes_per_video = max_bytes_per_video
        self._patience_s = patience_s
        self._clock = clock
        self._held: dict[int, int] = {}
        self.used_bytes = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def reserve(self, owner: object, total_bytes: int) -> None:
        """Makes sure that ``owner`` may hold ``total_bytes``, waiting for room.

        Raises:
            SpoolFull: One video is over its bound, or no room came free in time.
        """
        held = self._held.get(id(owner), 0)
        if total_bytes <= held:
            return
        if total_bytes > self._max_bytes_per_video:
            raise SpoolFull(f"a video has more than {self._max_bytes_per_video} bytes")
        deadline_s = self._clock.monotonic() + self._patience_s
        while self.used_bytes + total_bytes - held > self._max_bytes:
            await self._wait(deadline_s)
        self._held[id(owner)] = total_bytes
        self.used_bytes += total_bytes - held

    async def _wait(self, deadline_s: float) -> None:
        left_s = deadline_s - self._clock.monotonic()
        if left_s <= 0:
            raise SpoolFull(f"no room among {self._max_bytes} bytes in {self._patience_s} s")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(left_s):
                await waiter
        except TimeoutError:
            raise SpoolFull(
                f"no room among {self._max_bytes} bytes in {self._patience_s} s"
            ) from None
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def release(self, owner: object) -> None:
        """Gives back all that ``owner`` holds."""
        self.used_bytes -= self._held.pop(id(owner), 0)
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
