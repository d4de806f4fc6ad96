"""What benchmarks/edge.py measures: one gateway on real parts, the instant node, the peers."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from grpc import aio
from reelmesh.v1 import operator_service_pb2, tenant_pb2
from reelmesh.v1.operator_service_pb2_grpc import OperatorServiceStub

from benchmarks.support import litellm_proxy, peers
from benchmarks.support.site import (
    plan_site,
    start_node,
    start_part,
    start_program,
    until_ready,
)
from reelkit.tokens.ring import KeyRing
from reelmesh_cli.mesh.keys import USER_SCOPES, write_keys
from reelmesh_cli.mesh.ports import free_ports

TENANTS = ("busy", "quiet", "flood")
SETTINGS = {
    # A client on this host may say which address it calls for, as a balancer would.
    "gateway": {"auth": {"strangers": {"trusted_proxies": ["127.0.0.1/32"]}}},
    # The instant node answers no probes.
    "control-plane": {"health": {"probe": {"enabled": False}, "canary": {"enabled": False}}},
}
CALL_S = 10.0


@dataclass(frozen=True)
class EdgeSite:
    """Where everything is."""

    http: str
    grpc: str
    pid: int
    """The gateway's."""
    backend: str
    """OpenAI's API in the instant node's own process."""
    operator: str
    operator_token: str
    tokens: Mapping[str, str]
    """By tenant."""
    artifacts: Path
    litellm: str | None
    litellm_pid: int
    """0 where there is none."""
    nginx: str | None
    missing: Mapping[str, str]
    """Peers that could not be had, and why."""

    async def limit(self, tenant: str, *, per_s: float) -> None:
        """Gives a tenant a rate."""
        policy = tenant_pb2.TenantPolicy(tenant=tenant, requests_per_second=per_s, burst=1)
        async with aio.insecure_channel(self.operator) as channel:
            await OperatorServiceStub(channel).SetTenant(
                operator_service_pb2.SetTenantRequest(tenant=policy),
                metadata=(("authorization", f"Bearer {self.operator_token}"),),
                timeout=CALL_S,
            )


def cores() -> tuple[int, int]:
    """The core of what is measured, and that of its client; -1 where there is only one."""
    able = sorted(os.sched_getaffinity(0))
    return (able[0], able[1]) if len(able) > 1 else (-1, -1)


def pin(pid: int, core: int) -> None:
    """Keeps a process, with all of its threads, on one core."""
    if core >= 0:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {core})


@contextlib.asynccontextmanager
async def start_edge_site(folder: Path, *, wanted: frozenset[str]) -> AsyncIterator[EdgeSite]:
    """Starts the parts, and those peers that are wanted and to be had.

    Args:
        folder: For everything; it exists.
        wanted: Of ``litellm`` and ``nginx``.
    """
    async with contextlib.AsyncExitStack() as stack:
        with free_ports() as ports:
            plan = plan_site(folder, ports, settings=SETTINGS)
            peer_ports = {name: next(ports) for name in ("litellm", "nginx")}
        operator_token = write_keys(folder / "keys", now=dt.datetime.now(dt.UTC)).operator
        children = {}
        for part in plan.of_role("etcd", "control-plane", "gateway"):
            children[part.role] = await start_part(stack, part, folder)
        where = plan.regions["bench"]
        node = await start_node(
            stack,
            folder,
            "benchmarks.support.instant_node",
            "--openai",
            control_plane=where.control_plane,
        )
        await until_ready(where.http)
        gateway_core, _ = cores()
        pin(children["gateway"].pid, gateway_core)
        artifacts = folder / "artifacts" / "bench"
        addresses: dict[str, str] = {}
        pids: dict[str, int] = {}
        missing: dict[str, str] = {}
        for name in sorted(wanted):
            address = f"127.0.0.1:{peer_ports[name]}"
            try:
                argv = _command(name, folder, backend=node["http"], root=artifacts, address=address)
            except litellm_proxy.NotToBeHad as error:
                missing[name] = str(error)
                continue
            child = await start_program(
                stack, folder, name, argv, address=address, within_s=litellm_proxy.START_WITHIN_S
            )
            pin(child.pid, gateway_core)
            addresses[name], pids[name] = address, child.pid
        yield EdgeSite(
            http=where.http.removeprefix("http://"),
            grpc=where.grpc,
            pid=children["gateway"].pid,
            backend=node["http"],
            operator=where.operator,
            operator_token=operator_token,
            tokens=tokens_of(folder / "keys", TENANTS),
            artifacts=artifacts,
            litellm=addresses.get("litellm"),
            litellm_pid=pids.get("litellm", 0),
            nginx=addresses.get("nginx"),
            missing=missing,
        )


def _command(name: str, folder: Path, *, backend: str, root: Path, address: str) -> list[str]:
    port = int(address.rpartition(":")[2])
    if name == "litellm":
        program = litellm_proxy.install()
        return litellm_proxy.command(program, folder, backend=backend, port=port)
    argv = peers.nginx_files_command(folder, root=root, port=port)
    if argv is None:
        raise litellm_proxy.NotToBeHad("not installed; it is in your system's packages")
    return argv


def tokens_of(folder: Path, tenants: tuple[str, ...]) -> dict[str, str]:
    """A token for each tenant, from the site's own issuer."""
    ring = KeyRing.open(folder)
    now_s = time.time()
    claims = {"sub": "bench", "scope": " ".join(USER_SCOPES)}
    return {
        tenant: ring.sign({**claims, "tenant": tenant}, now_s=now_s, ttl_s=7200).token
        for tenant in tenants
    }
