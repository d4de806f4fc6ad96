"""A server that knows its callers by their certificates, over real connections."""

import asyncio
import contextlib
import datetime as dt

import grpc
import pytest
from grpc import aio
from reelmesh.v1 import control_plane_service_pb2 as cp

from reelkit import rpc
from reelkit.clock import SystemClock
from reelkit.mtls.access import Rule, service_rules
from reelkit.mtls.channels import Channels
from reelkit.mtls.guard import Guard, peer_identity
from reelkit.mtls.identity import Identity, Role
from tests.support.mtls import HOUR, MeshAuthority, mutual, now

pytestmark = pytest.mark.timeout(60)

SERVICE = "test.Service"
TABLE = service_rules(
    SERVICE,
    {
        "Who": Rule(frozenset({Role.GATEWAY}), any_region=True),
        "Attach": Rule(frozenset({Role.NODE}), claim="hello.node_id"),
        "Beat": Rule(frozenset({Role.GATEWAY}), claim="gateway_id"),
        "Count": Rule(frozenset({Role.GATEWAY})),
    },
)


class Service:
    """Says who calls; counts; echoes."""

    def __init__(self):
        self.go_on = asyncio.Event()

    async def who(self, _request, context):
        return str(peer_identity(context)).encode()

    async def attach(self, requests, context):
        async for request in requests:
            await context.write(request)

    async def count(self, _request, _context):
        for number in range(3):
            yield str(number).encode()
        await self.go_on.wait()
        yield b"end"

    async def unlisted(self, request, _context):
        return request

    def handlers(self):
        request = cp.AttachRequest.FromString
        answer = cp.AttachRequest.SerializeToString
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Who": grpc.unary_unary_rpc_method_handler(self.who),
                "Attach": grpc.stream_stream_rpc_method_handler(self.attach, request, answer),
                "Count": grpc.unary_stream_rpc_method_handler(self.count),
                "Unlisted": grpc.unary_unary_rpc_method_handler(self.unlisted),
            },
        )


@contextlib.asynccontextmanager
async def serving(tls, service=None, port=0):
    guard = Guard(TABLE, region="ap", mutual=tls is not None, clock=SystemClock())
    server = aio.server(options=rpc.server_options(), interceptors=[guard])
    server.add_generic_rpc_handlers(((service or Service()).handlers(),))
    credentials = None if tls is None else tls.server_credentials()
    port = rpc.listen(server, f"127.0.0.1:{port}", credentials=credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
def mesh(tmp_path):
    return MeshAuthority(tmp_path)


@pytest.fixture
def node(mesh):
    return mutual(mesh.part("ap", Role.NODE, "n1"))


async def who(channels, address, *, role=Role.NODE, region="ap", id_=""):
    async with channels.open(address, role=role, region=region, id=id_) as channel:
        return await channel.unary_unary(f"/{SERVICE}/Who")(b"", timeout=10)


async def refused(channels, address, **demanded):
    with pytest.raises(aio.AioRpcError) as caught:
        await who(channels, address, **demanded)
    return caught.value


async def test_both_sides_know_one_another(mesh, node):
    gateway = Channels(mutual(mesh.part("eu", Role.GATEWAY, "g1")))
    async with serving(node) as address:
        assert await who(gateway, address) == b"gateway g1 of region eu"
        assert await who(gateway, address, id_="n1") == b"gateway g1 of region eu"


@pytest.mark.parametrize(
    ("region", "role", "id_"),
    [("eu", Role.NODE, ""), ("ap", Role.GATEWAY, ""), ("ap", Role.NODE, "n2")],
)
async def test_a_client_connects_to_nobody_but_whom_it_means(mesh, node, region, role, id_):
    gateway = Channels(mutual(mesh.part("ap", Role.GATEWAY, "g1")))
    async with serving(node) as address:
        error = await refused(gateway, address, region=region, role=role, id_=id_)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "Hostname Verification Check failed" in error.details()


async def test_a_certificate_of_another_authority_is_refused(mesh, node, tmp_path):
    stranger = MeshAuthority(tmp_path / "stranger")
    settings = stranger.part("ap", Role.GATEWAY, "g1")
    mesh.give_ca(settings)
    async with serving(node) as address:
        error = await refused(Channels(mutual(settings)), address)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_server_of_another_authority_is_not_believed(mesh, node, tmp_path):
    settings = mesh.part("ap", Role.GATEWAY, "g1")
    MeshAuthority(tmp_path / "stranger").give_ca(settings)
    async with serving(node) as address:
        error = await refused(Channels(mutual(settings)), address)
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_that_is_over_is_refused(mesh, node):
    gone = mesh.authority.issue(_wanted("ap", Role.GATEWAY, "g1"), now=now() - 2 * HOUR, life=HOUR)
    async with serving(node) as address:
        assert await _raw(mesh, address, gone) is grpc.StatusCode.UNAVAILABLE
        sound = mesh.issue("ap", Role.GATEWAY, "g1")
        assert await _raw(mesh, address, sound) is grpc.StatusCode.OK


async def test_nobody_comes_in_without_a_certificate(mesh, node):
    async with serving(node) as address:
        assert await _raw(mesh, address, None) is grpc.StatusCode.UNAVAILABLE
        async with aio.insecure_channel(address) as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await channel.unary_unary(f"/{SERVICE}/Who")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://reelmesh/ap/gateway/g1", "spiffe://reelmesh/ap/node/n1"),
        ("spiffe://elsewhere/ap/gateway/g1",),
        ("spiffe://reelmesh/ap/gateway/g1/",),
    ],
)
async def test_a_certificate_that_names_nobody_is_unauthenticated(mesh, node, uris):
    # As an authority that is used for more than this mesh could sign it.
    from tests.support.mtls_odd import issue_with_uris

    async with serving(node) as address:
        code = await _raw(mesh, address, issue_with_uris(mesh.authority, uris))
    assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_wrong_role_or_region_is_told_what_is_needed(mesh, node, capsys):
    async with serving(node) as address:
        error = await refused(Channels(mutual(mesh.part("ap", Role.NODE, "n2"))), address)
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert error.details() == ("Who: node n2 of region ap: needs a certificate of role gateway")
        eu = Channels(mutual(mesh.part("eu", Role.GATEWAY, "g1")))
        async with eu.open(address, role=Role.NODE, region="ap") as channel:
            call = channel.unary_stream(f"/{SERVICE}/Count")(b"")
            with pytest.raises(aio.AioRpcError) as caught:
                await call.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert caught.value.details().endswith("needs a certificate of region ap")


