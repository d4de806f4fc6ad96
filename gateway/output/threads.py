"""Threads for calls that block and may hang: bounded in number, left behind at the end.

``ThreadPoolExecutor`` joins its threads when the interpreter ends, so that one call
which hangs in a dead mount keeps the whole process from ending. These are daemons.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_Work = tuple[Future[Any], Callable[[], Any]]


class Threads(Executor):
    """An executor whose threads do not outlive the process's wish to end.

    Args:
        max_threads: Calls that run at once; more of them wait for a thread.
        name: Of the threads.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads = max_threads
        self._name = name
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        # Counts threads that wait for work; may say too many once all are started,
        # when nobody asks any more.
        self._idle = threading.Semaphore(0)
        self._started = 0
        self._running: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has a thread call ``fn``, after what was submitted before.

        Raises:
            RuntimeError: They were shut down.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the {self._name} threads were shut down")
            self._running.add(future)
            self._queue.put((future, partial(fn, *args, **kwargs)))
            if not self._idle.acquire(blocking=False) and self._started < self._max_threads:
                self._started += 1
                name = f"{self._name}-{self._started}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
        future.add_done_callback(self._running.discard)
        return future

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
                    future.set_exception(error)
                else:
                    future.set_result(result)
            # Nothing is held while the thread waits.
            del work, future, call
            self._idle.release()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls; ``wait`` blocks until the last has ended, see :meth:`close`."""
        with self._lock:
            self._closed = True
            running = tuple(self._running)
            for _ in range(self._started):
                self._queue.put(None)
        if cancel_futures:
            for future in running:
                future.cancel()
        if wait:
            futures.wait(running)

    async def close(self, limit_s: float) -> None:
        """Shuts down and waits until the calls under way have ended, but no longer than that."""
        self.shutdown(wait=False, cancel_futures=True)
        running = [asyncio.wrap_future(future) for future in tuple(self._running)]
        if not running:
            return
        ended, left = await asyncio.wait(running, timeout=limit_s)
        for future in ended:
            # Retrieved: nobody waits for it any more, and that is no fault.
            _ = future.cancelled() or future.exception()
        for future in left:
            future.cancel()
