"""Both public edges over TLS, with a certificate that is renewed while they serve."""

import asyncio
import ssl

import aiohttp
import grpc
import pytest
from grpc import aio
from reelmesh.v1 import video_service_pb2
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from reelkit.settings import ConfigError
from tests.support.certs import Authority
from tests.support.gateway_region import gateway_region
from tests.support.stores import eventually
from wan_t2v_sdk import AsyncTextToVideoGenerator

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def files(tmp_path):
    return {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")


def write_pair(tmp_path, authority):
    identity = authority.issue("gateway")
    (tmp_path / "key.pem").write_bytes(identity.key.read_bytes())
    (tmp_path / "cert.pem").write_bytes(identity.cert.read_bytes())


@pytest.fixture
async def region(tmp_path):
    async with gateway_region(tmp_path) as found:
        yield found


async def taken_over_http(gateway, authority, token):
    """Whether a client that trusts the authority is served."""
    context = ssl.create_default_context(cafile=authority.cert)
    url = f"https://{gateway.app.http_address}/v1/videos"
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.get(url, headers=headers, ssl=context) as answer,
        ):
            return answer.status == 200
    except aiohttp.ClientConnectorCertificateError:
        return False


async def taken_over_grpc(gateway, authority, token):
    credentials = grpc.ssl_channel_credentials(authority.cert.read_bytes())
    metadata = (("authorization", f"Bearer {token}"),)
    async with aio.secure_channel(gateway.app.grpc_address, credentials) as channel:
        try:
            await VideoServiceStub(channel).ListVideos(
                video_service_pb2.ListVideosRequest(), metadata=metadata, timeout=5
            )
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
    return True


async def test_both_edges_speak_tls_and_nothing_else(tmp_path, region, files, authority):
    write_pair(tmp_path, authority)
    gateway, token = await region.start("a", tls=files), region.issuer.issue()
    assert await taken_over_http(gateway, authority, token)
    assert await taken_over_grpc(gateway, authority, token)
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError):
            await http.get(f"http://{gateway.app.http_address}/healthz")
    async with aio.insecure_channel(gateway.app.grpc_address) as channel:
        with pytest.raises(aio.AioRpcError) as raised:
            await VideoServiceStub(channel).ListVideos(
                video_service_pb2.ListVideosRequest(), timeout=5
            )
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    old = ssl.create_default_context(cafile=authority.cert)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    url = f"https://{gateway.app.http_address}/healthz"
    async with aiohttp.ClientSession() as http, http.get(url, ssl=old) as answer:
        assert answer.status == 200


async def test_a_renewed_certificate_is_taken_without_a_restart(
    tmp_path, region, files, authority, monkeypatch
):
    monkeypatch.setattr("reelkit.tls.FOLLOW_EVERY_S", 0.05)
    write_pair(tmp_path, authority)
    gateway, token = await region.start("a", tls=files), region.issuer.issue()
    renewed = Authority(tmp_path / "renewed")
    assert not await taken_over_http(gateway, renewed, token)
    identity = renewed.issue("gateway")
    # Half of it is written: what is in use serves on.
    (tmp_path / "cert.pem").write_bytes(identity.cert.read_bytes())
    assert await taken_over_grpc(gateway, authority, token)
    assert await taken_over_http(gateway, authority, token)
    (tmp_path / "key.pem").write_bytes(identity.key.read_bytes())
    await eventually(lambda: taken_over_http(gateway, renewed, token))
    await eventually(lambda: taken_over_grpc(gateway, renewed, token))
    # It is gone: what was read serves on.
    (tmp_path / "cert.pem").unlink()
    assert await taken_over_grpc(gateway, renewed, token)
    assert await taken_over_http(gateway, renewed, token)


async def test_the_client_library_draws_over_tls(tmp_path, region, files, authority):
    write_pair(tmp_path, authority)
    gateway, token = await region.start("a", tls=files), region.issuer.issue()
    endpoint = f"ap=https://{gateway.app.grpc_address}"
    async with AsyncTextToVideoGenerator(
        endpoints=[endpoint], token=token, ca=authority.cert
    ) as client:
        video = await client.create("a ball")
        assert video.region == "ap"


@pytest.mark.parametrize("broken", ["missing", "mismatched", "nonsense"])
async def test_a_certificate_that_cannot_be_used_is_told_at_the_start(
    tmp_path, region, files, authority, broken
):
    write_pair(tmp_path, authority)
    if broken == "missing":
        (tmp_path / "key.pem").unlink()
    elif broken == "mismatched":
        (tmp_path / "key.pem").write_bytes(authority.issue("other").key.read_bytes())
    else:
        (tmp_path / "cert.pem").write_text("nonsense")
    with pytest.raises(ConfigError, match=r"tls\.cert_file"):
        await region.start("a", tls=files)


async def test_a_handshake_that_stands_still_is_cut_at_both_edges(
    tmp_path, region, files, authority, monkeypatch
):
    monkeypatch.setattr("gateway.edge_http.server.HANDSHAKE_TIMEOUT_S", 1)
    monkeypatch.setattr("reelkit.rpc.HANDSHAKE_TIMEOUT_S", 1)
    write_pair(tmp_path, authority)
    gateway = await region.start("a", tls=files)
    for address in (gateway.app.http_address, gateway.app.grpc_address):
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
        assert await taken_over_http(gateway, authority, region.issuer.issue())
