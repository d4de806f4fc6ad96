"""A whole mesh as real processes with a fault proxy in front of every one of them.

Each process is reached by the others through proxies alone, one for each pair of a
client and a server where that matters, so that a link or a whole process can be cut,
held and delayed. Processes that die are started again, as ``reelmesh up --restart`` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import signal
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reelkit.clock import SystemClock
from reelmesh_cli.mesh.board import SilentBoard
from reelmesh_cli.mesh.keys import Tokens, write_keys
from reelmesh_cli.mesh.parts import plan_mesh
from reelmesh_cli.mesh.ports import free_ports
from reelmesh_cli.mesh.programs import find_programs
from reelmesh_cli.mesh.supervisor import Mesh, Supervision, run_mesh
from reelmesh_cli.mesh.topology import MeshOptions, MeshPlan, ProcessPlan
from tests.support.faultproxy import FaultProxy

START_TIMEOUT_S = 180.0


@dataclass
class FaultyMesh:
    """A mesh that serves, and every way to hurt it."""

    mesh: Mesh
    plan: MeshPlan
    tokens: Tokens
    links: dict[tuple[str, str], FaultProxy] = field(default_factory=dict)
    """By client and server; the client "" stands for everybody else."""

    # --- where things are ---

    def ids(self, role: str, region: str | None = None) -> list[str]:
        """The processes of a role, of one region or of all."""
        return [
            each.id
            for each in self.plan.processes
            if each.role == role and (region is None or each.region == region)
        ]

    def endpoints(self, *regions: str) -> list[str]:
        """The gateways as a client names them, through their proxies."""
        return [
            f"{each.region}={self.links['', each.id].address}"
            for each in self.plan.processes
            if each.role == "gateway" and (not regions or each.region in regions)
        ]

    def grpc(self, gateway_id: str) -> str:
        """Where clients reach a gateway."""
        return self.links["", gateway_id].address

    def log_of(self, process_id: str) -> Path:
        """A process's log."""
        return self.plan.options.state_dir / "logs" / f"{process_id}.log"

    def said(self, *, chars: int = 1500) -> str:
        """The end of each log."""
        logs = sorted((self.plan.options.state_dir / "logs").glob("*.log"))
        return "\n".join(f"--- {f.name}\n{f.read_text(errors='replace')[-chars:]}" for f in logs)

    # --- processes ---

    def kill(self, process_id: str) -> bool:
        """SIGKILL; False where it does not live now."""
        return self._signal(process_id, signal.SIGKILL)

    def stop(self, process_id: str) -> bool:
        """SIGSTOP."""
        return self._signal(process_id, signal.SIGSTOP)

    def go_on(self, process_id: str) -> bool:
        """SIGCONT."""
        return self._signal(process_id, signal.SIGCONT)

    def _signal(self, process_id: str, signum: signal.Signals) -> bool:
        pid = self.mesh.pid_of(process_id)
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
            return True
        return False

    # --- links ---

    def links_of(self, process_id: str) -> list[FaultProxy]:
        """Every link from and to a process."""
        return [proxy for pair, proxy in self.links.items() if process_id in pair]

    def hold(self, process_id: str) -> None:
        """Nothing reaches it or comes from it any more, and nobody is told: a dead network."""
        for proxy in self.links_of(process_id):
            proxy.hold()

    def cut(self, process_id: str, *, refuse: bool = True) -> None:
        """Its connections are reset, and new ones too until it is healed."""
        for proxy in self.links_of(process_id):
            proxy.cut(refuse=refuse)

    def delay(self, process_id: str, seconds: float) -> None:
        """Everything from and to it takes that much longer."""
        for proxy in self.links_of(process_id):
            proxy.delay(seconds)

    def heal(self, process_id: str) -> None:
        """Its links are sound again; connections that hung break, so that none waits for ever."""
        for proxy in self.links_of(process_id):
            proxy.heal()

    def heal_all(self) -> None:
        """Everything goes on, and every link is sound."""
        for proxy in self.links.values():
            proxy.heal()
        for each in self.plan.processes:
            self.go_on(each.id)
            if each.role == "node-agent":
                self.go_on(f"{each.id}/worker-0")


