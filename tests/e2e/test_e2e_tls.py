"""``reelmesh up --tls``: two regions, everything encrypted, etcd and its members too."""

import http.client
import json
import socket
import ssl
import subprocess
import sys
from urllib.parse import urlsplit

import grpc
import psutil
import pytest
from reelmesh.v1 import node_service_pb2, video_pb2, video_service_pb2
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub
from reelmesh.v1.video_service_pb2_grpc import VideoServiceStub

from tests.support.mesh import running_mesh
from wan_t2v_sdk import TextToVideoGenerator

pytestmark = pytest.mark.timeout(240)

HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture(scope="module")
def tls_mesh(tmp_path_factory, random_model_dir):
    state_dir = tmp_path_factory.mktemp("tls") / "state"
    arguments = ("--tls", "--regions", "ap,eu", "--etcd-members", "3")
    with running_mesh(state_dir, *arguments, "--model", str(random_model_dir)) as running:
        yield running


@pytest.fixture(scope="module")
def ca(tls_mesh):
    return tls_mesh.document()["ca"]


def test_a_video_over_grpc(tls_mesh, ca):
    with open(ca, "rb") as file:  # noqa: PTH123 - as a client would
        credentials = grpc.ssl_channel_credentials(file.read())
    spec = video_pb2.VideoSpec(prompt="a ball", width=96, height=128, num_frames=5, steps=2)
    with grpc.secure_channel(tls_mesh.grpc("ap"), credentials) as channel:
        call = VideoServiceStub(channel).GenerateVideo(
            video_service_pb2.GenerateVideoRequest(spec=spec),
            metadata=(("authorization", f"Bearer {tls_mesh.token}"),),
            timeout=60,
        )
        kinds = [answer.event.WhichOneof("event") for answer in call]
    assert kinds[-1] == "completed"


def test_a_video_over_http_that_the_other_region_shows_too(tls_mesh, ca):
    def call(region, method, path, body=None):
        parts = urlsplit(tls_mesh.http(region))
        assert parts.scheme == "https"
        connection = http.client.HTTPSConnection(
            parts.hostname,
            parts.port,
            timeout=30,
            context=ssl.create_default_context(cafile=ca),
        )
        headers = {"authorization": f"Bearer {tls_mesh.token}", "content-type": "application/json"}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        return answer.status, read

    body = {
        "prompt": "a ball",
        "width": 96,
        "height": 128,
        "num_frames": 5,
        "num_inference_steps": 2,
    }
    status, made = call("ap", "POST", "/v1/videos", body)
    assert status == 200, made
    video = json.loads(made)
    # Its home is ap: eu's gateway asks it over the peer listeners, with certificates of both.
    status, shown = call("eu", "GET", f"/v1/videos/{video['id']}")
    assert (status, json.loads(shown)["id"]) == (200, video["id"])


def test_the_library_and_the_commands_find_the_authority_by_themselves(tls_mesh, tmp_path):
    with TextToVideoGenerator.from_mesh(tls_mesh.file, region="eu", timeout_s=60) as model:
        result = model.generate("a ball", num_frames=5, steps=2, progress=False)
        assert result["region"] == "eu"
    generate = ("reelmesh_cli", "generate", "a ball", "--steps", "2", "-o", "b.mp4")
    nodes = ("control_plane.reelctl", "node", "list", "-o", "json")
    for module, *arguments in (generate, nodes):
        ran = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--mesh", str(tls_mesh.file)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "b.mp4").stat().st_size > 0
    assert {node["state"] for node in json.loads(ran.stdout)} == {"ready"}


def test_no_port_of_the_mesh_serves_in_plain_text(tls_mesh):
    ports = {
        each.laddr.port
        for process in tls_mesh.family()
        for each in process.net_connections(kind="tcp")
        if each.status == psutil.CONN_LISTEN
    }
    # Of each region gateway (3), control plane (2) and node; of three members of etcd each two.
    assert len(ports) >= 2 * 6 + 6
    for port in sorted(ports):
        for said in (HTTP2, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
            answer = said_to(port, said)
            # An alert of TLS, nothing, or a library's word that it is spoken to wrongly.
            told_so = answer.startswith(b"HTTP/1.0 400") and b"HTTPS server" in answer
            assert answer[:1] in (b"", b"\x15") or told_so, (port, answer[:200])


def said_to(port, said):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        plain.sendall(said)
        answer = b""
        try:
            while piece := plain.recv(4096):
                answer += piece
        except ConnectionError:
            pass
        return answer


def test_who_has_no_certificate_reaches_no_part_and_no_etcd(tls_mesh, ca):
    """The authority of the public edges opens nothing inside, and the mesh's opens no etcd."""
    document = tls_mesh.document()
    node = next(each for each in document["processes"] if each["role"] == "node-agent")
    state = tls_mesh.state_dir / "certs"
    believed = (state / "mesh" / "ca.pem").read_bytes()
    options = (("grpc.ssl_target_name_override", "node.ap.reelmesh.internal"),)
    credentials = grpc.ssl_channel_credentials(believed)
    with grpc.secure_channel(node["address"], credentials, options) as channel:
        request = node_service_pb2.WatchStatusRequest()
        with pytest.raises(grpc.RpcError) as caught:
            next(NodeServiceStub(channel).WatchStatus(request, timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    etcd = urlsplit(document["etcd"][0])
    assert etcd.scheme == "https"
    context = ssl.create_default_context(cafile=state / "etcd-global" / "ca.pem")
    part = state / "mesh" / "ap.gateway.ap-gateway-0"
    context.load_cert_chain(f"{part}.pem", f"{part}-key.pem")
    connection = http.client.HTTPSConnection(etcd.hostname, etcd.port, timeout=10, context=context)

    def ask():
        connection.request("GET", "/health")
        connection.getresponse()

    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask()
    connection.close()
    for key in state.glob("*/*-key.pem"):
        assert key.stat().st_mode & 0o077 == 0, key
