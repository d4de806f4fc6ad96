"""An event loop in a thread of its own, so that the sync client works in notebooks too.

A notebook has a loop running in its main thread, where ``asyncio.run`` refuses. One
thread serves every sync client of the process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

POLL_S = 0.5
CLEANUP_S = 6.0


class LoopThread:
    """Runs coroutines for callers in other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="wan_t2v_sdk", daemon=True
        )
        self._thread.start()

    def run(
        self, coroutine: Coroutine[Any, Any, T], *, meanwhile: Callable[[float], None] | None = None
    ) -> T:
        """Runs ``coroutine`` to its end and returns what it returns.

        Args:
            coroutine: What to run in the loop's thread.
            meanwhile: Called again and again in the caller's thread with a time to wait
                at most; what it raises cancels the coroutine.

        KeyboardInterrupt cancels the coroutine, waits a few seconds for its cleanup and
        is raised on.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError(
                "the sync client was called from its own callback; use the async client there"
            )
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_announce(coroutine, ended), self._loop)
        try:
            while not future.done():
                if meanwhile is not None:
                    meanwhile(POLL_S)
                else:
                    # In slices: on Windows a signal does not end a longer wait.
                    concurrent.futures.wait([future], timeout=POLL_S)
            return future.result()
        except BaseException:
            future.cancel()
            # The video is cancelled in there; leaving before that would orphan it.
            ended.wait(CLEANUP_S)
            raise


async def _announce(coroutine: Coroutine[Any, Any, T], ended: threading.Event) -> T:
    with contextlib.ExitStack() as stack:
        stack.callback(ended.set)
        return await coroutine


_lock = threading.Lock()
_shared: tuple[int, LoopThread] | None = None


def shared_loop_thread() -> LoopThread:
    """The process's loop thread, made on first use and anew in a forked child."""
    global _shared
    with _lock:
        if _shared is None or _shared[0] != os.getpid():
            _shared = (os.getpid(), LoopThread())
        return _shared[1]
