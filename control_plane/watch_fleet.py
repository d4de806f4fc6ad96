"""Serves the fleet to gateways: snapshot, deltas, heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator

from reelmesh.v1 import control_plane_service_pb2 as cp

from control_plane.errors import NotReadyError
from control_plane.fleet import FleetView
from reelkit.clock import Clock

# A watcher may come from a replica that is ahead by a few milliseconds.
CATCH_UP_S = 2.0
FIRST_READ_S = 5.0
# A thousand changes a second are no more than forty messages to each watcher; a change after
# a quiet moment is sent at once.
COALESCE_S = 0.025


class FleetWatchers:
    """Serves WatchFleet on this replica, each watcher at its own pace."""

    def __init__(
        self, view: FleetView, *, clock: Clock, heartbeat_s: float, resnapshot_s: float
    ) -> None:
        self.count = 0
        self._view = view
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._resnapshot_s = resnapshot_s
        self._stopping = False

    def stop(self) -> None:
        """Ends every watch with a word that sends the watcher to another replica."""
        self._stopping = True
        self._view.wake()

    async def serve(
        self, request: cp.WatchFleetRequest
    ) -> AsyncGenerator[cp.WatchFleetResponse, None]:
        """Responses for one watcher, for ever.

        A snapshot may come at any time: at first, where the history does not reach back
        to the watcher's version, after a restore of the store, and from time to time so
        that whatever went wrong heals. While the store is away only heartbeats come.

        Raises:
            NotReadyError: This replica has not read the store since it started, or stops.
        """
        view = self._view
        await self._first_read()
        await self._catch_up(request.after_version)
        # Epoch 0 is before every snapshot: a watcher without a version starts with one.
        version, epoch = request.after_version, view.epoch if request.after_version else 0
        snapshot_due_s = self._clock.monotonic() + self._resnapshot_s
        with self._counted():
            while not self._stopping:
                news = view.since(version) if epoch == view.epoch else None
                if news is None or self._clock.monotonic() >= snapshot_due_s:
                    version, epoch = view.version, view.epoch
                    snapshot_due_s = self._clock.monotonic() + self._resnapshot_s
                    yield view.snapshot()
                elif news.delta.ByteSize():
                    version = news.version
                    yield news
                    # What comes in the meantime shares the next message.
                    await asyncio.sleep(COALESCE_S)
                else:
                    version = view.version
                    if not await self._changes_soon():
                        yield cp.WatchFleetResponse(version=version, heartbeat=cp.FleetHeartbeat())
        raise NotReadyError("this replica is stopping; watch another")

    @contextlib.contextmanager
    def _counted(self) -> Generator[None, None, None]:
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    async def _changes_soon(self) -> bool:
        try:
            async with asyncio.timeout(self._heartbeat_s):
                await self._view.changed.wait()
        except TimeoutError:
            return False
        return True

    async def _first_read(self) -> None:
        try:
            async with asyncio.timeout(FIRST_READ_S):
                await self._view.wait_until(1)
        except TimeoutError:
            raise NotReadyError("this replica has not read the fleet yet; try another") from None

    async def _catch_up(self, version: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CATCH_UP_S):
                await self._view.wait_until(version)
