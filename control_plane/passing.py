"""Keys that go by themselves after a time, since nobody would come to remove them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from control_plane.errors import LeaseNotFoundError
from control_plane.store.port import Compare, Get, Put, Store, TxnResult
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock

_BUCKET_S: Final = 600.0


class PassingKeys:
    """Writes keys under leases that are shared by what is written within ten minutes."""

    def __init__(self, *, store: Store, writer: FencedWriter, clock: Clock) -> None:
        self._store = store
        self._writer = writer
        self._clock = clock
        # By how long to keep: the lease, and until when it may be given out.
        self._leases: dict[int, tuple[int, float]] = {}

    async def put(
        self, key: str, value: bytes, *, keep_s: int, compares: Sequence[Compare] = ()
    ) -> TxnResult:
        """Writes the key if all comparisons hold, else reads it.

        It lasts ``keep_s`` seconds from now, and ten minutes more at most.

        Raises:
            StoreError: The store is away.
        """
        lease_id = await self._lease(keep_s)
        try:
            return await self._writer.txn(compares, [Put(key, value, lease_id)], [Get(key)])
        except LeaseNotFoundError:
            # It was revoked, or the store was restored to a time before it.
            self._leases = {k: v for k, v in self._leases.items() if v[0] != lease_id}
        lease_id = await self._lease(keep_s)
        return await self._writer.txn(compares, [Put(key, value, lease_id)], [Get(key)])

    async def _lease(self, keep_s: int) -> int:
        now_s = self._clock.monotonic()
        found = self._leases.get(keep_s)
        if found is not None and now_s < found[1]:
            return found[0]
        granted = await self._store.grant(keep_s + _BUCKET_S)
        # Those of other lengths whose time is over are not asked for again.
        self._leases = {k: v for k, v in self._leases.items() if now_s < v[1]}
        self._leases[keep_s] = (granted.lease_id, now_s + _BUCKET_S)
        return granted.lease_id
