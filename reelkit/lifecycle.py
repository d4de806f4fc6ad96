"""One way to live for every process: startup, serve, drain, stop; a second signal forces."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog

from reelkit.settings import CONFIG_ERROR_CODE, ConfigError
from reelkit.watchdog import DEFAULT_LIMIT_S, LoopWatchdog

_log = structlog.get_logger("reelkit.lifecycle")

FORCED_EXIT_CODE = 70


class App(Protocol):
    """What a composition root yields."""

    async def serve(self) -> None:
        """Returns only when something essential failed; raises its error."""
        ...

    async def drain(self) -> None:
        """Fails readiness, stops accepting and waits for the work in hand, to a deadline."""
        ...


def run_app(
    build: Callable[[], AbstractAsyncContextManager[App]],
    *,
    name: str,
    hang_limit_s: float = DEFAULT_LIMIT_S,
) -> int:
    """Runs an app until SIGTERM or SIGINT and returns the process's exit code.

    The first signal drains and stops, a second exits at once. An app whose ``serve``
    fails is stopped and answers 1, so that a supervisor restarts it. One whose ``build``
    raises ConfigError answers 2 and says why in one line. Where the event loop stands still
    for ``hang_limit_s``, the process ends with 71.
    """
    with (
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
        LoopWatchdog(runner.get_loop(), limit_s=hang_limit_s),
    ):
        return runner.run(_live(build, name=name))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _live(build: Callable[[], AbstractAsyncContextManager[App]], *, name: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(signum: int) -> None:
        if stop.is_set():
            # The person asked twice: no cleanup may hold them any longer.
            os._exit(FORCED_EXIT_CODE)
        _log.info("stopping", process=name, signal=signal.Signals(signum).name)
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, on_signal, signum)

    try:
        async with build() as app:
            failed = await _serve_until(app, stop, name=name)
    except ConfigError as error:
        reason = "; ".join(str(error).splitlines())
        _log.error("the configuration cannot be used", process=name, reason=reason)
        return CONFIG_ERROR_CODE
    except Exception:  # noqa: BLE001 - the process boundary: logged, then the exit code says it
        _log.exception("failed", process=name)
        return 1
    _log.info("stopped", process=name)
    return 1 if failed else 0


async def _serve_until(app: App, stop: asyncio.Event, *, name: str) -> bool:
    """Serves until the signal, then drains; True when serving ended by itself."""
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(app.serve(), name=f"{name}/serve")
        stopping = group.create_task(stop.wait(), name=f"{name}/stop")
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        failed = serving.done()
        if not failed:
            await app.drain()
        serving.cancel()
        stopping.cancel()
    return failed
