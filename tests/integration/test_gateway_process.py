"""The gateway as a process of its own, between a fake control plane and a fake node."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest
import yaml
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reelmesh.v1 import video_pb2, video_service_pb2, video_service_pb2_grpc

from reelkit.rpc import internal_channel
from tests.support import fakenode
from tests.support.fakecontrol import FakeControl, serve_control
from tests.support.fakenode import VIDEO, FakeNode, serve_node
from tests.support.gateways import data_of, kinds
from tests.support.tokens import TokenIssuer

DEADLINE_S = 60.0
MAX_IDLE_BYTES = 120 * 1024 * 1024


@dataclass
class GatewayProcess:
    process: subprocess.Popen
    http: str
    grpc: str
    log: Path
    issuer: TokenIssuer
    channel: aio.Channel

    @property
    def metadata(self):
        return (("authorization", f"Bearer {self.issuer.issue()}"),)

    @property
    def headers(self):
        return dict(self.metadata)

    @property
    def videos(self):
        return video_service_pb2_grpc.VideoServiceStub(self.channel)

    async def generate(self, *, metadata=(), **spec):
        request = video_service_pb2.GenerateVideoRequest(
            spec=video_pb2.VideoSpec(**{"prompt": "a ball", **spec})
        )
        call = self.videos.GenerateVideo(request, metadata=(*self.metadata, *metadata))
        async with asyncio.timeout(DEADLINE_S):
            return [response.event async for response in call]

    async def until_exit(self):
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), DEADLINE_S)


def write_config(folder: Path, control: FakeControl, issuer: TokenIssuer, **changes) -> Path:
    values = {
        "region": "ap",
        "gateway_id": "ap-gateway-0",
        "state_dir": str(folder / "state"),
        "ready_file": str(folder / "ready.json"),
        "control_plane": {"endpoints": [control.address]},
        "jobs": {"store": "memory"},
        "auth": {
            "issuers": [
                {
                    "issuer": issuer.issuer,
                    "audience": issuer.audience,
                    "jwks_file": str(issuer.write_jwks(folder / "jwks.json")),
                }
            ]
        },
        **changes,
    }
    file = folder / "gateway.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@contextlib.asynccontextmanager
async def run_gateway(folder: Path, control: FakeControl, **changes):
    issuer = TokenIssuer()
    file = write_config(folder, control, issuer, **changes)
    log = folder / "gateway.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(  # noqa: ASYNC220 - starting is quick
            [sys.executable, "-m", "gateway", "--config", str(file)], stderr=sink
        )
    try:
        ready = folder / "ready.json"
        async with asyncio.timeout(DEADLINE_S):
            while not ready.exists():
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.02)
        told = json.loads(ready.read_text())
        assert told["pid"] == process.pid
        channel = internal_channel(told["grpc"])
        async with channel:
            yield GatewayProcess(process, told["http"], told["grpc"], log, issuer, channel)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
async def mesh(tmp_path):
    node = FakeNode("n0")
    async with serve_node(node), serve_control(FakeControl()) as control:
        await control.tell(node.record())
        async with run_gateway(tmp_path, control) as gateway:
            async with asyncio.timeout(DEADLINE_S), aiohttp.ClientSession() as http:
                while (await http.get(f"{gateway.http}/readyz")).status != 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            yield gateway, node


async def test_a_whole_life_from_start_to_sigterm(mesh):
    gateway, node = mesh
    memory = psutil.Process(gateway.process.pid).memory_info().rss
    assert memory < MAX_IDLE_BYTES, f"{memory >> 20} MiB before the first job"

    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    events = await gateway.generate(
        seed=3, metadata=(("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),)
    )
    assert kinds(events)[0] == "queued"
    assert kinds(events)[-1] == "completed"
    assert data_of(events) == VIDEO
    carried = node.runs[0].metadata["traceparent"]
    assert carried.split("-")[1] == trace
    assert carried.split("-")[2] != "00f067aa0ba902b7"

    async with aiohttp.ClientSession(headers=gateway.headers) as http:
        content = await http.get(f"{gateway.http}/v1/videos/{events[0].video_id}/content")
        assert await content.read() == VIDEO
        metrics = await (await http.get(f"{gateway.http}/metrics")).text()
    assert 'reelmesh_gateway_jobs_ended_total{cause="",state="completed"} 1.0' in metrics
    assert 'reelmesh_gateway_requests_total{code="OK"' in metrics

    gateway.process.send_signal(signal.SIGTERM)
    assert await gateway.until_exit() == 0
    # The log tells of the job, and neither of its prompt nor of the token.
    log = gateway.log.read_text()
    assert events[0].video_id in log
    assert "a ball" not in log
    assert "eyJ" not in log
    assert "Traceback" not in log


async def test_sigterm_lets_the_running_video_end(mesh):
    gateway, node = mesh
    node.default = fakenode.held(before=1)
    health = health_pb2_grpc.HealthStub(gateway.channel)
    watching = asyncio.ensure_future(gateway.generate())
    run = await node.run_at(0)
    gateway.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(DEADLINE_S):
        # Readiness fails first; the stream in hand goes on.
        while True:
            answer = await health.Check(health_pb2.HealthCheckRequest())
            if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
            await asyncio.sleep(0.02)
    run.go.set()
    events = await watching
    assert kinds(events)[-1] == "completed"
    assert data_of(events) == VIDEO
    assert await gateway.until_exit() == 0


async def test_a_second_signal_forces_the_exit(mesh):
    gateway, node = mesh
    node.default = fakenode.held()
    watching = asyncio.ensure_future(gateway.generate())
    await node.run_at(0)
    gateway.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(DEADLINE_S):
        while "stopping" not in gateway.log.read_text():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    gateway.process.send_signal(signal.SIGTERM)
    assert await gateway.until_exit() not in (0, 1)
    with contextlib.suppress(aio.AioRpcError):
        await watching


async def test_it_starts_and_answers_without_a_control_plane(tmp_path):
    control = FakeControl()
    control.address = "127.0.0.1:1"
    async with run_gateway(tmp_path, control) as gateway, aiohttp.ClientSession() as http:
        assert (await http.get(f"{gateway.http}/healthz")).status == 200
        ready = await http.get(f"{gateway.http}/readyz")
        assert ready.status == 503
        assert "control plane" in await ready.text()
        refused = await http.post(
            f"{gateway.http}/v1/videos", json={"prompt": "a ball"}, headers=gateway.headers
        )
        assert refused.status == 503
        assert refused.headers["Retry-After"]


def check(*arguments, **environ):
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )


def test_the_configuration_is_checked_and_shown(tmp_path):
    control = FakeControl()
    control.address = "127.0.0.1:1"
    file = write_config(tmp_path, control, TokenIssuer())
    shown = check("--config", file, "--check-config", REELMESH_GATEWAY__RUNS__MAX_TRIES="7")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["runs"]["max_tries"] == 7


def test_every_mistake_in_the_configuration_is_told_at_once(tmp_path):
    control = FakeControl()
    control.address = "127.0.0.1:1"
    file = write_config(tmp_path, control, TokenIssuer(), region="AP!", typo=1, drain_s=-1)
    shown = check("--config", file)
    assert shown.returncode == 2
    for field in ("region", "typo", "drain_s"):
        assert f"{field}:" in shown.stderr
    assert "Traceback" not in shown.stderr


def refused(tmp_path, **changes) -> str:
    """What a gateway says that cannot start with this configuration."""
    control = FakeControl()
    control.address = "127.0.0.1:1"
    file = write_config(tmp_path, control, TokenIssuer(), **changes)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2, done.stderr
    # gRPC writes a line of its own about a port.
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("{")]
    return json.loads(line)["reason"]


def test_what_cannot_be_used_at_the_start_is_told_in_one_line(tmp_path):
    log = {"format": "json"}
    issuer = {"issuer": "x", "audience": "y", "jwks_file": "/none/jwks.json"}
    assert "jwks_file /none/jwks.json: cannot be read" in refused(
        tmp_path, auth={"issuers": [issuer]}, log=log
    )
    assert refused(tmp_path, artifacts={"url": "/dev/null/videos"}, log=log).startswith(
        "artifacts.url"
    )
    assert refused(tmp_path, spool={"directory": "/dev/null/spool"}, log=log).startswith(
        "spool.directory /dev/null/spool:"
    )
    assert refused(tmp_path, ready_file="/none/ready.json", log=log).startswith("ready_file")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for edge in ("http", "grpc"):
            said = refused(tmp_path, **{edge: {"listen": address}}, log=log)
            assert said.startswith(f"{edge}.listen: cannot listen on {address}")