async def test_what_the_table_lacks_is_served_nowhere(mesh, node):
    gateway = Channels(mutual(mesh.part("ap", Role.GATEWAY, "g1")))
    for tls, channels in ((node, gateway), (None, Channels())):
        async with serving(tls) as address:
            channel = channels.open(address, role=Role.NODE, region="ap")
            for method, code in (
                ("Unlisted", grpc.StatusCode.PERMISSION_DENIED),
                ("Nowhere", grpc.StatusCode.UNIMPLEMENTED),
            ):
                with pytest.raises(aio.AioRpcError) as caught:
                    await channel.unary_unary(f"/{SERVICE}/{method}")(b"", timeout=10)
                assert caught.value.code() is code
            await channel.close()


async def test_a_claim_of_anothers_id_ends_a_stream_whenever_it_comes(mesh):
    control = mutual(mesh.part("ap", Role.CONTROL_PLANE, "c1"))
    channels = Channels(mutual(mesh.part("ap", Role.NODE, "n1")))
    mine = cp.AttachRequest(hello=cp.NodeHello(node_id="n1"))
    others = cp.AttachRequest(hello=cp.NodeHello(node_id="n2"))
    async with serving(control) as address:
        channel = channels.open(address, role=Role.CONTROL_PLANE, region="ap")
        attach = channel.stream_stream(
            f"/{SERVICE}/Attach", cp.AttachRequest.SerializeToString, cp.AttachRequest.FromString
        )
        call = attach()
        await call.write(mine)
        assert await call.read() == mine
        await call.write(others)
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "hello.node_id is 'n2'" in caught.value.details()
        await channel.close()


async def test_a_part_in_plain_text_believes_its_callers():
    async with serving(None) as address, aio.insecure_channel(address) as channel:
        attach = channel.stream_stream(
            f"/{SERVICE}/Attach", cp.AttachRequest.SerializeToString, cp.AttachRequest.FromString
        )
        call = attach()
        await call.write(cp.AttachRequest(hello=cp.NodeHello(node_id="anybody")))
        assert (await call.read()).hello.node_id == "anybody"
        call.cancel()


async def test_a_handshake_that_stands_still_is_cut(node, monkeypatch):
    monkeypatch.setattr(rpc, "HANDSHAKE_TIMEOUT_S", 1)
    async with serving(node) as address:
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


