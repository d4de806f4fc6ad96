"""AttachGateway over real gRPC on a real etcd: liveness under a lease that survives."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub

from control_plane.keys import Keys
from reelkit import rpc
from tests.support.controlplanes import DEADLINE_S, REGION, running
from tests.support.stores import etcd_store, eventually, running_etcd

KEYS = Keys(prefix="/reelmesh", region=REGION)
BEAT = cp.AttachGatewayRequest(beat=cp.GatewayBeat())


@pytest.fixture
async def etcd(tmp_path):
    async with running_etcd(tmp_path) as process:
        yield process


@pytest.fixture
async def store(etcd):
    async with etcd_store(etcd.endpoint) as made:
        yield made


def hello(**fields) -> cp.AttachGatewayRequest:
    defaults = {
        "gateway_id": "ap-gateway-0",
        "region": REGION,
        "grpc_address": "127.0.0.1:7000",
        "http_address": "127.0.0.1:7001",
        "incarnation": "life",
    }
    return cp.AttachGatewayRequest(hello=cp.GatewayHello(**{**defaults, **fields}))


@contextlib.asynccontextmanager
async def attached(address: str, *requests: cp.AttachGatewayRequest):
    """An AttachGateway call that sent these requests."""
    async with rpc.internal_channel(address) as channel:
        call = ControlPlaneServiceStub(channel).AttachGateway()
        for request in requests:
            await call.write(request)
        yield call


async def answer(call) -> cp.AttachGatewayResponse:
    async with asyncio.timeout(DEADLINE_S):
        return await call.read()


async def read_to_the_end(call) -> None:
    while await answer(call) is not grpc.aio.EOF:
        pass


async def is_gone(store) -> bool:
    return await store.get(KEYS.gateway("ap-gateway-0")) is None


async def test_a_gateway_is_there_while_it_beats(etcd, store):
    async with running(etcd.endpoint) as app, attached(app.address, hello()) as call:
        response = await answer(call)
        assert (response.lease_ttl_s, response.replica_id) == (2, "r0")
        for _ in range(8):
            await asyncio.sleep(0.4)
            await call.write(BEAT)
        kv = await store.get(KEYS.gateway("ap-gateway-0"))
        assert kv.lease_id == response.lease_id
        assert kv.version == 1
        assert cp.GatewayHello.FromString(kv.value).http_address == "127.0.0.1:7001"
        # It falls silent, is taken out, and is let in again under another lease.
        await eventually(lambda: is_gone(store))
        await call.write(BEAT)
        again = await answer(call)
        assert again.lease_id != response.lease_id
        assert not await is_gone(store)


async def test_its_lease_survives_a_move_to_another_replica(etcd, store):
    async with running(etcd.endpoint) as a, running(etcd.endpoint, replica_id="r1") as b:
        async with attached(a.address, hello()) as call:
            lease_id = (await answer(call)).lease_id
        async with attached(b.address, hello(lease_id=lease_id)) as call:
            response = await answer(call)
            assert (response.lease_id, response.replica_id) == (lease_id, "r1")
        kv = await store.get(KEYS.gateway("ap-gateway-0"))
        assert (kv.lease_id, kv.version) == (lease_id, 1)


async def test_its_goodbye_takes_it_out_at_once_and_a_crash_does_not(etcd, store):
    """One that says goodbye has handed its jobs over; another may come back."""
    async with running(etcd.endpoint, lease_ttl_s=30) as app:
        async with attached(app.address, hello()) as call:
            await answer(call)
        assert not await is_gone(store)
        async with attached(app.address, hello()) as call:
            await answer(call)
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        assert await is_gone(store)


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([BEAT], "message"),
        ([hello(region="eu")], "hello.region"),
        ([hello(gateway_id="A")], "hello.gateway_id"),
        ([hello(grpc_address="x")], "hello.grpc_address"),
        ([hello(), hello()], "message"),
    ],
)
async def test_what_breaks_a_rule_is_refused_by_field(etcd, requests, field):
    async with running(etcd.endpoint) as app, attached(app.address, *requests) as call:
        with pytest.raises(grpc.RpcError) as caught:
            await read_to_the_end(call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details().startswith(field)
