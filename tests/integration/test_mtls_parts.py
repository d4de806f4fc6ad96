"""Gateway, node agent and control plane over mutual TLS, and everybody whom they refuse."""

import asyncio
import os
import signal

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reelmesh.v1 import control_plane_service_pb2 as cp
from reelmesh.v1 import (
    job_service_pb2,
    node_pb2,
    node_service_pb2,
    peer_service_pb2,
)
from reelmesh.v1.control_plane_service_pb2_grpc import ControlPlaneServiceStub
from reelmesh.v1.job_service_pb2_grpc import JobServiceStub
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub
from reelmesh.v1.peer_service_pb2_grpc import PeerServiceStub
from structlog.testing import capture_logs

from control_plane.access import ACCESS as CONTROL_ACCESS
from control_plane.store.memory import MemoryStore
from gateway.edge_grpc.peer_access import PEER_ACCESS
from node_agent.access import ACCESS as NODE_ACCESS
from node_agent.app import build_app as build_node
from reelkit.clock import SystemClock
from reelkit.mtls.access import COMMON
from reelkit.mtls.channels import Channels
from reelkit.mtls.guard import Guard
from reelkit.mtls.identity import Role
from reelkit.settings import ConfigError
from tests.support.controlplanes import node_hello, running
from tests.support.fakeworker import FakeLauncher, Script
from tests.support.mtls import HOUR, MeshAuthority, now, section
from tests.support.mtls_region import mutual_region, until
from tests.support.nodes import node_config
from wan_t2v_sdk import AsyncTextToVideoGenerator

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def store():
    async with MemoryStore(clock=SystemClock()) as made:
        yield made


@pytest.fixture
async def region(tmp_path):
    async with mutual_region(tmp_path) as found:
        yield found


def client(region, gateway):
    token = region.issuer.issue()
    return AsyncTextToVideoGenerator(endpoints=[f"ap={gateway.grpc_address}"], token=token)


async def code_of(call):
    with pytest.raises(aio.AioRpcError) as caught:
        async with asyncio.timeout(20):
            await call
    return caught.value.code(), caught.value.details()


async def routable(gateway, *node_ids):
    links = gateway.core.fleet
    await until(
        lambda: all(
            (link := links.link(node_id)) is not None and link.ready for node_id in node_ids
        )
    )


async def test_a_video_is_drawn_relayed_and_probed_over_mutual_tls(region):
    node = await region.add_node("n1", Script(step_s=0.05))
    one, other = await region.add_gateway("a"), await region.add_gateway("b")
    for gateway in (one, other):
        await routable(gateway, "n1")
    async with client(region, one) as first, client(region, other) as second:
        made = await first.create("a ball")
        # Its owner is the first gateway: the second asks it over its peer listener.
        assert (await second.get(made.id)).id == made.id
        result = await second.wait(made.id, progress=False)
        assert (result.id, result.facts.attempts) == (made.id, 1)
    # The control plane's probe and canary reach the node too.
    await until(lambda: node.board.current.state == node_pb2.NODE_STATE_READY)
    record = await fleet_record(region, "n1")
    assert record.state == node_pb2.NODE_STATE_READY, record.reason


async def fleet_record(region, node_id):
    gateway = region.channels("ap", Role.GATEWAY, "asker")
    async with gateway.open(
        region.control.address, role=Role.CONTROL_PLANE, region="ap"
    ) as channel:
        call = ControlPlaneServiceStub(channel).WatchFleet(cp.WatchFleetRequest())
        async with asyncio.timeout(20):
            snapshot = (await call.read()).snapshot
        call.cancel()
    return next(node for node in snapshot.nodes if node.node_id == node_id)


