"""The store in memory: the fake beside the port, with etcd's behaviour and no server."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Self

from control_plane.errors import (
    CompactedError,
    LeaseNotFoundError,
    StoreRefusedError,
    StoreRestoredError,
    StoreUnavailableError,
)
from control_plane.store.checks import check_prefix, check_txn
from control_plane.store.port import (
    DEFAULT_PAGE_SIZE,
    Compare,
    Delete,
    EventKind,
    Get,
    KeyValue,
    LeaseInfo,
    Op,
    Operator,
    Put,
    RangePage,
    Target,
    TxnResult,
    WatchBatch,
    WatchEvent,
)
from reelkit.clock import Clock
from reelkit.tasks import TaskScope

MIN_TTL_S = 1


class _Lease:
    def __init__(self, lease_id: int, granted_s: float, expires_s: float) -> None:
        self.lease_id = lease_id
        self.granted_s = granted_s
        self.expires_s = expires_s
        self.keys: set[str] = set()


class MemoryStore:
    """A store for tests and trials; its leases run by the clock it is given.

    Use it as an async context manager: leaving it ends the leases' timers.
    ``available = False`` makes every call fail as a store that is away does, while
    watches wait; :meth:`compact` and :meth:`restore_empty` play the operator.
    """

    def __init__(self, *, clock: Clock) -> None:
        self.available = True
        self._clock = clock
        self._revision = 1
        self._compacted = 0
        self._generation = 0
        self._keys: dict[str, KeyValue] = {}
        # The keys as of the last compaction, from which a past state is replayed.
        self._base: dict[str, KeyValue] = {}
        self._history: list[WatchEvent] = []
        self._leases: dict[int, _Lease] = {}
        self._lease_ids = itertools.count(1)
        self._changed = asyncio.Event()
        self._scope = TaskScope("memory-store")

    async def __aenter__(self) -> Self:
        await self._scope.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._scope.__aexit__(exc_type, exc, traceback)

    # Keys

    async def get(self, key: str) -> KeyValue | None:
        """See :class:`~control_plane.store.port.Store`."""
        self._check_available()
        return self._keys.get(key)

    async def range(
        self,
        prefix: str,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE_SIZE,
        revision: int = 0,
        descending: bool = False,
    ) -> RangePage:
        """See :class:`~control_plane.store.port.Store`."""
        check_prefix(prefix)
        self._check_available()
        if revision > self._revision:
            raise StoreRefusedError(f"revision {revision} is in the future")
        state = self._keys if revision in (0, self._revision) else self._state_at(revision)
        found = sorted((k for k in state if k.startswith(prefix)), reverse=descending)
        if after is not None:
            found = [k for k in found if (k < after if descending else k > after)]
        return RangePage(
            items=tuple(state[key] for key in found[:limit]),
            revision=revision or self._revision,
            more=len(found) > limit,
        )

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """See :class:`~control_plane.store.port.Store`."""
        return (await self.txn([], [Put(key, value, lease_id)])).revision

    async def delete(self, key: str) -> bool:
        """See :class:`~control_plane.store.port.Store`."""
        before = self._revision
        return (await self.txn([], [Delete(key)])).revision > before

    async def txn(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """See :class:`~control_plane.store.port.Store`."""
        check_txn(compares, success, failure)
        self._check_available()
        succeeded = all(self._all_hold(compare) for compare in compares)
        ops = success if succeeded else failure
        for op in ops:
            if isinstance(op, Put) and op.lease_id and op.lease_id not in self._leases:
                raise LeaseNotFoundError(op.lease_id)
        gets = self._apply(ops)
        return TxnResult(succeeded=succeeded, revision=self._revision, gets=gets)

    # Leases

    async def grant(self, ttl_s: float) -> LeaseInfo:
        """See :class:`~control_plane.store.port.Store`."""
        self._check_available()
        granted_s = float(max(MIN_TTL_S, math.ceil(ttl_s)))
        lease = _Lease(next(self._lease_ids), granted_s, self._clock.monotonic() + granted_s)
        self._leases[lease.lease_id] = lease
        self._scope.spawn(self._expire(lease), name=f"lease-{lease.lease_id}")
        return LeaseInfo(lease.lease_id, granted_s, granted_s)

    async def keep_alive(self, lease_id: int) -> float:
        """See :class:`~control_plane.store.port.Store`."""
        self._check_available()
        lease = self._lease(lease_id)
        lease.expires_s = self._clock.monotonic() + lease.granted_s
        return lease.granted_s

    async def revoke(self, lease_id: int) -> None:
        """See :class:`~control_plane.store.port.Store`."""
        self._check_available()
        lease = self._leases.get(lease_id)
        if lease is not None:
            self._end(lease)

    async def time_to_live(self, lease_id: int) -> LeaseInfo:
        """See :class:`~control_plane.store.port.Store`."""
        self._check_available()
        lease = self._lease(lease_id)
        return LeaseInfo(lease_id, lease.expires_s - self._clock.monotonic(), lease.granted_s)

    # Watching

    async def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See :class:`~control_plane.store.port.Store`."""
        check_prefix(prefix)
        generation, next_revision = self._generation, from_revision
        while True:
            if generation != self._generation:
                raise StoreRestoredError("the store was restored")
            changed = self._changed
            if self.available:
                if next_revision <= self._compacted:
                    raise CompactedError(self._compacted)
                events = tuple(
                    event
                    for event in self._history
                    if event.kv.mod_revision >= next_revision and event.kv.key.startswith(prefix)
                )
                next_revision = max(next_revision, self._revision + 1)
                if events:
                    yield WatchBatch(events, events[-1].kv.mod_revision)
                    continue
            await changed.wait()

    # What operators and outages do

    def set_available(self, *, available: bool) -> None:
        """Makes the store answer, or fail as one that cannot be reached."""
        self.available = available
        self._notify()

    def compact(self, revision: int) -> None:
        """Forgets the history up to and including ``revision``."""
        revision = min(revision, self._revision)
        if revision <= self._compacted:
            raise CompactedError(self._compacted)
        self._base = self._state_at(revision)
        self._compacted = revision
        self._history = [e for e in self._history if e.kv.mod_revision > self._compacted]
        self._notify()

    def restore_empty(self) -> None:
        """Plays an operator who restored an empty backup: revision 1, no keys, no leases."""
        self._generation += 1
        self._revision, self._compacted = 1, 0
        self._keys, self._base, self._history = {}, {}, []
        self._leases = {}
        self._notify()

    # Inside

    def _all_hold(self, compare: Compare) -> bool:
        if not compare.prefix:
            return _holds(compare, self._keys.get(compare.key))
        found = [kv for key, kv in self._keys.items() if key.startswith(compare.key)]
        if not found:
            # As in etcd: it compares as one absent key.
            return _holds(compare, None)
        return all(_holds(compare, kv) for kv in found)

    def _check_available(self) -> None:
        if not self.available:
            raise StoreUnavailableError("the store is away")

    def _lease(self, lease_id: int) -> _Lease:
        lease = self._leases.get(lease_id)
        if lease is None:
            raise LeaseNotFoundError(lease_id)
        return lease

    async def _expire(self, lease: _Lease) -> None:
        while self._leases.get(lease.lease_id) is lease:
            remaining_s = lease.expires_s - self._clock.monotonic()
            if remaining_s <= 0:
                self._end(lease)
            else:
                await self._clock.sleep(remaining_s)

    def _end(self, lease: _Lease) -> None:
        del self._leases[lease.lease_id]
        self._apply([Delete(key) for key in sorted(lease.keys)])

    def _apply(self, ops: Sequence[Op]) -> tuple[KeyValue | None, ...]:
        """Runs the operations as one revision, if any of them changes something."""
        revision = self._revision + 1
        gets: list[KeyValue | None] = []
        events: list[WatchEvent] = []
        for op in ops:
            if isinstance(op, Get):
                gets.append(self._keys.get(op.key))
            elif isinstance(op, Put):
                events.append(self._put(op, revision))
            elif op.key in self._keys:
                events.append(self._delete(op.key, revision))
        if events:
            self._revision = revision
            self._history.extend(events)
            self._notify()
        return tuple(gets)

    def _put(self, op: Put, revision: int) -> WatchEvent:
        old = self._keys.get(op.key)
        if old is not None and old.lease_id in self._leases:
            self._leases[old.lease_id].keys.discard(op.key)
        if op.lease_id:
            self._leases[op.lease_id].keys.add(op.key)
        kv = KeyValue(
            key=op.key,
            value=op.value,
            create_revision=old.create_revision if old else revision,
            mod_revision=revision,
            version=old.version + 1 if old else 1,
            lease_id=op.lease_id,
        )
        self._keys[op.key] = kv
        return WatchEvent(EventKind.PUT, kv)

    def _delete(self, key: str, revision: int) -> WatchEvent:
        old = self._keys.pop(key)
        if old.lease_id in self._leases:
            self._leases[old.lease_id].keys.discard(key)
        return WatchEvent(EventKind.DELETE, KeyValue(key, b"", 0, revision, 0, 0))

    def _state_at(self, revision: int) -> dict[str, KeyValue]:
        if revision < self._compacted:
            raise CompactedError(self._compacted)
        state = dict(self._base)
        for event in self._history:
            if event.kv.mod_revision <= revision:
                if event.kind is EventKind.PUT:
                    state[event.kv.key] = event.kv
                else:
                    state.pop(event.kv.key, None)
        return state

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _holds(compare: Compare, kv: KeyValue | None) -> bool:
    if compare.target is Target.VALUE:
        # As in etcd: an absent key's value compares with nothing.
        return kv is not None and _compare(kv.value, compare.operator, compare.operand)
    found = 0
    if kv is not None:
        found = {
            Target.VERSION: kv.version,
            Target.CREATE_REVISION: kv.create_revision,
            Target.MOD_REVISION: kv.mod_revision,
            Target.LEASE: kv.lease_id,
        }[compare.target]
    return _compare(found, compare.operator, compare.operand)


def _compare(found: int | bytes, operator: Operator, operand: int | bytes) -> bool:
    if operator is Operator.EQUAL:
        return found == operand
    if operator is Operator.NOT_EQUAL:
        return found != operand
    if isinstance(found, int) and isinstance(operand, int):
        return found > operand if operator is Operator.GREATER else found < operand
    if isinstance(found, bytes) and isinstance(operand, bytes):
        return found > operand if operator is Operator.GREATER else found < operand
    raise TypeError(f"cannot compare {type(found).__name__} with {type(operand).__name__}")