# --- renewal ---


async def test_an_authority_is_replaced_while_streams_run(mesh, node):
    """Stage, switch, retire, with new leafs between: nothing drops, and the old one is out."""
    service, settings = Service(), mesh.part("ap", Role.GATEWAY, "g1")
    server_files, client = node._settings, mutual(settings)
    channels = Channels(client)
    old = mesh.issue("ap", Role.GATEWAY, "g1")
    old_ca = mesh.ca_file.read_bytes()

    def give(*, leafs):
        for files, role, id_, tls in (
            (server_files, Role.NODE, "n1", node),
            (settings, Role.GATEWAY, "g1", client),
        ):
            mesh.give_ca(files)
            if leafs:
                mesh.renew(files, mesh.issue("ap", role, id_))
            assert tls.refresh()

    async with serving(node, service) as address:
        channel = channels.open(address, role=Role.NODE, region="ap")
        ask = channel.unary_unary(f"/{SERVICE}/Who")
        call = channel.unary_stream(f"/{SERVICE}/Count")(b"")
        assert [await call.read() for _ in range(3)] == [b"0", b"1", b"2"]
        mesh.authority.stage(name="test", now=now(), life=24 * HOUR)
        give(leafs=False)
        assert await ask(b"", timeout=10)
        mesh.authority.switch()
        give(leafs=True)
        assert await ask(b"", timeout=10)
        mesh.authority.retire()
        give(leafs=False)
        assert await ask(b"", timeout=10) == b"gateway g1 of region ap"
        # The stream that began before all of it ends as it should.
        await channels.sweep()
        service.go_on.set()
        assert await call.read() == b"end"
        assert await call.read() is aio.EOF
        await channels.sweep()
        assert channel._replaced == []
        # Whoever still shows the old authority's certificate is out, whatever it believes.
        assert await _raw(mesh, address, old) is grpc.StatusCode.UNAVAILABLE
        assert await _raw(mesh, address, mesh.issue("ap", Role.GATEWAY, "g1"), ca=old_ca) is (
            grpc.StatusCode.UNAVAILABLE
        )
        await channel.close()


async def test_a_channel_connects_anew_with_what_was_renewed(mesh, node, tmp_path):
    """Its server comes back believing, and signed by, another authority alone."""
    files = mesh.part("ap", Role.GATEWAY, "g1")
    client, other = mutual(files), MeshAuthority(tmp_path / "other")
    channels = Channels(client)
    async with serving(node) as address:
        channel = channels.open(address, role=Role.NODE, region="ap")
        ask = channel.unary_unary(f"/{SERVICE}/Who")
        assert await ask(b"", timeout=10)
    for settings, role, id_ in ((node._settings, Role.NODE, "n1"), (files, Role.GATEWAY, "g1")):
        other.give_ca(settings)
        other.renew(settings, other.issue("ap", role, id_))
    assert node.refresh()
    assert client.refresh()
    async with serving(node, port=int(address.rpartition(":")[2])), asyncio.timeout(20):
        assert await ask(b"", wait_for_ready=True) == b"gateway g1 of region ap"
        await channel.close()


async def test_files_that_follow_are_taken_by_themselves(mesh, node, monkeypatch):
    monkeypatch.setattr("reelkit.mtls.material.FOLLOW_EVERY_S", 0.02)
    following = asyncio.ensure_future(Channels(node).follow())
    mesh.renew(node._settings, mesh.issue("ap", Role.NODE, "n1", life=dt.timedelta(minutes=30)))
    async with asyncio.timeout(20):
        while node.generation == 1:  # noqa: ASYNC110 - another thread's doing
            await asyncio.sleep(0.01)
    following.cancel()
    assert node.not_after < now() + dt.timedelta(minutes=31)


def _wanted(region, role, id_):
    from reelkit.mtls.authority import Wanted

    return Wanted(common_name=id_, identity=Identity(region, role, id_))


async def _raw(mesh, address, issued, *, ca=None):
    """The status that a client gets with whatever it shows, by way of grpc alone."""
    pair = (None, None) if issued is None else (issued.key, issued.certificate)
    credentials = grpc.ssl_channel_credentials(ca or mesh.ca_file.read_bytes(), *pair)
    async with rpc.internal_channel(
        address, credentials=credentials, server_name="node.ap.reelmesh.internal"
    ) as channel:
        try:
            await channel.unary_unary(f"/{SERVICE}/Who")(b"", timeout=10)
        except aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK
