"""Sums of days that are long over are forgotten, and no others."""

from control_plane.jobs.quota import day_of
from control_plane.jobs.spent_sweep import KEEP_DAYS, SpentSweep
from control_plane.keys import Keys
from control_plane.store.memory import MemoryStore
from control_plane.store.mirror import list_all
from reelkit.clock import ManualClock

KEYS = Keys(prefix="/p", region="ap")
DAY_S = 86_400.0


class Reign:
    def __init__(self, store):
        self._store = store

    async def txn(self, compares, ops):
        return await self._store.txn(compares, ops)


async def test_sums_are_kept_for_as_long_as_a_job_may_live_and_a_day():
    clock = ManualClock(start_s=20_000 * DAY_S)
    async with MemoryStore(clock=clock) as store:
        days = [day_of(clock.wall() - ago * DAY_S) for ago in range(KEEP_DAYS + 130)]
        for day in days:
            await store.put(KEYS.spent_on("t", day) + "g0", b"")
        await SpentSweep(store=store, keys=KEYS, clock=clock).sweep(Reign(store))
        left, _ = await list_all(store, KEYS.spent)
        assert [kv.key.split("/")[-2] for kv in left] == sorted(days[: KEEP_DAYS + 1])
