"""The control plane as a process, as people and supervisors meet it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from reelkit import rpc
from tests.support.controlplanes import DEADLINE_S, agent, node_hello, watcher
from tests.support.etcd import free_port
from tests.support.stores import eventually, running_etcd

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024


@dataclasses.dataclass
class Replica:
    process: subprocess.Popen[bytes]
    ready_file: Path
    log: Path

    @property
    def address(self) -> str:
        return json.loads(self.ready_file.read_text())["grpc"]


def spawned(log: Path, *args: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "control_plane", *args], cwd=ROOT, stdout=out, stderr=out
        )


@pytest.fixture
async def etcd(tmp_path):
    async with running_etcd(tmp_path) as process:
        yield process


@pytest.fixture
async def start(tmp_path, etcd):
    """Starts replicas; what is left of them at the end is killed."""
    replicas: list[Replica] = []

    async def started(name: str = "r0", *sets: str, wait: bool = True) -> Replica:
        config = tmp_path / f"{name}.yaml"
        ready_file = tmp_path / f"{name}.json"
        config.write_text(
            "listen: 127.0.0.1:0\nregion: ap\nlease_ttl_s: 4\ndrain_s: 1\n"
            f"replica_id: {name}\nready_file: {ready_file}\n"
            f"etcd:\n  endpoints: [{etcd.endpoint}]\n"
        )
        log = tmp_path / f"{name}.log"
        flags = [part for text in sets for part in ("--set", text)]
        process = spawned(log, "--config", str(config), *flags)
        replica = Replica(process, ready_file, log)
        replicas.append(replica)
        if wait:
            await eventually(lambda: ready_file.exists() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
        return replica

    yield started
    for replica in replicas:
        replica.process.kill()
        replica.process.wait()


async def exit_code(replica: Replica) -> int:
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.to_thread(replica.process.wait, DEADLINE_S)


async def test_a_node_outlives_the_death_of_its_replica(start):
    quick = ("lease_ttl_s=2", "fleet.heartbeat_s=0.2")
    a, b = await start("r0", *quick), await start("r1", *quick)
    async with watcher(b.address) as gateway:
        async with agent(a.address) as first:
            lease_id = (await first.attach()).lease_id
            first.keep_reporting()
            await gateway.until(lambda: bool(gateway.nodes))
            version = gateway.version
            a.process.kill()
            await first.until(first.ended.is_set)
        async with agent(b.address, node_hello(lease_id=lease_id)) as second:
            assert (await second.attach()).lease_id == lease_id
            second.keep_reporting()
            # Beyond the lease that the first replica renewed.
            await gateway.heartbeats(15)
            assert gateway.removed == []
            assert gateway.version == version


async def test_it_stops_cleanly_when_asked_and_keeps_the_records(start, etcd):
    replica = await start()
    async with agent(replica.address) as node:
        await node.attach()
        replica.process.send_signal(signal.SIGTERM)
        await node.until(node.ended.is_set)
        assert node.error.code() is grpc.StatusCode.UNAVAILABLE
    assert await exit_code(replica) == 0
    assert "Traceback" not in replica.log.read_text()
    assert "ap-node-0" in etcd.ctl("get", "--prefix", "--keys-only", "/reelmesh/ap/fleet/nodes/")


async def test_a_second_signal_forces_it(start):
    replica = await start("r0", "drain_s=30")
    async with rpc.internal_channel(replica.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        call = health.Watch(health_pb2.HealthCheckRequest())
        await call.read()
        replica.process.send_signal(signal.SIGTERM)
        # A watch of health does not end by itself, so the drain waits for it.
        serving = health_pb2.HealthCheckResponse.SERVING
        while (await call.read()).status == serving:
            pass
        replica.process.send_signal(signal.SIGTERM)
        assert await exit_code(replica) == 70


async def test_it_speaks_health_reflection_and_metrics(start):
    port = free_port()
    replica = await start("r0", f"metrics_listen=127.0.0.1:{port}")
    async with (
        rpc.internal_channel(replica.address) as channel,
        agent(replica.address) as node,
        watcher(replica.address) as gateway,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "reelmesh.v1.ControlPlaneService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await node.attach()
        await gateway.until(lambda: bool(gateway.nodes))

        def fetched() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                return page.read().decode()

        lines = (await asyncio.to_thread(fetched)).splitlines()
        for line in (
            "reelmesh_control_attached_nodes 1.0",
            "reelmesh_control_fleet_watchers 1.0",
            "reelmesh_control_fleet_ready_nodes 1.0",
            "reelmesh_control_store_up 1.0",
        ):
            assert line in lines
        assert any(line.startswith("process_resident_memory_bytes") for line in lines)

        def services() -> list[str]:
            with grpc.insecure_channel(replica.address) as plain:
                return list(ProtoReflectionDescriptorDatabase(plain).get_services())

        assert "reelmesh.v1.ControlPlaneService" in await asyncio.to_thread(services)


async def test_it_stays_small_with_a_fleet_attached(start):
    """The design grants a control plane 100 MiB; this is 200 nodes and 20 gateways."""
    replica = await start("r0", "lease_ttl_s=60")
    async with contextlib.AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(agent(replica.address, node_hello(f"n{number}")))
            for number in range(200)
        ]
        for start_at in range(0, 200, 50):
            await asyncio.gather(*(node.attach() for node in nodes[start_at : start_at + 50]))
        gateways = [await stack.enter_async_context(watcher(replica.address)) for _ in range(20)]
        for gateway in gateways:
            await gateway.until(lambda gateway=gateway: len(gateway.nodes) == 200)
        rss_bytes = psutil.Process(replica.process.pid).memory_info().rss
    assert rss_bytes < 100 * MIB, f"{rss_bytes / MIB:.0f} MiB"


async def test_a_denied_login_ends_the_process_and_says_why(start, etcd, tmp_path):
    for args in (
        ("user", "add", "root:x"),
        ("user", "grant-role", "root", "root"),
        ("auth", "enable"),
    ):
        etcd.ctl(*args)
    password_file = tmp_path / "password"
    password_file.write_text("wrong")
    replica = await start("r0", "etcd.user=root", f"etcd.password_file={password_file}", wait=False)
    assert await exit_code(replica) == 1
    assert "authentication failed" in replica.log.read_text()


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "control_plane", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_check_config_prints_what_is_in_effect():
    done = run("--check-config", "--set", "region=ap", "--set", "lease_ttl_s=6")
    assert done.returncode == 0
    assert "region: ap\n" in done.stdout
    assert "lease_ttl_s: 6.0\n" in done.stdout


def test_all_mistakes_of_a_configuration_are_told_at_once():
    done = run(
        "--check-config",
        "--set",
        "lease_ttl_s=1",
        "--set",
        "etcd.endpoints=[x]",
        "--set",
        "rigion=ap",
    )
    assert done.returncode == 2
    for field in ("region", "rigion", "lease_ttl_s", "etcd"):
        assert f"\n{field}: " in "\n" + done.stderr


def test_a_port_that_is_taken_is_named(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for field in ("listen", "metrics_listen"):
            done = run("--set", "region=ap", "--set", f"{field}={address}")
            assert done.returncode == 2
            assert f"{field}" in done.stderr
            assert address in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "etcd",
    [
        "{endpoints: ['https://h:1'], ca: /none/x}",
        "{endpoints: ['https://h:1'], cert: /none/x, key: /none/y}",
        "{user: u, password_file: /none/x}",
    ],
)
def test_a_file_of_the_configuration_that_is_not_there_is_named(etcd):
    done = run("--set", "region=ap", "--set", f"etcd={etcd}")
    assert done.returncode == 2
    assert "No such file" in done.stderr
    assert "reason='etcd." in done.stderr
    assert "Traceback" not in done.stderr
