"""Supervised, named background tasks.

The only place that calls ``create_task``. A process has one :class:`TaskScope` per
lifetime (usually one per app); every task in it has a name, its failure is logged
and ends the scope, and closing the scope cancels what is left and waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

from reelkit.clock import Clock

T = TypeVar("T")

_log = structlog.get_logger("reelkit.tasks")


class TaskScope:
    """An async context that owns background tasks.

    Unlike :class:`asyncio.TaskGroup`, leaving the block cancels the tasks instead of
    waiting for them to end by themselves: they serve for as long as the scope lives.
    The first failure of a task is kept in :attr:`failure` and sets :attr:`failed`,
    which the owner of the process waits on.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def spawn(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        name: str,
        fatal: bool = True,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Starts a task under this scope.

        Args:
            coroutine: What to run.
            name: Said in logs and in the task's own name.
            fatal: Whether its failure fails the scope. A task whose result somebody
                awaits is spawned with ``fatal=False``: its awaiter sees the error.
            context: What its context variables are; a copy of the caller's by default.

        Raises:
            RuntimeError: The scope is closed; the coroutine is closed unrun.
        """
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"task scope {self.name!r} is closed; {name!r} was not started")
        task = asyncio.get_running_loop().create_task(
            coroutine, name=f"{self.name}/{name}", context=context
        )
        self._tasks.add(task)
        task.add_done_callback(self._reap_fatal if fatal else self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)

    def _reap_fatal(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        _log.error("task failed", task=task.get_name(), exc_info=error)
        if self.failure is None:
            self.failure = error
            self.failed.set()

    async def cancel_all(self) -> None:
        """Cancels every task by name and waits until each has ended."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel(f"scope {self.name} closes")
            await asyncio.wait(tasks)
            self._tasks.difference_update(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closed = True
        await self.cancel_all()


async def retry_forever(
    attempt: Callable[[], Awaitable[None]],
    *,
    name: str,
    clock: Clock,
    expected: tuple[type[Exception], ...],
    first_delay_s: float = 0.2,
    max_delay_s: float = 5.0,
    healthy_after_s: float = 10.0,
) -> None:
    """Runs ``attempt`` again and again, backing off while it fails in expected ways.

    For long-lived streams: an attempt that lasted ``healthy_after_s`` resets the
    delay. An exception that is not expected propagates; cancellation ends it.
    """
    delay_s = first_delay_s
    while True:
        started_s = clock.monotonic()
        try:
            await attempt()
            _log.debug("ended, starts again", attempt=name)
        except expected as error:
            _log.info("failed, starts again", attempt=name, error=str(error), delay_s=delay_s)
        if clock.monotonic() - started_s >= healthy_after_s:
            delay_s = first_delay_s
        await clock.sleep(delay_s)
        delay_s = min(delay_s * 2, max_delay_s)


@contextlib.asynccontextmanager
async def cancel_on_exit(task: asyncio.Task[T]) -> AsyncIterator[asyncio.Task[T]]:
    """Makes sure ``task`` has ended when the block is left, however it is left."""
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
        await asyncio.wait([task])
