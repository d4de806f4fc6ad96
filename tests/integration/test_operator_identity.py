"""Operators whose issuer has a URL, and operators who must show a certificate too."""

import json

import grpc
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from grpc import aio
from reelmesh.v1 import operator_service_pb2 as op

from control_plane.store.memory import MemoryStore
from reelkit.clock import SystemClock
from reelkit.mtls.identity import Role
from reelkit.tokens import refreshed
from tests.support.certs import Authority
from tests.support.mtls import MeshAuthority
from tests.support.operators import Client, operated
from tests.support.tokens import AUDIENCE, ISSUER, TokenIssuer

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def store():
    async with MemoryStore(clock=SystemClock()) as made:
        yield made


async def refused(call):
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return caught.value


async def test_operators_keys_come_from_a_url_too(store, tmp_path, monkeypatch):
    monkeypatch.setattr(refreshed, "COOLDOWN_S", 0.0)
    issuer, away = TokenIssuer(), True

    async def serve(_request):
        if away:
            return web.Response(status=503)
        return web.Response(text=json.dumps({"keys": [issuer.public_jwk()]}))

    app = web.Application()
    app.router.add_get("/jwks.json", serve)
    async with TestServer(app) as server:
        url = str(server.make_url("/jwks.json"))
        auth = {"issuers": [{"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": url}]}
        async with operated(tmp_path, store=store, operator={"auth": auth}) as (_, client):
            client.issuer = issuer
            error = await refused(client.call("ListNodes", op.ListNodesRequest()))
            # That is not the token's fault, and asking again can help.
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            away = False
            await client.call("ListNodes", op.ListNodesRequest())
            stranger = TokenIssuer(kid="other").issue(scope="fleet:read")
            error = await refused(client.call("ListNodes", op.ListNodesRequest(), token=stranger))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_listener_that_wants_certificates_wants_an_operators_and_a_token(store, tmp_path):
    mesh, public = MeshAuthority(tmp_path / "mesh"), Authority(tmp_path / "public")
    shown = public.issue("operators")
    section = {
        "tls": {"cert_file": str(shown.cert), "key_file": str(shown.key)},
        "client_ca_file": str(mesh.ca_file),
    }
    async with operated(tmp_path, store=store, operator=section) as (app, client):

        async def code(issued, **call):
            pair = (None, None) if issued is None else (issued.key, issued.certificate)
            credentials = grpc.ssl_channel_credentials(public.cert.read_bytes(), *pair)
            caller = Client(app.operator_address, client.issuer, credentials)
            try:
                await caller.call("ListNodes", op.ListNodesRequest(), **call)
            except aio.AioRpcError as error:
                return error.code()
            finally:
                await caller.channel.close()
            return grpc.StatusCode.OK

        operator = mesh.issue("eu", Role.OPERATOR, "alice")
        assert await code(operator) is grpc.StatusCode.OK
        assert await code(operator, scope=None) is grpc.StatusCode.UNAUTHENTICATED
        assert await code(None) is grpc.StatusCode.UNAVAILABLE
        gateway = mesh.issue("ap", Role.GATEWAY, "g1")
        assert await code(gateway) is grpc.StatusCode.PERMISSION_DENIED