async def test_a_stream_that_runs_through_a_rotation_completes(region, monkeypatch):
    """Every file of every part is replaced, the authority too, while a video is drawn."""
    monkeypatch.setattr("reelkit.mtls.material.FOLLOW_EVERY_S", 0.05)
    # Nobody is to mind that its worker stands still.
    node = await region.add_node("n1", workers={"heartbeat_timeout_s": 600, "stall_floor_s": 600})
    gateway = await region.add_gateway("a")
    await routable(gateway, "n1")
    mesh, authority = region.mesh, region.mesh.authority
    parts = {"c0": Role.CONTROL_PLANE, "n1": Role.NODE, "a": Role.GATEWAY}

    async def give(*, leafs):
        with capture_logs() as logs:
            for id_, role in parts.items():
                mesh.give_ca(region.files[id_])
                if leafs:
                    mesh.renew(region.files[id_], mesh.issue("ap", role, id_))

            def taken():
                return {log["identity"] for log in logs if log["event"] == "certificate taken"}

            await until(lambda: len(taken()) == len(parts))

    async with client(region, gateway) as sdk:
        worker = node.board.current.workers[0].pid
        os.kill(worker, signal.SIGSTOP)
        made = await sdk.create("a ball")
        waiting = asyncio.ensure_future(sdk.wait(made.id, progress=False))
        await until(lambda: node.table.live())
        authority.stage(name="test", now=now(), life=24 * HOUR)
        await give(leafs=False)
        authority.switch()
        await give(leafs=True)
        authority.retire()
        await give(leafs=False)
        assert not waiting.done()
        os.kill(worker, signal.SIGCONT)
        result = await waiting
        assert result.facts.attempts == 1
        # And what is asked from now on is asked by the new certificates.
        assert (await sdk.generate("another ball", progress=False)).facts.attempts == 1
    record = await fleet_record(region, "n1")
    assert record.state == node_pb2.NODE_STATE_READY


# --- who is refused ---


async def test_a_node_takes_work_of_its_own_regions_gateways_alone(region):
    node = await region.add_node("n1")
    run = node_service_pb2.RunRequest(job_id="j", epoch=1, attempt=1)
    for place, role, needed in (
        ("eu", Role.GATEWAY, "region ap"),
        ("ap", Role.NODE, "role control-plane or gateway"),
        ("ap", Role.OPERATOR, "role control-plane or gateway"),
    ):
        channels = region.channels(place, role, "x1")
        async with channels.open(node.address, role=Role.NODE, region="ap") as channel:
            code, details = await code_of(NodeServiceStub(channel).Run(run).read())
            assert (code, needed in details) == (grpc.StatusCode.PERMISSION_DENIED, True)
            # Whether it serves, each of them may ask.
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=10
            )
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_node_cannot_attach_as_another(region):
    channels = region.channels("ap", Role.NODE, "n2")
    address = region.control.address
    async with channels.open(address, role=Role.CONTROL_PLANE, region="ap") as channel:
        call = ControlPlaneServiceStub(channel).Attach()
        await call.write(cp.AttachRequest(hello=node_hello("n1")))
        code, details = await code_of(call.read())
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "hello.node_id is 'n1'" in details
        own = ControlPlaneServiceStub(channel).Attach()
        await own.write(cp.AttachRequest(hello=node_hello("n2")))
        async with asyncio.timeout(20):
            assert (await own.read()).HasField("welcome")
        # What nodes need not know they are not told.
        code, _ = await code_of(
            ControlPlaneServiceStub(channel).WatchFleet(cp.WatchFleetRequest()).read()
        )
        assert code is grpc.StatusCode.PERMISSION_DENIED
        own.cancel()


async def test_a_node_that_names_anothers_address_gets_no_work(region):
    """Neither its own, which goes to the other, nor the other's, under a false name."""
    one = await region.add_node("n1")
    with capture_logs() as logs:
        await region.add_node("n2", advertise=one.address)
        gateway = await region.add_gateway("a")
        await routable(gateway, "n1")

        def told():
            watch = [log for log in logs if log.get("attempt") == "watch-status n2"]
            return any("role, region and id" in str(log.get("error")) for log in watch)

        await until(told)
    assert not gateway.core.fleet.link("n2").ready


