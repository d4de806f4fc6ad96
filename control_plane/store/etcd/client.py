"""The Store port on etcd."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Self

from control_plane.errors import LeaseNotFoundError
from control_plane.store.checks import check_prefix, check_txn, check_value
from control_plane.store.etcd.caller import Caller, CallObserver
from control_plane.store.etcd.connection import Endpoints, EtcdSettings
from control_plane.store.etcd.convert import (
    from_compare,
    from_op,
    gets_of,
    prefix_end,
    to_key_value,
)
from control_plane.store.etcd.history import History
from control_plane.store.etcd.lease import Leases
from control_plane.store.etcd.methods import COMPACT, DELETE_RANGE, PUT, RANGE, TXN
from control_plane.store.etcd.watch import watch
from control_plane.store.etcdpb import reelmesh_etcd_pb2 as pb
from control_plane.store.port import (
    DEFAULT_PAGE_SIZE,
    Compare,
    KeyValue,
    LeaseInfo,
    Op,
    Put,
    RangePage,
    TxnResult,
    WatchBatch,
)
from reelkit.clock import Clock
from reelkit.tasks import TaskScope


class EtcdStore:
    """A :class:`~control_plane.store.port.Store` on one etcd cluster.

    Use it as an async context manager. It connects when it is first used, so that a
    process starts while etcd is away.
    """

    def __init__(
        self,
        settings: EtcdSettings,
        *,
        clock: Clock,
        observe: CallObserver = lambda _method, _code, _seconds, _answered: None,
    ) -> None:
        self._scope = TaskScope("etcd")
        self._endpoints = Endpoints(settings, clock=clock)
        self._caller = Caller(
            settings,
            endpoints=self._endpoints,
            history=History(),
            clock=clock,
            observe=observe,
        )
        self._leases = Leases(self._caller, scope=self._scope)

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
        await self._endpoints.close()

    async def get(self, key: str) -> KeyValue | None:
        """See :class:`~control_plane.store.port.Store`."""
        answer = await self._caller.unary(RANGE, pb.RangeRequest(key=key.encode()))
        return to_key_value(answer.kvs[0]) if answer.kvs else None

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
        start, end = prefix.encode(), prefix_end(prefix.encode())
        if after is not None and descending:
            end = after.encode()
        elif after is not None:
            # The next key in order is the last one with a zero byte behind it.
            start = after.encode() + b"\0"
        request = pb.RangeRequest(key=start, range_end=end, limit=limit, revision=revision)
        if descending:
            # Ascending is etcd's own order, which costs it no sorting.
            request.sort_order = pb.RangeRequest.DESCEND
        answer = await self._caller.unary(RANGE, request)
        return RangePage(
            items=tuple(map(to_key_value, answer.kvs)),
            revision=revision or answer.header.revision,
            more=answer.more,
        )

    async def put(self, key: str, value: bytes, *, lease_id: int = 0) -> int:
        """See :class:`~control_plane.store.port.Store`."""
        check_value(key, value)
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease_id)
        try:
            return (await self._caller.unary(PUT, request)).header.revision
        except LeaseNotFoundError:
            raise LeaseNotFoundError(lease_id) from None

    async def delete(self, key: str) -> bool:
        """See :class:`~control_plane.store.port.Store`."""
        request = pb.DeleteRangeRequest(key=key.encode())
        return (await self._caller.unary(DELETE_RANGE, request)).deleted > 0

    async def txn(
        self, compares: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op] = ()
    ) -> TxnResult:
        """See :class:`~control_plane.store.port.Store`."""
        check_txn(compares, success, failure)
        request = pb.TxnRequest(
            compare=map(from_compare, compares),
            success=map(from_op, success),
            failure=map(from_op, failure),
        )
        try:
            answer = await self._caller.unary(TXN, request)
        except LeaseNotFoundError:
            # etcd does not say which; a transaction of ours names one lease at most.
            leases = [op.lease_id for op in (*success, *failure) if isinstance(op, Put)]
            raise LeaseNotFoundError(max(leases, default=0)) from None
        return TxnResult(answer.succeeded, answer.header.revision, gets_of(answer.responses))

    async def grant(self, ttl_s: float) -> LeaseInfo:
        """See :class:`~control_plane.store.port.Store`."""
        return await self._leases.grant(ttl_s)

    async def keep_alive(self, lease_id: int) -> float:
        """See :class:`~control_plane.store.port.Store`."""
        return await self._leases.keep_alive(lease_id)

    async def revoke(self, lease_id: int) -> None:
        """See :class:`~control_plane.store.port.Store`."""
        await self._leases.revoke(lease_id)

    async def time_to_live(self, lease_id: int) -> LeaseInfo:
        """See :class:`~control_plane.store.port.Store`."""
        return await self._leases.time_to_live(lease_id)

    def watch(self, prefix: str, *, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """See :class:`~control_plane.store.port.Store`."""
        check_prefix(prefix)
        return watch(self._caller, prefix=prefix, from_revision=from_revision)

    async def compact(self, revision: int) -> None:
        """Forgets the history up to ``revision``: an operator's act, used by tests."""
        await self._caller.unary(COMPACT, pb.CompactionRequest(revision=revision, physical=True))
