"""One record that is in the store for as long as somebody reports."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from control_plane.errors import LeaseNotFoundError, SupersededError
from control_plane.store.port import (
    Delete,
    Get,
    Put,
    Store,
    unchanged,
)
from control_plane.store.writer import FencedWriter
from reelkit.clock import Clock

_log = structlog.get_logger("control_plane.leased_record")

# Renewals closer together than this share of the lease's time would be waste.
RENEW_SHARE = 1 / 6
MAX_CLAIM_TRIES = 5


class LeasedRecord:
    """A key under a lease that this replica renews.

    The lease signals liveness only: every write compares the revision that this
    replica wrote or took over, so that of two replicas that both believe they hold
    the node, one is told that it does not.
    """

    def __init__(
        self, *, store: Store, writer: FencedWriter, clock: Clock, key: str, ttl_s: float
    ) -> None:
        self.key = key
        self.lease_id = 0
        self.ttl_s = ttl_s
        # What the store holds, as far as we know.
        self.value = b""
        self._store = store
        self._writer = writer
        self._clock = clock
        self._revision = 0
        self._renewed_s = float("-inf")

    async def claim(self, value: bytes, *, lease_id: int = 0, also: Sequence[Put] = ()) -> None:
        """Puts the record in the store and makes this replica its holder; newest wins.

        Args:
            value: The record.
            lease_id: The lease it was under before; kept where it still is, so that
                nobody sees the record go. 0: none.
            also: Written in the same transaction.

        Raises:
            StoreError: The store is away; claim again.
            SupersededError: Others write the same record all the time.
        """
        if lease_id and not await self._adopt(lease_id):
            lease_id = 0
        for _ in range(MAX_CLAIM_TRIES):
            found = await self._store.get(self.key)
            if lease_id == 0 or found is None or found.lease_id != lease_id:
                # A lease that the record is not under may be anybody's: take a new one.
                lease_id = await self._grant()
            elif found.value == value:
                self._hold(value, lease_id, found.mod_revision)
                return
            result = await self._writer.txn(
                [unchanged(self.key, found.mod_revision if found else 0)],
                [Put(self.key, value, lease_id), *also],
            )
            if result.succeeded:
                self._hold(value, lease_id, result.revision)
                return
        raise SupersededError(
            f"{self.key} is written by several streams at once; is the id in use twice?"
        )

    async def write(self, value: bytes, *, also: Sequence[Put] = ()) -> None:
        """Replaces the record; call :meth:`claim` again after LeaseNotFoundError.

        Raises:
            LeaseNotFoundError: The lease ran out and took the record along.
            SupersededError: Another stream holds the record now.
            StoreError: The store is away; the write may be repeated.
        """
        for _ in range(MAX_CLAIM_TRIES):
            result = await self._writer.txn(
                [unchanged(self.key, self._revision)],
                [Put(self.key, value, self.lease_id), *also],
                [Get(self.key)],
            )
            if result.succeeded:
                self._hold(value, self.lease_id, result.revision)
                return
            found = result.gets[0]
            if found is None:
                raise LeaseNotFoundError(self.lease_id)
            if found.lease_id != self.lease_id:
                break
            # Our own lease at another revision: the agent moved to another replica and
            # came back, or the store was restored to a time within this lease.
            self._revision = found.mod_revision
        raise SupersededError(f"{self.key} was taken over by another stream")

    async def renew(self) -> None:
        """Keeps the lease alive, unless that was done a moment ago.

        Raises:
            LeaseNotFoundError: The lease ran out and took the record along.
            StoreError: The store is away; the lease may last a while yet.
        """
        now_s = self._clock.monotonic()
        if now_s - self._renewed_s < self.ttl_s * RENEW_SHARE:
            return
        self.ttl_s = await self._store.keep_alive(self.lease_id)
        self._renewed_s = now_s

    async def remove(self, *, also: Sequence[Put] = ()) -> None:
        """Takes the record out at once and writes ``also``, if it is still ours."""
        await self._writer.txn([unchanged(self.key, self._revision)], [Delete(self.key), *also])
        await self._store.revoke(self.lease_id)

    async def _adopt(self, lease_id: int) -> bool:
        started_s = self._clock.monotonic()
        try:
            self.ttl_s = await self._store.keep_alive(lease_id)
        except LeaseNotFoundError:
            return False
        self._renewed_s = started_s
        return True

    async def _grant(self) -> int:
        started_s = self._clock.monotonic()
        lease = await self._store.grant(self.ttl_s)
        self.ttl_s, self._renewed_s = lease.granted_s, started_s
        return lease.lease_id

    def _hold(self, value: bytes, lease_id: int, revision: int) -> None:
        self.value, self.lease_id, self._revision = value, lease_id, revision