@pytest.mark.parametrize(("place", "role"), [("eu", Role.NODE), ("ap", Role.GATEWAY)])
async def test_no_node_of_elsewhere_and_no_gateway_attaches_as_a_node(region, place, role):
    channels = region.channels(place, role, "n1")
    address = region.control.address
    async with channels.open(address, role=Role.CONTROL_PLANE, region="ap") as channel:
        call = ControlPlaneServiceStub(channel).Attach(hellos("n1"))
        code, _ = await code_of(call.read())
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def hellos(node_id):
    yield cp.AttachRequest(hello=node_hello(node_id))


async def test_a_gateway_acts_for_itself_alone(region):
    channels = region.channels("ap", Role.GATEWAY, "b")
    address = region.control.address
    async with channels.open(address, role=Role.CONTROL_PLANE, region="ap") as channel:
        attach = ControlPlaneServiceStub(channel).AttachGateway()
        hello = cp.GatewayHello(gateway_id="a", region="ap")
        await attach.write(cp.AttachGatewayRequest(hello=hello))
        jobs = JobServiceStub(channel)
        pb = job_service_pb2
        record = pb.JobRecord(owner_gateway="a")
        for call in (
            attach.read(),
            jobs.CreateJob(pb.CreateJobRequest(job=record)),
            jobs.UpdateJob(pb.UpdateJobRequest(job=record)),
            jobs.ClaimJob(pb.ClaimJobRequest(job_id="j", gateway_id="a", incarnation="i")),
            jobs.WatchOrphans(pb.WatchOrphansRequest(gateway_id="a")).read(),
        ):
            code, details = await code_of(call)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "is 'a', which needs a certificate of that id" in details


async def test_tenants_are_believed_from_gateways_alone(region):
    """Neither a user's token nor a node's certificate lets anybody act as a tenant."""
    gateway = await region.add_gateway("a")
    address = gateway.peer_address
    identity = peer_service_pb2.PeerIdentity(tenant="acme", hops=1)
    request = peer_service_pb2.GetPeerVideoRequest(identity=identity, video_id="ap-x")
    token = region.issuer.issue()
    bearer = (("authorization", f"Bearer {token}"),)
    for channel in (
        aio.insecure_channel(address),
        aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(region.mesh.ca_file.read_bytes()),
            options=[("grpc.ssl_target_name_override", "gateway.ap.reelmesh.internal")],
        ),
    ):
        async with channel:
            code, _ = await code_of(
                PeerServiceStub(channel).GetPeerVideo(request, metadata=bearer, timeout=10)
            )
        assert code is grpc.StatusCode.UNAVAILABLE
    node = region.channels("ap", Role.NODE, "n9")
    async with node.open(address, role=Role.GATEWAY, region="ap") as channel:
        code, details = await code_of(
            PeerServiceStub(channel).GetPeerVideo(request, metadata=bearer, timeout=10)
        )
        assert (code, "role gateway" in details) == (grpc.StatusCode.PERMISSION_DENIED, True)
    eu = region.channels("eu", Role.GATEWAY, "g")
    async with eu.open(address, role=Role.GATEWAY, region="ap") as channel:
        code, _ = await code_of(PeerServiceStub(channel).GetPeerVideo(request, timeout=10))
        assert code is grpc.StatusCode.NOT_FOUND


# --- the log of the part that tried ---


async def said_by_a_node_that_calls(address, tmp_path, said, **changes):
    """Waits until the log of a node that attaches at the address says it."""
    folder = tmp_path / "node"
    folder.mkdir()
    config = node_config(folder, node_id="n1", control_planes=[address], **changes)
    with capture_logs() as logs:
        async with build_node(config, launcher=FakeLauncher()):
            await until(lambda: any(said in str(log.get("error")) for log in logs))


async def test_plain_text_to_a_part_with_certificates_is_told(region, tmp_path):
    await said_by_a_node_that_calls(region.control.address, tmp_path, "it takes no plain text")