@contextlib.asynccontextmanager
async def faulty_mesh(
    state_dir: Path,
    *,
    model: Path,
    regions: Iterable[str] = ("ap",),
    settings: dict[str, dict[str, Any]] | None = None,
    restart: bool = True,
    **options: Any,
) -> AsyncIterator[FaultyMesh]:
    """A mesh of real processes that serves inside the block.

    Args:
        state_dir: An empty folder.
        model: The weights' folder.
        regions: Their names.
        settings: Changes of the processes' settings by role, merged section by section.
        restart: Start again what dies.
        **options: Further fields of :class:`MeshOptions`.
    """
    for name in ("logs", "run", "config"):
        (state_dir / name).mkdir(parents=True, exist_ok=True)
    asked = MeshOptions(
        regions=tuple(regions),
        state_dir=state_dir,
        model_source=str(model),
        threads=1,
        **{"nodes_per_region": 1, **options},
    )
    tokens = write_keys(state_dir / "keys", now=dt.datetime.now(dt.UTC))
    with free_ports() as ports:
        plan = plan_mesh(asked, ports=ports, programs=find_programs())
    async with contextlib.AsyncExitStack() as stack:
        links = _Links(stack)
        plan = await _through_proxies(plan, links, settings or {})
        mesh = await stack.enter_async_context(
            run_mesh(
                plan,
                tokens=tokens,
                supervision=Supervision(restart=restart, start_timeout_s=START_TIMEOUT_S),
                board=SilentBoard(),
                clock=SystemClock(),
                on_made=lambda _mesh: None,
            )
        )
        yield FaultyMesh(mesh, plan, tokens, links.proxies)


class _Links:
    """Makes the proxies as they are asked for."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack
        self.proxies: dict[tuple[str, str], FaultProxy] = {}

    async def to(self, server: str, address: str, *, client: str = "") -> str:
        """Where ``client`` finds the server."""
        if (client, server) not in self.proxies:
            proxy = await self._stack.enter_async_context(FaultProxy(address))
            self.proxies[client, server] = proxy
        return self.proxies[client, server].address


async def _through_proxies(
    plan: MeshPlan, links: _Links, settings: dict[str, dict[str, Any]]
) -> MeshPlan:
    by_address = {each.address: each.id for each in plan.processes}
    processes = []
    for each in plan.processes:
        if each.config is None:
            # etcd: its members speak to one another directly.
            processes.append(each)
            continue
        config = each.config
        if each.role == "gateway":
            # The same is asked for again and again, and is to be drawn each time.
            config = {**config, "cache": {"enabled": False}}
        config = _merged(config, settings.get(each.role, {}))
        await _rewire(each, config, by_address, links)
        processes.append(dataclasses.replace(each, config=config))
    return dataclasses.replace(plan, processes=tuple(processes))


async def _rewire(
    plan: ProcessPlan, config: dict[str, Any], by_address: dict[str, str], links: _Links
) -> None:
    async def through(address: str) -> str:
        scheme, separator, bare = address.rpartition("://")
        proxied = await links.to(by_address[bare], bare, client=plan.id)
        return f"{scheme}{separator}{proxied}"

    async def all_through(section: dict[str, Any], name: str) -> None:
        section[name] = [await through(address) for address in section[name]]

    if plan.role == "control-plane":
        await all_through(config["etcd"], "endpoints")
        await all_through(config["global_etcd"], "endpoints")
    elif plan.role == "gateway":
        await all_through(config["control_plane"], "endpoints")
        config["grpc"]["advertise"] = await links.to(plan.id, plan.address)
        if "peer" in config:
            peer = config["peer"]
            proxied = await links.to(f"{plan.id}/peer", peer["listen"])
            peer["advertise"] = proxied
    elif plan.role == "node-agent":
        await all_through(config, "control_planes")
        config["advertise"] = await links.to(plan.id, plan.address)


def _merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {name: dict(v) if isinstance(v, dict) else v for name, v in config.items()}
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, dict) else value
    return merged
