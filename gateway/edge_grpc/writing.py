"""Writes to gRPC clients that do not wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway import errors

Write = Callable[[Any], Awaitable[None]]


class TimedWrites:
    """A stream's writes, none of which may wait for the client longer than a time.

    gRPC's own write waits for as long as the client reads nothing and stays connected.
    One timer serves the whole stream: a write only notes when it began, and the timer
    looks at that, so a message costs no timer and no task.
    """

    def __init__(self, write: Write, *, timeout_s: float) -> None:
        self._write = write
        self._timeout_s = timeout_s
        self._now = asyncio.get_running_loop().time
        self._began_s: float | None = None
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, answer: Callable[[Write], Awaitable[None]]) -> None:
        """Runs ``answer`` with a write that is timed.

        Raises:
            ReaderTooSlow: The client took no message for too long.
        """
        try:
            async with self._limit:
                self._look()
                try:
                    await answer(self._timed)
                finally:
                    if self._timer is not None:
                        self._timer.cancel()
        except TimeoutError:
            if not self._limit.expired():
                raise
            raise errors.ReaderTooSlow(
                f"nothing of the stream was read for {self._timeout_s:g} s; resume where it stood"
            ) from None

    async def _timed(self, message: Any) -> None:
        self._began_s = self._now()
        await self._write(message)
        self._began_s = None

    def _look(self) -> None:
        now_s = self._now()
        due_s = (now_s if self._began_s is None else self._began_s) + self._timeout_s
        if due_s <= now_s:
            self._limit.reschedule(now_s)
        else:
            self._timer = asyncio.get_running_loop().call_at(due_s, self._look)
