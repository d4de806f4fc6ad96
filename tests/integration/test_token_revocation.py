"""Tokens that an operator revokes are refused everywhere, within a second."""

import time

import aiohttp
import grpc
import pytest
from grpc import aio
from reelmesh.v1 import access_pb2, video_service_pb2
from reelmesh.v1 import operator_service_pb2 as op
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from tests.support.gateway_region import gateway_region
from tests.support.operators import Client, auth_for
from tests.support.stores import eventually
from tests.support.tokens import TokenIssuer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def mesh(tmp_path):
    """A gateway, its control plane, and an operator of both, of one issuer."""
    (tmp_path / "operators").mkdir()
    issuer = TokenIssuer()
    operator = {"listen": "127.0.0.1:0", "auth": auth_for(issuer, tmp_path / "operators")}
    async with gateway_region(tmp_path, operator=operator) as region:
        region.issuer = issuer
        gateway = await region.start("a")
        client = Client(region.control.operator_address, issuer)
        async with aiohttp.ClientSession() as http:
            yield Mesh(region, gateway, client, http)
        await client.channel.close()


class Mesh:
    def __init__(self, region, gateway, client, http):
        self.region = region
        self.gateway = gateway
        self.client = client
        self.http = http

    async def code_over_http(self, token):
        """Empty where the token is taken."""
        url = f"http://{self.gateway.app.http_address}/v1/videos"
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.get(url, headers=headers) as answer:
            return "" if answer.status == 200 else (await answer.json())["code"]

    async def status_over_grpc(self, token):
        metadata = (("authorization", f"Bearer {token}"),)
        async with aio.insecure_channel(self.gateway.app.grpc_address) as channel:
            try:
                await VideoServiceStub(channel).ListVideos(
                    video_service_pb2.ListVideosRequest(), metadata=metadata
                )
            except aio.AioRpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    async def is_refused(self, token):
        return await self.code_over_http(token) == "token_revoked"

    async def is_taken(self, token):
        return not await self.code_over_http(token)

    async def until_refused(self, token):
        began_s = time.monotonic()
        await eventually(lambda: self.is_refused(token))
        return time.monotonic() - began_s

    async def revoke(self, *, keep_s=3600, **which):
        revocation = access_pb2.TokenRevocation(issuer=self.region.issuer.issuer, **which)
        request = op.RevokeTokensRequest(revocation=revocation, keep_s=keep_s)
        return (await self.client.call("RevokeTokens", request)).revocation


def now():
    revocation = access_pb2.TokenRevocation()
    revocation.issued_before.FromSeconds(int(time.time()) + 1)
    return revocation.issued_before


async def test_one_token_is_refused_within_a_second_and_the_others_hold(mesh):
    issuer = mesh.region.issuer
    lost, other = issuer.issue(jti="lost"), issuer.issue(jti="other")
    assert await mesh.code_over_http(lost) == ""
    made = await mesh.revoke(jti="lost", reason="in a log")
    assert await mesh.until_refused(lost) < 1.0
    assert await mesh.status_over_grpc(lost) is grpc.StatusCode.UNAUTHENTICATED
    assert await mesh.code_over_http(other) == ""
    assert (made.revoked_by, made.reason) == ("ops", "in a log")
    await mesh.client.call("RestoreTokens", op.RestoreTokensRequest(id=made.id))
    await eventually(lambda: mesh.is_taken(lost))


async def test_a_subjects_tokens_of_before_are_refused_and_later_ones_hold(mesh):
    issuer = mesh.region.issuer
    alice, bob = issuer.issue(sub="alice"), issuer.issue(sub="bob")
    undated = issuer.issue(sub="alice", iat=None, jti=None)
    assert await mesh.code_over_http(alice) == ""
    await mesh.revoke(subject="alice", issued_before=now())
    assert await mesh.until_refused(alice) < 1.0
    assert await mesh.code_over_http(undated) == "token_revoked"
    assert await mesh.code_over_http(bob) == ""
    assert await mesh.code_over_http(issuer.issue(sub="alice", iat=int(time.time()) + 5)) == ""


async def test_a_gateway_that_starts_later_knows_them(mesh):
    await mesh.revoke(jti="lost")
    mesh.gateway = await mesh.region.start("b")
    await mesh.until_refused(mesh.region.issuer.issue(jti="lost"))


async def test_the_list_holds_while_the_control_plane_is_away(mesh):
    lost = mesh.region.issuer.issue(jti="lost")
    await mesh.revoke(jti="lost")
    await mesh.until_refused(lost)
    await mesh.region.control.drain()
    assert await mesh.code_over_http(lost) == "token_revoked"


async def test_an_operators_token_is_revoked_too(mesh):
    token = mesh.region.issuer.issue(sub="ops", scope="fleet:read fleet:operate", jti="op")
    await mesh.client.call("ListRevocations", op.ListRevocationsRequest(), token=token)
    await mesh.revoke(jti="op")

    async def refused():
        try:
            await mesh.client.call("ListRevocations", op.ListRevocationsRequest(), token=token)
        except aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
        return False

    await eventually(refused)


async def test_a_revocation_is_forgotten_when_no_such_token_can_be_valid(mesh, monkeypatch):
    monkeypatch.setattr("control_plane.passing._BUCKET_S", 1.0)
    await mesh.revoke(jti="lost", keep_s=1)

    async def forgotten():
        answer = await mesh.client.call("ListRevocations", op.ListRevocationsRequest())
        return not answer.revocations

    await eventually(forgotten)


@pytest.mark.parametrize(
    ("which", "keep_s", "field"),
    [
        ({}, 60, "revocation"),
        ({"jti": ""}, 60, "revocation.jti"),
        ({"jti": "x" * 513}, 60, "revocation.jti"),
        ({"jti": "a\nb"}, 60, "revocation.jti"),
        ({"subject": "alice"}, 60, "revocation.issued_before"),
        ({"jti": "x", "reason": "x" * 5000}, 60, "revocation.reason"),
        ({"jti": "x"}, 0, "keep_s"),
        ({"jti": "x"}, 10**9, "keep_s"),
    ],
)
async def test_what_revokes_nothing_is_refused(mesh, which, keep_s, field):
    with pytest.raises(aio.AioRpcError, match=field) as raised:
        await mesh.revoke(keep_s=keep_s, **which)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_looking_needs_less_than_revoking(mesh):
    read = mesh.region.issuer.issue(sub="ops", scope="fleet:read", tenant=None)
    await mesh.client.call("ListRevocations", op.ListRevocationsRequest(), token=read)
    for method, request in (
        ("RevokeTokens", op.RevokeTokensRequest()),
        ("RestoreTokens", op.RestoreTokensRequest(id="x")),
    ):
        with pytest.raises(aio.AioRpcError) as raised:
            await mesh.client.call(method, request, token=read)
        assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(aio.AioRpcError) as raised:
        await mesh.client.call("RestoreTokens", op.RestoreTokensRequest(id="none"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
