"""Leases: granted and revoked by calls, renewed over one stream for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict, deque
from typing import Any

import structlog
from grpc import aio

from control_plane.errors import LeaseNotFoundError, StoreRefusedError, StoreUnavailableError
from control_plane.store.etcd.caller import Caller
from control_plane.store.etcd.connection import Connection
from control_plane.store.etcd.methods import (
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
)
from control_plane.store.etcdpb import reelmesh_etcd_pb2 as pb
from control_plane.store.port import LeaseInfo
from reelkit.tasks import TaskScope

_log = structlog.get_logger("control_plane.store.lease")

# Request timeouts that a renewal may take on a stream that brings other answers.
MAX_WAITS = 5


class Leases:
    """The lease calls of one client."""

    def __init__(self, caller: Caller, *, scope: TaskScope) -> None:
        self._caller = caller
        self._renewals = _Renewals(caller, scope=scope)

    async def grant(self, ttl_s: float) -> LeaseInfo:
        """A new lease; etcd raises a small ttl to its minimum (R9)."""
        request = pb.LeaseGrantRequest(ttl=max(1, math.ceil(ttl_s)))
        answer = await self._caller.unary(LEASE_GRANT, request)
        if answer.error:
            raise StoreRefusedError(answer.error)
        return LeaseInfo(answer.id, float(answer.ttl), float(answer.ttl))

    async def keep_alive(self, lease_id: int) -> float:
        """Renews the lease over the shared stream."""
        return await self._renewals.renew(lease_id)

    async def revoke(self, lease_id: int) -> None:
        """Ends the lease; one that is gone is fine, so asking twice is too."""
        with contextlib.suppress(LeaseNotFoundError):
            await self._caller.unary(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease_id))

    async def time_to_live(self, lease_id: int) -> LeaseInfo:
        """How long the lease lasts without renewal."""
        answer = await self._caller.unary(
            LEASE_TIME_TO_LIVE, pb.LeaseTimeToLiveRequest(id=lease_id)
        )
        # etcd answers -1 for a lease that is gone, 0 for one in its last second.
        if answer.ttl < 0:
            raise LeaseNotFoundError(lease_id)
        return LeaseInfo(lease_id, float(answer.ttl), float(answer.granted_ttl))


class _Renewals:
    """One keep-alive stream; opened on demand, dropped at the first sign of trouble."""

    def __init__(self, caller: Caller, *, scope: TaskScope) -> None:
        self._caller = caller
        self._scope = scope
        self._stream: _RenewalStream | None = None
        self._opening = asyncio.Lock()

    async def renew(self, lease_id: int) -> float:
        stream = await self._ready_stream()
        ttl_s = await self._answered(stream, stream.ask(lease_id))
        if ttl_s <= 0:
            raise LeaseNotFoundError(lease_id)
        return float(ttl_s)

    async def _answered(self, stream: _RenewalStream, answer: asyncio.Future[int]) -> int:
        try:
            for _ in range(MAX_WAITS):
                mark = stream.brought
                done, _pending = await asyncio.wait({answer}, timeout=self._caller.timeout_s)
                if done:
                    return answer.result()
                if stream.brought == mark:
                    # R5. A silent stream is a dead one: drop it, so that the next call opens
                    # another, on another endpoint where there is one.
                    answer.cancel()
                    await self._drop(stream)
                    break
                # It brings the answers of others, and thousands may be before this one: to
                # ask again would only make all of them later.
            raise StoreUnavailableError("a lease renewal got no answer in time")
        finally:
            answer.cancel()

    async def _ready_stream(self) -> _RenewalStream:
        async with self._opening:
            if self._stream is None or self._stream.closed:
                async with self._caller.endpoints.connected() as connection:
                    metadata = await self._caller.metadata(connection)
                    self._stream = _RenewalStream(connection, metadata)
                    self._scope.spawn(self._stream.run(), name="lease-renewals")
            return self._stream

    async def _drop(self, stream: _RenewalStream) -> None:
        if not stream.closed:
            stream.close()
            await self._caller.endpoints.failed(stream.connection)


class _RenewalStream:
    """Sends renewals and hands out their answers, which etcd gives in order per lease."""

    def __init__(self, connection: Connection, metadata: tuple[tuple[str, str], ...]) -> None:
        # Until the end of run, which begins after the caller has let go.
        connection.hold()
        self.connection = connection
        self.closed = False
        # Answers so far.
        self.brought = 0
        self._metadata = metadata
        self._outbox: asyncio.Queue[int] = asyncio.Queue()
        self._waiting: defaultdict[int, deque[asyncio.Future[int]]] = defaultdict(deque)
        self._call: Any = None

    def ask(self, lease_id: int) -> asyncio.Future[int]:
        """The answer's seconds, to come; 0 or less for a lease that is gone."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # The queue is bounded by the leases held: each has one renewal on its way.
        self._waiting[lease_id].append(future)
        self._outbox.put_nowait(lease_id)
        return future

    def close(self) -> None:
        """Ends the stream; renewals on their way fail as unavailable."""
        self.closed = True
        if self._call is not None:
            self._call.cancel()
        self._fail_waiting("the renewal stream was dropped")

    async def run(self) -> None:
        """Carries renewals until the stream breaks; never raises for a broken one."""
        try:
            self._call = self.connection.channel.stream_stream(
                LEASE_KEEP_ALIVE.path,
                request_serializer=LEASE_KEEP_ALIVE.request.SerializeToString,
                response_deserializer=LEASE_KEEP_ALIVE.response.FromString,
            )(
                self._requests(),
                # A member that has lost its cluster must say so instead of waiting.
                metadata=(*self._metadata, ("hasleader", "true")),
            )
            async for answer in self._call:
                self._deliver(answer)
        except aio.AioRpcError as error:
            _log.info("renewal stream broke", code=error.code().name, text=error.details())
        finally:
            self.close()
            await self.connection.release()

    async def _requests(self) -> Any:
        while True:
            yield pb.LeaseKeepAliveRequest(id=await self._outbox.get())

    def _deliver(self, answer: pb.LeaseKeepAliveResponse) -> None:
        self.brought += 1
        waiting = self._waiting.get(answer.id)
        if not waiting:
            return
        future = waiting.popleft()
        if not waiting:
            del self._waiting[answer.id]
        if not future.done():
            future.set_result(answer.ttl)

    def _fail_waiting(self, text: str) -> None:
        for futures in self._waiting.values():
            for future in futures:
                if not future.done():
                    future.set_exception(StoreUnavailableError(text))
        self._waiting.clear()
