"""Notices an event loop that stands still, and ends its process."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import Final, Self

import structlog

_log = structlog.get_logger("reelkit.watchdog")

HUNG_EXIT_CODE: Final = 71
# A lease and a half of a node: the loop that serves it is by then no use to anybody.
DEFAULT_LIMIT_S: Final = 15.0
_CHECKS: Final = 10


class LoopWatchdog:
    """A thread that asks the loop for a sign of life, for as long as the block runs.

    A loop that is blocked for good keeps its connections: grpc's own threads go on
    answering pings, so that the others wait for it until their deadlines, again and again.
    An end is something they all understand, and a supervisor starts the process anew.

    Time is counted in checks that this thread made itself, so a process that was stopped
    (SIGSTOP, a suspended machine) or got no processor has not hung.

    Args:
        loop: The loop that is watched.
        limit_s: Seconds without a sign of life.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, limit_s: float = DEFAULT_LIMIT_S
    ) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._watched_thread = threading.get_ident()
        self._alive = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        missed = 0
        while not self._over.is_set():
            self._alive.clear()
            try:
                self._loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:
                # The loop was closed.
                return
            if self._over.wait(self._limit_s / _CHECKS):
                return
            missed = 0 if self._alive.is_set() else missed + 1
            if missed == _CHECKS:
                self._end()

    def _end(self) -> None:
        frame = sys._current_frames().get(self._watched_thread)  # noqa: SLF001 - the documented way
        stack = "".join(traceback.format_stack(frame)) if frame else "unknown"
        _log.critical("the event loop stands still", seconds=self._limit_s, stack=stack)
        os._exit(HUNG_EXIT_CODE)
