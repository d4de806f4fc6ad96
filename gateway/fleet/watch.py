"""The gateway's streams to the control plane: fleet and orphans from it, a beat to it.

They run for as long as the gateway does and start again when they break. Neither is
needed to serve: what was known last stays in :class:`gateway.fleet.nodes.Fleet`.

Both go to the same replica, since only one of them tells whether it lives: WatchFleet
brings a heartbeat every few seconds, AttachGateway a word when the lease changes, which
may be never. A replica that hangs is left by both; gRPC's pings alone would not tell,
since they are answered below the replica's own code.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from grpc import aio
from reelmesh.v1 import (
    access_pb2,
    control_plane_service_pb2,
    job_service_pb2,
    region_pb2,
    tenant_pb2,
)
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub
from reelmesh.v1.job_service_pb2_grpc import JobServiceStub

from gateway.fleet.node_link import StreamBroken, broken
from gateway.fleet.nodes import Fleet
from reelkit.clock import Clock
from reelkit.rpc import REPORTS_PER_LEASE, internal_channel
from reelkit.tasks import TaskScope, retry_forever

_FIRST_ANSWER_S = 5.0


class ControlPlaneLink:
    """Follows the region's control plane over whichever replica answers."""

    def __init__(
        self,
        *,
        endpoints: Sequence[str],
        fleet: Fleet,
        clock: Clock,
        hello: control_plane_service_pb2.GatewayHello,
        silence_timeout_s: float,
        on_fleet: Callable[[control_plane_service_pb2.WatchFleetResponse], None] = lambda _: None,
        on_superseded: Callable[[Sequence[control_plane_service_pb2.SupersededJob]], None]
        | None = None,
        on_revocations: Callable[[access_pb2.TokenRevocations], None] | None = None,
        on_tenants: Callable[[Sequence[tenant_pb2.TenantPolicy]], None] | None = None,
        on_regions: Callable[[Sequence[region_pb2.RegionView]], None] | None = None,
        on_orphans: Callable[[Sequence[job_service_pb2.Orphan]], None] | None = None,
        open_channel: Callable[[str], aio.Channel] = internal_channel,
    ) -> None:
        self._channels = [open_channel(endpoint) for endpoint in endpoints]
        self._stubs = [ControlPlaneServiceStub(channel) for channel in self._channels]
        self._job_stubs = [JobServiceStub(channel) for channel in self._channels]
        self._on_fleet = on_fleet
        self._on_orphans = on_orphans
        self._on_regions = on_regions
        self._on_superseded = on_superseded
        self._on_revocations = on_revocations
        self._on_tenants = on_tenants
        self._leaving = asyncio.Event()
        self._left = asyncio.Event()
        # Index of the replica that the next stream goes to.
        self._replica = 0
        self._attached: tuple[int, asyncio.Timeout] | None = None
        self._fleet = fleet
        self._clock = clock
        self._hello = hello
        self._silence_timeout_s = silence_timeout_s
        self._version = 0
        self._lease_id = 0
        self._streams: list[asyncio.Task[None]] = []
        self.connected = False

    def start(self, scope: TaskScope) -> None:
        """Spawns both streams."""
        streams = [("watch-fleet", self._watch), ("attach", self._attach)]
        if self._on_orphans is not None:
            streams.append(("watch-orphans", self._watch_orphans))
        if self._on_regions is not None:
            streams.append(("watch-regions", self._watch_regions))
        for name, stream in streams:
            loop = retry_forever(
                stream,
                name=name,
                clock=self._clock,
                expected=(StreamBroken,),
                first_delay_s=0.1,
                max_delay_s=2.0,
            )
            self._streams.append(scope.spawn(loop, name=name))

    async def goodbye(self, *, timeout_s: float = 1.0) -> None:
        """Ends the attachment in good order, which takes the gateway's record out at once.

        Its jobs are orphans from then on, and need not wait for a lease.
        """
        self._leaving.set()
        if self._attached is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._left.wait()

    async def close(self) -> None:
        """Ends both streams, then closes the channels that they would begin anew on."""
        for stream in self._streams:
            stream.cancel()
        if self._streams:
            await asyncio.wait(self._streams)
        for channel in self._channels:
            await channel.close()

    async def _watch(self) -> None:
        replica = self._replica
        stub = self._stubs[replica]
        request = control_plane_service_pb2.WatchFleetRequest(after_version=self._version)
        call = stub.WatchFleet(request)
        try:
            async with asyncio.timeout(_FIRST_ANSWER_S) as limit:
                while isinstance(
                    response := await call.read(), control_plane_service_pb2.WatchFleetResponse
                ):
                    limit.reschedule(self._next_word_by())
                    self._heard(replica)
                    self.connected = True
                    self._fleet.hear()
                    self._take(response)
        except (aio.AioRpcError, TimeoutError) as error:
            raise broken(error) from None
        finally:
            self.connected = False
            self._fleet.miss()
            self._leave(replica)
            call.cancel()

    def _next_word_by(self) -> float:
        return asyncio.get_running_loop().time() + self._silence_timeout_s

    def _heard(self, replica: int) -> None:
        """A word on either stream is one of the replica's: the attachment holds on."""
        if self._attached is None or self._attached[0] != replica:
            return
        limit = self._attached[1]
        if not limit.expired():
            limit.reschedule(self._next_word_by())

    def _leave(self, replica: int) -> None:
        """The next stream goes to another, unless the other stream has moved on already."""
        if self._replica == replica:
            self._replica = (replica + 1) % len(self._stubs)

    def _take(self, response: control_plane_service_pb2.WatchFleetResponse) -> None:
        match response.WhichOneof("message"):
            case "snapshot":
                self._fleet.replace(response.snapshot)
            case "delta":
                self._fleet.apply(response.delta)
            case _:
                return
        self._on_fleet(response)
        self._version = response.version

    async def _watch_regions(self) -> None:
        replica = self._replica
        call = self._stubs[replica].WatchRegions(control_plane_service_pb2.WatchRegionsRequest())
        try:
            async with asyncio.timeout(_FIRST_ANSWER_S) as limit:
                while isinstance(
                    response := await call.read(), control_plane_service_pb2.WatchRegionsResponse
                ):
                    limit.reschedule(self._next_word_by())
                    if self._on_regions is not None:
                        self._on_regions(response.regions)
                    if self._on_revocations is not None and response.HasField("revocations"):
                        self._on_revocations(response.revocations)
                    if self._on_tenants is not None and response.HasField("tenants"):
                        self._on_tenants(response.tenants.policies)
                    if self._on_superseded is not None:
                        self._on_superseded(response.superseded)
        except (aio.AioRpcError, TimeoutError) as error:
            # Nothing of this region depends on it: the other streams say whether the replica
            # lives, and the global store may be away where the regional one is not.
            raise broken(error) from None
        finally:
            call.cancel()

    async def _watch_orphans(self) -> None:
        replica = self._replica
        request = job_service_pb2.WatchOrphansRequest(gateway_id=self._hello.gateway_id)
        call = self._job_stubs[replica].WatchOrphans(request)
        try:
            async with asyncio.timeout(_FIRST_ANSWER_S) as limit:
                while isinstance(
                    response := await call.read(), job_service_pb2.WatchOrphansResponse
                ):
                    limit.reschedule(self._next_word_by())
                    if self._on_orphans is not None:
                        self._on_orphans(response.orphans)
        except (aio.AioRpcError, TimeoutError) as error:
            raise broken(error) from None
        finally:
            self._leave(replica)
            call.cancel()

    async def _attach(self) -> None:
        if self._leaving.is_set():
            await asyncio.Event().wait()
        replica = self._replica
        welcomed: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        call = self._stubs[replica].AttachGateway(self._beats(welcomed))
        try:
            async with asyncio.timeout(_FIRST_ANSWER_S) as limit:
                while isinstance(
                    response := await call.read(), control_plane_service_pb2.AttachGatewayResponse
                ):
                    self._attached = (replica, limit)
                    self._heard(replica)
                    self._lease_id = response.lease_id
                    if not welcomed.done():
                        welcomed.set_result(response.lease_ttl_s)
        except (aio.AioRpcError, TimeoutError) as error:
            raise broken(error) from None
        finally:
            self._attached = None
            if self._leaving.is_set():
                self._left.set()
            self._leave(replica)
            call.cancel()

    async def _beats(
        self, welcomed: asyncio.Future[float]
    ) -> AsyncIterator[control_plane_service_pb2.AttachGatewayRequest]:
        hello = control_plane_service_pb2.GatewayHello()
        hello.CopyFrom(self._hello)
        hello.lease_id = self._lease_id
        yield control_plane_service_pb2.AttachGatewayRequest(hello=hello)
        every_s = max(await welcomed / REPORTS_PER_LEASE, 0.2)
        while not self._leaving.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self._leaving.wait()
                    return
            beat = control_plane_service_pb2.GatewayBeat()
            yield control_plane_service_pb2.AttachGatewayRequest(beat=beat)
