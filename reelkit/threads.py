"""Blocking calls beside an event loop, in threads that nobody has to wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_daemon_thread(
    function: Callable[[], T], *, name: str, on_late: Callable[[T], None] = lambda _result: None
) -> asyncio.Future[T]:
    """The result of a blocking function, as a future of the running loop.

    The thread is a daemon of its own, unlike those of asyncio's pool: one that hangs for
    ever keeps neither the process from ending nor another call from its turn.

    Args:
        function: Called in the thread; what it raises goes to the future.
        name: Of the thread.
        on_late: Gets a result that came after the future was cancelled, on the loop, or in
            the thread where the loop is closed by then.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def succeed(result: T) -> None:
        if future.cancelled():
            on_late(result)
        else:
            future.set_result(result)

    def fail(error: Exception) -> None:
        if not future.cancelled():
            future.set_exception(error)

    def work() -> None:
        try:
            result = function()
        except Exception as raised:  # noqa: BLE001 - the thread's boundary: it goes to the future
            error = raised
            loop_call(lambda: fail(error), lambda: None)
        else:
            loop_call(lambda: succeed(result), lambda: on_late(result))

    def loop_call(on_loop: Callable[[], None], too_late: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(on_loop)
        except RuntimeError:
            # The loop is closed: the process is about to leave.
            too_late()

    threading.Thread(target=work, name=name, daemon=True).start()
    return future
