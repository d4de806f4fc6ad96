"""SIGINT, SIGTERM and SIGHUP: the first asks to stop, the second insists."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Counts the signals of this process; made by :func:`catch_interrupts`."""

    def __init__(self, task: asyncio.Task[object], on_second: Callable[[], None]) -> None:
        self._task = task
        self._on_second = on_second
        self.signum: int | None = None
        """The first signal, once there was one."""

    def handle(self, signum: int) -> None:
        """The first cancels the task; the second does ``on_second`` and exits at once."""
        if self.signum is not None:
            self._on_second()
            # Nothing may hold a person who asked twice.
            os._exit(128 + signum)
        self.signum = signum
        self._task.cancel(f"signal {signum}")

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended."""
        return 128 + (self.signum or 0)


@contextlib.contextmanager
def catch_interrupts(*, on_second: Callable[[], None]) -> Iterator[Interrupts]:
    """Turns signals into the cancellation of the current task for the block."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("catch_interrupts needs a running task")
    interrupts = Interrupts(task, on_second)
    loop = asyncio.get_running_loop()
    for signum in _SIGNALS:
        loop.add_signal_handler(signum, interrupts.handle, signum)
    try:
        yield interrupts
    finally:
        for signum in _SIGNALS:
            loop.remove_signal_handler(signum)
