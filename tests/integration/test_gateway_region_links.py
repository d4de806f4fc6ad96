"""Links to other regions against real gRPC servers that come, go and fall silent."""

import asyncio
import contextlib

import pytest
from grpc import aio
from reelmesh.v1 import fleet_service_pb2, node_pb2, peer_service_pb2, region_pb2
from reelmesh.v1.peer_service_pb2_grpc import (
    PeerServiceServicer,
    add_PeerServiceServicer_to_server,
)

from gateway.regions import link as link_module
from gateway.regions.regions import Regions
from reelkit import rpc
from reelkit.clock import SystemClock
from reelkit.tasks import TaskScope

DEADLINE_S = 10.0
MODEL = ("demo", "v1")


class Peer(PeerServiceServicer):
    """A gateway of another region, as far as its load goes."""

    def __init__(self) -> None:
        self.load = load()
        self.silent = False
        self.asked = 0

    async def WatchLoad(self, _request, context):  # noqa: N802 - gRPC's name
        self.asked += 1
        while True:
            if not self.silent:
                await context.write(self.load)
            await asyncio.sleep(0.05)


def load(wait_s: float = 0.0, workers: int = 1) -> peer_service_pb2.WatchLoadResponse:
    model = peer_service_pb2.ModelLoad(
        model=node_pb2.ModelVersion(name="demo", version="v1"),
        predicted_wait_s=wait_s,
        ready_workers=workers,
        units_per_second=1.0,
    )
    return peer_service_pb2.WatchLoadResponse(region="eu", gateway_id="eu-0", models=[model])


@contextlib.asynccontextmanager
async def serving(peer: Peer, address: str = "127.0.0.1:0"):
    server = aio.server(options=rpc.server_options())
    add_PeerServiceServicer_to_server(peer, server)
    port = rpc.listen(server, address)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def regions_of(*views: region_pb2.RegionView, draw: float = 0.0):
    async with TaskScope("test") as scope:
        regions = Regions(
            local="ap",
            open_channel=lambda _region: rpc.internal_channel,
            clock=SystemClock(),
            scope=scope,
            margin_s=10.0,
            draw=lambda: draw,
        )
        regions.take(views)
        try:
            yield regions
        finally:
            await scope.cancel_all()
            await regions.close()


def view(*addresses: str, region: str = "eu", draining: bool = False) -> region_pb2.RegionView:
    gateways = [
        region_pb2.GatewayAddress(gateway_id=f"g{number}", peer_address=address)
        for number, address in enumerate(addresses)
    ]
    summary = region_pb2.RegionSummary(region=region, gateways=gateways) if addresses else None
    policy = region_pb2.RegionPolicy(draining=draining)
    return region_pb2.RegionView(region=region, summary=summary, policy=policy)


async def until(holds) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110 - a link tells of no moment of its own
            await asyncio.sleep(0.01)


async def until_state(regions: Regions, name: str, region: str = "eu") -> None:
    wanted = fleet_service_pb2.RegionState.Value(f"REGION_STATE_{name}")
    await until(lambda: {each.name: each.state for each in regions.others()}[region] == wanted)


def choose(regions: Regions, *, local_wait_s: float | None = 0.0) -> str | None:
    return regions.choose(MODEL, units=1.0, local_wait_s=local_wait_s, local_speed=1.0)


async def test_a_region_serves_once_one_of_its_gateways_says_so():
    peer = Peer()
    async with serving(peer) as address, regions_of(view(address)) as regions:
        await until_state(regions, "SERVING")
        assert choose(regions) == "ap"
        assert choose(regions, local_wait_s=None) == "eu"
        assert choose(regions, local_wait_s=60.0) == "eu"
        peer.load = load(wait_s=55.0)
        await until(lambda: choose(regions, local_wait_s=60.0) == "ap")
        peer.load = load(workers=0)
        await until_state(regions, "NOT_SERVING")
        assert choose(regions, local_wait_s=None) is None


async def test_the_next_gateway_is_asked_when_one_is_gone():
    peer = Peer()
    async with serving(Peer()) as gone:
        pass
    async with serving(peer) as address, regions_of(view(gone, address)) as regions:
        await until_state(regions, "SERVING")
        assert regions.link("eu").addresses[0] == address


async def test_one_that_falls_silent_is_left(monkeypatch):
    monkeypatch.setattr(link_module, "SILENCE_S", 0.3)
    hung, sound = Peer(), Peer()
    async with (
        serving(hung) as first,
        serving(sound) as second,
        regions_of(view(first, second)) as regions,
    ):
        await until_state(regions, "SERVING")
        hung.silent = True
        await until(lambda: sound.asked)
        await until_state(regions, "SERVING")


async def test_without_a_summary_a_region_is_unknown_and_down_when_nobody_answers(monkeypatch):
    monkeypatch.setattr(link_module, "FIRST_WORD_S", 0.5)
    peer = Peer()
    async with serving(peer) as address, regions_of(view(address)) as regions:
        await until_state(regions, "SERVING")
        # Its control plane is away: its gateway's own word counts.
        regions.take([])
        await until_state(regions, "SERVING")
        assert choose(regions, local_wait_s=None) == "eu"
        link = regions.link("eu")
    async with regions_of(view(address)) as regions:
        link = regions.link("eu")
        await until(lambda: link.probed)
        # No gateway answers, but its control plane does: nothing is said to be down.
        await until_state(regions, "UNKNOWN")
        regions.take([])
        await until_state(regions, "NOT_SERVING")
        assert choose(regions, local_wait_s=None) is None
        # It comes back under the address that was known.
        async with serving(Peer(), address):
            await until_state(regions, "SERVING")


async def test_a_drained_region_takes_nothing_and_gives_its_own_away():
    async with (
        serving(Peer()) as address,
        regions_of(view(address, draining=True), draw=0.5) as regions,
    ):
        await until_state(regions, "DRAINING")
        assert choose(regions, local_wait_s=None) is None
        regions.take([view(address), view(region="ap", draining=True)])
        await until_state(regions, "SERVING")
        assert regions.draining
        assert choose(regions) == "eu"
        regions.take([view(address), view(region="ap")])
        assert not regions.draining
        # Back, and so by and by: the draw of 0.5 is beyond the first share.
        assert choose(regions) == "eu"


@pytest.mark.parametrize("away", [None, 5.0])
async def test_the_local_region_alone_decides_for_itself(away):
    async with regions_of() as regions:
        assert choose(regions, local_wait_s=away) == (None if away is None else "ap")
        assert regions.others() == []