async def test_a_part_without_certificates_is_told_by_the_one_that_tried(tmp_path, store):
    own = section(MeshAuthority(tmp_path / "ca").part("ap", Role.NODE, "n1"))
    async with running(store=store) as app:
        await said_by_a_node_that_calls(
            app.address, tmp_path, "the other side speaks plain text", mtls=own
        )


async def test_an_authority_that_is_not_known_is_told(region, tmp_path):
    own = region.own(Role.NODE, "n1")
    MeshAuthority(tmp_path / "stranger").give_ca(region.files["n1"])
    await said_by_a_node_that_calls(region.control.address, tmp_path, "not in ca_file", mtls=own)


async def test_a_part_of_another_role_at_the_address_is_told(region, tmp_path):
    gateway = await region.add_gateway("a")
    own = region.own(Role.NODE, "n1")
    await said_by_a_node_that_calls(
        gateway.peer_address, tmp_path, "not of the role, region and id", mtls=own
    )


async def test_a_part_with_anothers_certificate_does_not_start(region):
    with pytest.raises(ConfigError, match="is the certificate of gateway a of region ap"):
        await region.add_node("n7", mtls=region.own(Role.GATEWAY, "a"))
    with pytest.raises(ConfigError, match="is the certificate of gateway b of region ap"):
        await region.add_gateway("c", mtls=region.own(Role.GATEWAY, "b"))


# --- nothing is forgotten ---


async def test_every_method_of_every_internal_listener_is_in_its_table(region, store, monkeypatch):
    """Walks what is really registered, with reflection on: one that is missing fails here."""
    made = []
    real = aio.server

    def recording(*args, interceptors=None, **kwargs):
        server = real(*args, interceptors=interceptors, **kwargs)
        guard = next((each for each in interceptors or () if isinstance(each, Guard)), None)
        methods = set()
        made.append((guard, methods))
        add = server.add_generic_rpc_handlers

        def note(handlers):
            handlers = tuple(handlers)
            for handler in handlers:
                methods.update(handler._method_handlers)
            add(handlers)

        server.add_generic_rpc_handlers = note
        return server

    monkeypatch.setattr(aio, "server", recording)
    operator = {"listen": "127.0.0.1:0", "auth": {"issuers": [region_issuer(region)]}}
    async with running(store=store, operator=operator, reflection=True):
        await region.add_node("n1")
        await region.add_gateway("a")
    guarded = [(guard, methods) for guard, methods in made if guard is not None]
    open_ones = [methods for guard, methods in made if guard is None]
    # The operators' listener is one of them: it may want certificates besides tokens.
    assert len(guarded) == 4
    for guard, methods in guarded:
        assert methods
        assert methods <= guard._table.keys()
        assert guard._table.keys() - COMMON.keys() <= methods
    # The public listener asks for tokens alone.
    names = {method.split("/")[1] for methods in open_ones for method in methods}
    assert not names & {
        "reelmesh.v1.NodeService",
        "reelmesh.v1.PeerService",
        "reelmesh.v1.ControlPlaneService",
        "reelmesh.v1.JobService",
        "reelmesh.v1.QuotaService",
    }


def region_issuer(region):
    jwks = region.issuer.write_jwks(region.tmp_path / "operators.json")
    return {
        "issuer": region.issuer.issuer,
        "audience": region.issuer.audience,
        "jwks_file": str(jwks),
    }


def test_every_claim_is_a_field_of_the_request():
    pool = descriptor_pool.Default()
    for table in (CONTROL_ACCESS, NODE_ACCESS, PEER_ACCESS):
        for method, rule in table.items():
            if not rule.claim:
                continue
            _, service, name = method.split("/")
            message = pool.FindServiceByName(service).methods_by_name[name].input_type
            *path, field = rule.claim.split(".")
            for step in path:
                message = message.fields_by_name[step].message_type
            assert message.fields_by_name[field].type == message.fields_by_name[field].TYPE_STRING


def test_channels_without_a_certificate_are_plain():
    assert Channels()._tls is None
