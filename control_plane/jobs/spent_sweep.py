"""Forgets what tenants spent on days that are over."""

from __future__ import annotations

from typing import Final

import structlog

from control_plane.election import Leadership
from control_plane.jobs.quota import day_of
from control_plane.keys import Keys
from control_plane.store.mirror import list_all
from control_plane.store.port import Delete, Store
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.jobs")

# A job counts to the day of its admission, and may live for a week. Nobody is held to that
# day any more, but whoever looks at yesterday's figures finds them whole.
KEEP_DAYS: Final = 8
SWEEP_EVERY_S: Final = 3600.0
_BATCH: Final = 100
_DAY_S: Final = 86_400.0


class SpentSweep:
    """A duty of the region's leader."""

    def __init__(self, *, store: Store, keys: Keys, clock: Clock) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock

    async def keep(self, reign: Leadership) -> None:
        """Sweeps now and from time to time, for as long as the reign lasts.

        Raises:
            StoreError: The store is away; begin anew.
            NotLeaderError: The reign is over.
        """
        while True:
            await self.sweep(reign)
            await self._clock.sleep(SWEEP_EVERY_S)

    async def sweep(self, reign: Leadership) -> None:
        """Removes the sums of days that are long over."""
        oldest = day_of(self._clock.wall() - KEEP_DAYS * _DAY_S)
        found, _ = await list_all(self._store, self._keys.spent)
        due = [kv.key for kv in found if self._day(kv.key) < oldest]
        for start in range(0, len(due), _BATCH):
            await reign.txn([], [Delete(key) for key in due[start : start + _BATCH]])
        if due:
            _log.info("sums of past days removed", count=len(due))

    def _day(self, key: str) -> str:
        return key.removeprefix(self._keys.spent).split("/")[1]
