"""Serves the regions to gateways: whole at first, after each change, and as a heartbeat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from reelmesh.v1 import control_plane_service_pb2 as cp

from control_plane.errors import NotReadyError
from control_plane.regions.book import RegionBook

FIRST_READ_S = 5.0


class RegionWatchers:
    """Serves WatchRegions on this replica, each watcher at its own pace."""

    def __init__(self, book: RegionBook, *, heartbeat_s: float) -> None:
        self._book = book
        self._heartbeat_s = heartbeat_s
        self._stopping = False

    def stop(self) -> None:
        """Ends every watch with a word that sends the watcher to another replica."""
        self._stopping = True
        self._book.wake()

    async def serve(
        self, _request: cp.WatchRegionsRequest
    ) -> AsyncGenerator[cp.WatchRegionsResponse, None]:
        """Responses for one watcher, for ever.

        Raises:
            NotReadyError: The global store was not read yet, or this replica stops.
        """
        try:
            async with asyncio.timeout(FIRST_READ_S):
                await self._book.loaded.wait()
        except TimeoutError:
            raise NotReadyError("this replica has not read the regions yet; try another") from None
        while not self._stopping:
            changed = self._book.changed
            yield cp.WatchRegionsResponse(regions=self._book.views())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s):
                    await changed.wait()
        raise NotReadyError("this replica is stopping; watch another")
