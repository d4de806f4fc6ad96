"""Attach and WatchFleet over real gRPC on a real etcd."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import node_pb2

from control_plane.keys import Keys
from tests.support.controlplanes import (
    REGION,
    agent,
    model_info,
    node_hello,
    node_status,
    running,
    watcher,
)
from tests.support.stores import etcd_store, running_etcd

KEYS = Keys(prefix="/reelmesh", region=REGION)
READY = node_pb2.NODE_STATE_READY
DRAINING = node_pb2.NODE_STATE_DRAINING


@pytest.fixture
async def etcd(tmp_path):
    async with running_etcd(tmp_path) as process:
        yield process


@pytest.fixture
async def store(etcd):
    """Our own look into etcd."""
    async with etcd_store(etcd.endpoint) as made:
        yield made


@pytest.fixture
async def app(etcd):
    async with running(etcd.endpoint) as made:
        yield made


async def test_a_node_attaches_and_gateways_see_it(app):
    async with watcher(app.address) as gateway, agent(app.address) as node:
        await gateway.until(lambda: gateway.kinds == ["snapshot"])
        welcome = await node.attach()
        assert welcome.lease_id != 0
        assert (welcome.lease_ttl_s, welcome.replica_id) == (2, "r0")
        await gateway.until(lambda: "ap-node-0" in gateway.nodes)
        record = gateway.nodes["ap-node-0"]
        assert (record.address, record.state, record.pid) == ("127.0.0.1:7070", READY, 4711)
        assert (record.worker_count, record.units_per_second) == (1, 2.0)
        # The infos that the node's models point at are there with it, not after it.
        assert gateway.models["0" * 64] == model_info()
        assert gateway.kinds == ["snapshot", "delta"]
        await node.until(lambda: node.desired == [cp.DesiredNodeState()])


async def test_a_late_watcher_gets_all_in_its_snapshot(app):
    async with agent(app.address) as node, watcher(app.address) as early:
        await node.attach()
        await early.until(lambda: bool(early.nodes))
        async with watcher(app.address) as late:
            await late.until(lambda: late.kinds == ["snapshot"])
            assert (late.nodes, late.models) == (early.nodes, early.models)
            assert late.version == early.version


async def test_the_record_follows_the_state_and_not_the_queue(app):
    async with agent(app.address) as node, watcher(app.address) as gateway:
        await node.attach()
        await gateway.until(lambda: bool(gateway.nodes))
        version = gateway.version
        for seconds in (1.0, 2.0, 3.0):
            await node.report(
                node_status(remaining_work_s=seconds, free_slots=1, units_per_second=2.1)
            )
        await gateway.heartbeats(2)
        assert gateway.version == version
        await node.report(node_status(node_pb2.NODE_STATE_UNHEALTHY, reason="worker died"))
        await gateway.until(lambda: gateway.nodes["ap-node-0"].reason == "worker died")
        assert gateway.nodes["ap-node-0"].state == node_pb2.NODE_STATE_UNHEALTHY
        assert gateway.version > version
        assert gateway.removed == []


async def test_reports_keep_a_node_and_silence_takes_it_out(app):
    async with agent(app.address) as node, watcher(app.address) as gateway:
        await node.attach()
        node.keep_reporting()
        await gateway.until(lambda: bool(gateway.nodes))
        # Well beyond the lease of 2 s.
        await gateway.heartbeats(17)
        assert gateway.removed == []
        # The process hangs behind a connection that stands.
        await node._stop_reporting()
        await gateway.until(lambda: gateway.removed == ["ap-node-0"])
        assert not node.ended.is_set()
        # It comes back to its senses: a new lease, and it is told so.
        await node.report()
        await gateway.until(lambda: "ap-node-0" in gateway.nodes)
        await node.until(lambda: len(node.welcomes) == 2)
        assert node.welcomes[0].lease_id != node.welcomes[1].lease_id


async def test_a_broken_stream_leaves_the_node_for_its_lease(app):
    async with agent(app.address) as node, watcher(app.address) as gateway:
        await node.attach()
        await gateway.until(lambda: bool(gateway.nodes))
        await node.report(node_status(DRAINING))
        await gateway.until(lambda: gateway.nodes["ap-node-0"].state == DRAINING)
        started_s = asyncio.get_running_loop().time()
        await node.crash()
        await gateway.until(lambda: gateway.removed == ["ap-node-0"])
        # A break is no goodbye, not even of a node that drains.
        assert asyncio.get_running_loop().time() - started_s > 1


async def test_a_goodbye_takes_the_node_out_at_once(etcd, store):
    async with (
        running(etcd.endpoint, lease_ttl_s=60) as app,
        agent(app.address) as node,
        watcher(app.address) as gateway,
    ):
        welcome = await node.attach()
        await gateway.until(lambda: bool(gateway.nodes))
        await node.report(node_status(DRAINING))
        await node.half_close()
        assert node.error is None
        await gateway.until(lambda: gateway.removed == ["ap-node-0"])
        assert await store.get(KEYS.node("ap-node-0")) is None
        with pytest.raises(Exception, match="is gone"):
            await store.keep_alive(welcome.lease_id)


async def test_an_end_without_draining_is_no_goodbye(etcd, store):
    async with running(etcd.endpoint, lease_ttl_s=60) as app, agent(app.address) as node:
        await node.attach()
        await node.half_close()
        assert await store.get(KEYS.node("ap-node-0")) is not None


async def test_a_node_that_attaches_anew_within_its_lease_is_never_seen_to_go(etcd):
    async with (
        running(etcd.endpoint) as a,
        running(etcd.endpoint, replica_id="r1") as b,
        watcher(b.address) as gateway,
    ):
        async with agent(a.address) as first:
            lease_id = (await first.attach()).lease_id
            await gateway.until(lambda: bool(gateway.nodes))
            version = gateway.version
            await first.crash()
        async with agent(b.address, node_hello(lease_id=lease_id)) as second:
            welcome = await second.attach()
            assert (welcome.lease_id, welcome.replica_id) == (lease_id, "r1")
            second.keep_reporting()
            await gateway.heartbeats(15)
            # No removal, and not even a change: nothing about the node is new.
            assert gateway.removed == []
            assert gateway.version == version


async def test_a_restarted_agent_replaces_its_forerunner_without_a_gap(app):
    async with watcher(app.address) as gateway, agent(app.address) as first:
        await first.attach()
        await gateway.until(lambda: bool(gateway.nodes))
        await first.crash()
        async with agent(app.address, node_hello(incarnation="life-2", pid=4712)) as second:
            await second.attach()
            second.keep_reporting()
            await gateway.until(lambda: gateway.nodes["ap-node-0"].pid == 4712)
            # The forerunner's lease runs out meanwhile.
            await gateway.heartbeats(17)
            assert gateway.removed == []


async def test_a_lease_of_somebody_else_is_not_taken_over(app, store):
    async with (
        agent(app.address) as one,
        agent(app.address, node_hello("ap-node-1")) as other,
    ):
        lease_id = (await one.attach()).lease_id
        other.hello.lease_id = lease_id
        assert (await other.attach()).lease_id != lease_id
        assert (await store.get(KEYS.node("ap-node-0"))).lease_id == lease_id


async def test_of_two_streams_for_one_node_the_newer_holds_it(app):
    async with agent(app.address) as older, agent(app.address) as newer:
        await older.attach()
        await newer.attach()
        await older.report(node_status(node_pb2.NODE_STATE_UNHEALTHY))
        await older.until(older.ended.is_set)
        assert older.error.code() is grpc.StatusCode.ABORTED
        await newer.report(node_status(DRAINING))
        assert not newer.ended.is_set()


async def test_model_infos_are_stored_once_and_not_in_the_records(app, store):
    big = model_info(1, description="x" * 12_000)
    models = [model_info(0), big]
    async with (
        agent(app.address, node_hello("n0", models=models)) as one,
        agent(app.address, node_hello("n1", models=models)) as other,
        watcher(app.address) as gateway,
    ):
        await one.attach()
        await other.attach()
        page = await store.range(KEYS.models)
        assert [kv.key for kv in page.items] == [KEYS.model("0" * 64), KEYS.model(f"{1:064x}")]
        assert len((await store.get(KEYS.node("n0"))).value) < 400
        await gateway.until(lambda: len(gateway.nodes) == 2)
        assert gateway.models[f"{1:064x}"] == big
        # The second node's infos are the same: its delta does not repeat them.
        told = [m for r in gateway.responses for m in r.delta.upserted_models]
        assert len(told) <= 2


async def test_what_an_operator_wants_comes_down_the_stream(app, store):
    cordoned = cp.DesiredNodeState(cordoned=True)
    await store.put(KEYS.desired("ap-node-0"), cordoned.SerializeToString())
    async with agent(app.address) as node:
        await node.attach()
        await node.until(lambda: bool(node.desired) and node.desired[-1] == cordoned)
        await store.delete(KEYS.desired("ap-node-0"))
        await node.until(lambda: node.desired[-1] == cp.DesiredNodeState())
        # Another node's wishes are not ours.
        await store.put(KEYS.desired("ap-node-1"), cordoned.SerializeToString())
        await store.put(
            KEYS.desired("ap-node-0"), cp.DesiredNodeState(draining=True).SerializeToString()
        )
        await node.until(lambda: node.desired[-1].draining)
        assert not node.desired[-1].cordoned


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("hello.node_id", {"node_id": ""}),
        ("hello.node_id", {"node_id": "../etc"}),
        ("hello.region", {"region": "eu"}),
        ("hello.address", {"address": "127.0.0.1"}),
        ("hello.address", {"address": "0.0.0.0:7070"}),
        ("hello.incarnation", {"incarnation": ""}),
        ("hello.models[0].manifest_sha256", {"models": [model_info(manifest_sha256="xyz")]}),
        ("hello.models[0]", {"models": [model_info(description="x" * 20_000)]}),
        ("hello.status.node_id", {"status": node_status(node_id="other")}),
    ],
)
async def test_a_hello_that_breaks_a_rule_is_refused_by_field(app, field, change):
    async with agent(app.address, node_hello(**change)) as node:
        with pytest.raises(grpc.RpcError) as caught:
            await node.attach()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith(field)
    bad_request = error_details_pb2.BadRequest()
    details = {d.type_url.rpartition(".")[2]: d for d in rpc_status.from_call(caught.value).details}
    details["BadRequest"].Unpack(bad_request)
    assert [violation.field for violation in bad_request.field_violations] == [field]


async def read_to_the_end(call):
    async with asyncio.timeout(15):
        async for _ in call:
            pass


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [cp.AttachRequest(status=node_status())],
        [cp.AttachRequest()],
        [cp.AttachRequest(hello=node_hello()), cp.AttachRequest(hello=node_hello())],
        [cp.AttachRequest(hello=node_hello()), cp.AttachRequest(status=node_status(node_id="x"))],
        [
            cp.AttachRequest(hello=node_hello()),
            cp.AttachRequest(status=node_status(units_per_second=float("nan"))),
        ],
    ],
)
async def test_messages_out_of_order_or_sense_end_the_stream(app, requests):
    async with agent(app.address) as node:
        call = node._call
        for request in requests:
            await call.write(request)
        if not requests:
            await call.done_writing()
        with pytest.raises(grpc.RpcError) as caught:
            await read_to_the_end(call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_overlong_reason_is_shortened_not_refused(app):
    async with agent(app.address) as node, watcher(app.address) as gateway:
        await node.attach()
        await node.report(node_status(node_pb2.NODE_STATE_UNHEALTHY, reason="x" * 100_000))
        await gateway.until(
            lambda: "ap-node-0" in gateway.nodes and bool(gateway.nodes["ap-node-0"].reason)
        )
        assert gateway.nodes["ap-node-0"].reason == "x" * 511 + "…"


# Watching


async def test_a_watch_resumes_after_its_version(app):
    async with agent(app.address) as node:
        async with watcher(app.address) as first:
            await node.attach()
            await first.until(lambda: bool(first.nodes))
            version = first.version
        await node.report(node_status(DRAINING))
        async with watcher(app.address, after_version=version) as second:
            await second.until(lambda: bool(second.nodes))
            assert second.kinds == ["delta"]
            assert second.nodes["ap-node-0"].state == DRAINING
        async with watcher(app.address, after_version=second.version) as third:
            await third.heartbeats()
            assert third.kinds == []


@pytest.mark.parametrize("after_version", [1, 10**9])
async def test_a_watch_after_an_unknown_version_gets_a_snapshot(etcd, store, after_version):
    for number in range(5):
        await store.put(
            KEYS.node("old"), cp.NodeRecord(node_id="old", pid=number).SerializeToString()
        )
    async with (
        running(etcd.endpoint) as app,
        watcher(app.address, after_version=after_version) as gateway,
    ):
        await gateway.until(lambda: gateway.kinds == ["snapshot"])
        assert gateway.nodes["old"].pid == 4


async def test_watchers_get_the_whole_fleet_from_time_to_time(etcd):
    fleet = {"heartbeat_s": 0.2, "resnapshot_s": 1}
    async with running(etcd.endpoint, fleet=fleet) as app, watcher(app.address) as gateway:
        await gateway.until(lambda: gateway.kinds == ["snapshot", "snapshot"])


async def test_a_watch_outlives_pings_every_second(etcd):
    """A server that does not expect them answers too_many_pings after three seconds."""
    fleet = {"heartbeat_s": 60}
    async with running(etcd.endpoint, fleet=fleet) as app, watcher(app.address) as gateway:
        await gateway.until(lambda: gateway.kinds == ["snapshot"])
        async with agent(app.address) as node:
            # Quiet connections, pinged by the client alone.
            await asyncio.sleep(4)
            await node.attach()
            await gateway.until(lambda: bool(gateway.nodes))
        assert gateway.kinds == ["snapshot", "delta"]


async def test_an_unreadable_record_harms_no_other(app, store):
    await store.put(KEYS.node("broken"), b"\xff\xff\xff")
    async with agent(app.address) as node, watcher(app.address) as gateway:
        await node.attach()
        await gateway.until(lambda: "ap-node-0" in gateway.nodes)
        assert "broken" not in gateway.nodes
