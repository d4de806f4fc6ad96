"""Regions under test: a gateway each, reached by the others through its real PeerService."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from grpc import aio
from reelmesh.v1 import region_pb2

from gateway.application import FROM_REGION
from gateway.config import CacheConfig
from gateway.core.keeping import open_kept
from gateway.core.load import LoadReporter
from gateway.core.mesh import MeshVideos
from gateway.edge_grpc.peer_api import add_peer_service
from gateway.peers.client import Peers
from gateway.regions.regions import Regions
from reelkit.clock import SystemClock
from reelkit.rpc import internal_channel, listen, server_options
from tests.support.gateways import Gateway, open_gateway


class RegionUnderTest:
    """A region with one gateway."""

    def __init__(
        self, name: str, gateway: Gateway, application: MeshVideos, regions: Regions, server: object
    ) -> None:
        self.name = name
        self.gateway = gateway
        self.application = application
        self.regions = regions
        self.address = ""
        self.kept: Any = None
        self._server = server

    async def listen(self, address: str = "127.0.0.1:0") -> None:
        """Answers the other regions."""
        self._server = aio.server(options=server_options())
        add_peer_service(self._server, application=self.application)
        port = listen(self._server, address)
        await self._server.start()
        self.address = f"127.0.0.1:{port}"

    async def vanish(self) -> None:
        """Answers them no more."""
        await self._server.stop(0)

    def view(self, *, draining: bool = False) -> region_pb2.RegionView:
        """What control planes tell of it."""
        address = region_pb2.GatewayAddress(gateway_id="g0", peer_address=self.address)
        return region_pb2.RegionView(
            region=self.name,
            summary=region_pb2.RegionSummary(region=self.name, gateways=[address]),
            policy=region_pb2.RegionPolicy(draining=draining),
        )


@contextlib.asynccontextmanager
async def open_region(tmp_path: Path, name: str, **changes: Any) -> AsyncIterator[RegionUnderTest]:
    """A region whose gateway knows no other until it is told."""
    clock = SystemClock()
    (tmp_path / name).mkdir()
    async with open_gateway(
        tmp_path / name, region=name, gateway_id=f"{name}-gateway-0", **changes
    ) as gateway:
        core = gateway.core
        regions = Regions(
            local=name,
            open_channel=lambda _region: internal_channel,
            clock=clock,
            scope=core.scope,
            margin_s=10.0,
            draw=lambda: 0.0,
        )
        peers = Peers(open_channel=internal_channel, hops=FROM_REGION, read_timeout_s=5.0)
        loads = LoadReporter(
            region=name,
            gateway_id="g0",
            fleet=core.fleet,
            waiting=core.waiting,
            lifetimes=core.lifetimes,
            clock=clock,
        )
        cache = CacheConfig.model_validate(changes.get("cache", {}))
        stack = contextlib.AsyncExitStack()
        kept = open_kept(
            cache,
            tmp_path / name / "gateway" / "kept",
            metrics=core.metrics,
            cache_metrics=core.caching.metrics,
            clock=clock,
            scope=core.scope,
            stack=stack,
        )
        application = MeshVideos(
            region=name,
            home=gateway.videos,
            regions=regions,
            peers=peers,
            loads=loads,
            kept=kept,
            clock=clock,
            scope=core.scope,
            key_keep_s=60,
            job_keep_s=60,
        )
        region = RegionUnderTest(name, gateway, application, regions, None)
        region.kept = kept
        await region.listen()
        try:
            yield region
        finally:
            await region.vanish()
            await peers.close()
            await regions.close()
            await stack.aclose()
