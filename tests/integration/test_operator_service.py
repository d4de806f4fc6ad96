"""OperatorService as operators meet it: real gRPC, real tokens, a real fleet."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reelmesh.v1 import access_pb2, node_pb2
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.keys import Keys
from control_plane.operator.gate import SERVICE
from control_plane.store.memory import MemoryStore
from reelkit.clock import SystemClock
from tests.support.certs import Authority
from tests.support.controlplanes import agent, node_hello, watcher
from tests.support.healthnodes import HealthNode, attached
from tests.support.operators import OPERATE, READ, Client, operated
from tests.support.stores import eventually
from tests.support.tokens import TokenIssuer

KEYS = Keys(prefix="/reelmesh", region="ap")
READY = node_pb2.NODE_STATE_READY
REQUESTS = {
    "ListNodes": op.ListNodesRequest(),
    "ListGateways": op.ListGatewaysRequest(),
    "ListNodeEvents": op.ListNodeEventsRequest(node_id="n0"),
    "SetNodePolicy": op.SetNodePolicyRequest(node_id="n0"),
    "ListRegions": op.OperatorServiceListRegionsRequest(),
    "SetRegionPolicy": op.SetRegionPolicyRequest(region="ap"),
    "RevokeTokens": op.RevokeTokensRequest(
        revocation=access_pb2.TokenRevocation(issuer="i", jti="j"), keep_s=60
    ),
    "ListRevocations": op.ListRevocationsRequest(),
    "RestoreTokens": op.RestoreTokensRequest(id="none"),
    "ListTenants": op.ListTenantsRequest(),
    "GetTenant": op.GetTenantRequest(tenant="t"),
    "SetTenant": op.SetTenantRequest(tenant={"tenant": "t"}),
    "GetTenantUsage": op.GetTenantUsageRequest(tenant="t"),
    "UnsetTenant": op.UnsetTenantRequest(tenant="t", revision=1),
    "ListRegisteredModels": op.ListRegisteredModelsRequest(),
    "GetRegisteredModel": op.GetRegisteredModelRequest(name="m", version="v"),
    "RegisterModel": op.RegisterModelRequest(
        model={
            "name": "m",
            "version": "v",
            "kind": "MODEL_KIND_MODEL",
            "sources": ["s3://models/m"],
            "manifest_sha256": "0" * 64,
            "manifest_size_bytes": 1,
            "file_count": 1,
        }
    ),
    "SetModelState": op.SetModelStateRequest(name="m", version="v", state=1, revision=1),
    "ListPrefetches": op.ListPrefetchesRequest(),
    "SetPrefetch": op.SetPrefetchRequest(order={"name": "m", "version": "v"}),
    "UnsetPrefetch": op.UnsetPrefetchRequest(name="m", version="v"),
}


@pytest.fixture
async def store():
    async with MemoryStore(clock=SystemClock()) as store:
        yield store


async def refused(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_every_method_asks_for_its_token_and_scope(tmp_path, store, method):
    async with operated(tmp_path, store=store) as (_app, client):
        request = REQUESTS[method]
        error = await refused(client.call(method, request, scope=None))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        for scope in ("", "video:read", OPERATE if method.startswith(("List", "Get")) else READ):
            error = await refused(client.call(method, request, scope=scope))
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "fleet:" in error.details()
        foreign = TokenIssuer().issue(scope=f"{READ} {OPERATE}")
        error = await refused(client.call(method, request, token=foreign))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        # With the scope it goes as far as there is something to say.
        try:
            await client.call(method, request)
        except grpc.aio.AioRpcError as later:
            wanted = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}
            assert later.code() in wanted  # noqa: PT017 - either may come


async def test_anybody_may_ask_whether_it_serves(tmp_path, store):
    async with operated(tmp_path, store=store) as (_app, client):
        stub = health_pb2_grpc.HealthStub(client.channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_other_services_are_not_on_this_listener(tmp_path, store):
    async with operated(tmp_path, store=store) as (app, client):
        call = client.channel.unary_unary("/reelmesh.v1.ControlPlaneService/WatchFleet")
        error = await refused(call(b"", timeout=5))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        plain = Client(app.address, client.issuer)
        error = await refused(plain.call("ListNodes", op.ListNodesRequest()))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        await plain.channel.close()


async def test_nodes_are_listed_with_their_own_word(tmp_path, store):
    async with operated(tmp_path, store=store) as (app, client):
        node = HealthNode("n0")
        async with attached(app.address, node), agent(app.address, node_hello("n1")) as silent:
            await silent.attach()
            async with watcher(app.address) as fleet:
                await fleet.until(lambda: len(fleet.nodes) == 2)
            listed = (await client.call("ListNodes", op.ListNodesRequest())).nodes
            assert [each.node_id for each in listed] == ["n0", "n1"]
            assert (listed[0].state, listed[0].address) == (READY, node.address)
            assert listed[0].state_since.seconds > 0
            assert not listed[0].HasField("status")
            request = op.ListNodesRequest(with_status=True)
            listed = (await client.call("ListNodes", request, scope=READ)).nodes
            assert listed[0].status.units_per_second == 10.0
            # Nothing listens at n1's address.
            assert not listed[1].HasField("status")


async def test_a_node_that_hangs_costs_a_list_one_deadline(tmp_path, store):
    async with (
        operated(tmp_path, store=store, operator={"status_timeout_s": 0.3}) as (app, client),
        contextlib.AsyncExitStack() as stack,
    ):
        for number in range(3):
            # Connections are made, and nobody ever speaks.
            hung = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            address = f"127.0.0.1:{hung.getsockname()[1]}"
            hello = node_hello(f"n{number}", address=address)
            stream = await stack.enter_async_context(agent(app.address, hello))
            await stream.attach()
        loop = asyncio.get_running_loop()
        before_s = loop.time()
        listed = await client.call("ListNodes", op.ListNodesRequest(with_status=True))
        assert loop.time() - before_s < 10
        assert not any(each.HasField("status") for each in listed.nodes)


async def test_a_policy_reaches_the_node_and_stays_until_taken_back(tmp_path, store):
    async with (
        operated(tmp_path, store=store) as (app, client),
        agent(app.address, node_hello("n0")) as node,
    ):
        await node.attach()
        await eventually(lambda: bool(node.desired))
        for request, wanted in (
            (op.SetNodePolicyRequest(node_id="n0", cordoned=True), (True, False)),
            (op.SetNodePolicyRequest(node_id="n0", draining=True), (False, True)),
            (op.SetNodePolicyRequest(node_id="n0"), (False, False)),
        ):
            view = (await client.call("SetNodePolicy", request)).node
            assert (view.cordoned, view.draining) == wanted
            await node.until(
                lambda wanted=wanted: (
                    (node.desired[-1].cordoned, node.desired[-1].draining) == wanted
                )
            )
        assert await store.get(KEYS.desired("n0")) is None


async def test_a_node_that_nobody_knows_is_not_found(tmp_path, store):
    async with operated(tmp_path, store=store) as (_app, client):
        for method in ("SetNodePolicy", "ListNodeEvents"):
            error = await refused(client.call(method, REQUESTS[method]))
            assert error.code() is grpc.StatusCode.NOT_FOUND
            assert "no node 'n0' in region ap" in error.details()
        error = await refused(
            client.call("ListNodeEvents", op.ListNodeEventsRequest(node_id="../x"))
        )
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_lost_node_stays_listed_with_its_history(tmp_path, store):
    async with operated(tmp_path, store=store, lease_ttl_s=2) as (app, client):
        async with agent(app.address, node_hello("n0")) as node:
            await node.attach()
            await eventually(lambda: listed_states(client, {"n0": READY}))
        await eventually(lambda: listed_states(client, {"n0": node_pb2.NODE_STATE_LOST}))
        events = (await client.call("ListNodeEvents", REQUESTS["ListNodeEvents"])).events
        assert [event.to for event in events] == [READY, node_pb2.NODE_STATE_LOST]
        assert "lease ran out" in events[-1].reason
        # A policy can be set while it is away: it finds it when it is back.
        request = op.SetNodePolicyRequest(node_id="n0", cordoned=True)
        assert (await client.call("SetNodePolicy", request)).node.cordoned
        async with agent(app.address, node_hello("n0")) as node:
            await node.attach()
            await node.until(lambda: bool(node.desired) and node.desired[-1].cordoned)
            await eventually(lambda: listed_states(client, {"n0": READY}))


async def listed_states(client, wanted):
    listed = (await client.call("ListNodes", op.ListNodesRequest())).nodes
    return {each.node_id: each.state for each in listed} == wanted


async def test_gateways_are_listed(tmp_path, store):
    hello = cp.GatewayHello(
        gateway_id="ap-gateway-0",
        region="ap",
        grpc_address="127.0.0.1:1",
        http_address="127.0.0.1:2",
        peer_address="127.0.0.1:3",
    )
    await store.put(KEYS.gateway("ap-gateway-0"), hello.SerializeToString())
    await store.put(KEYS.gateway("broken"), b"\xff")
    async with operated(tmp_path, store=store) as (app, client), watcher(app.address) as fleet:
        await fleet.until(lambda: bool(fleet.responses))
        (found,) = (await client.call("ListGateways", op.ListGatewaysRequest())).gateways
        assert (found.gateway_id, found.peer_address) == ("ap-gateway-0", "127.0.0.1:3")


async def test_while_the_store_is_away_the_fleet_is_listed_and_nothing_changed(tmp_path, store):
    async with (
        operated(tmp_path, store=store, lease_ttl_s=30) as (app, client),
        agent(app.address, node_hello("n0")) as node,
    ):
        await node.attach()
        await eventually(lambda: listed_states(client, {"n0": READY}))
        store.set_available(available=False)
        assert await listed_states(client, {"n0": READY})
        error = await refused(client.call("SetNodePolicy", REQUESTS["SetNodePolicy"]))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        store.set_available(available=True)


async def test_tls_is_served_and_a_renewed_certificate_is_taken(tmp_path, store):
    tls = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    first, second = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    write_pair(tmp_path, first)
    async with operated(tmp_path, store=store, operator={"tls": tls}) as (app, client):
        assert (await refused(client.call("ListNodes", op.ListNodesRequest()))).code()
        assert await served_by(app, client, first)
        assert not await served_by(app, client, second)
        write_pair(tmp_path, second)
        await eventually(lambda: served_by(app, client, second))


async def served_by(app, client, authority):
    credentials = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    over_tls = Client(app.operator_address, client.issuer, credentials)
    try:
        await over_tls.call("ListNodes", op.ListNodesRequest())
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - either may come
        return False
    finally:
        await over_tls.channel.close()
    return True


def write_pair(tmp_path, authority):
    identity = authority.issue("control")
    (tmp_path / "key.pem").write_bytes(identity.key.read_bytes())
    (tmp_path / "cert.pem").write_bytes(identity.cert.read_bytes())
