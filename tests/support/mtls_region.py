"""A region whose parts speak mutual TLS: a control plane, real agents, real gateways."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from control_plane.app import ControlPlaneApp
from control_plane.store.memory import MemoryStore
from gateway.app import GatewayApp, build_app
from node_agent.app import NodeApp
from node_agent.app import build_app as build_node
from reelkit.clock import SystemClock
from reelkit.mtls.channels import Channels
from reelkit.mtls.identity import Role
from tests.support.controlplanes import running
from tests.support.fakeworker import FakeLauncher, Script
from tests.support.gateways import DEADLINE_S, gateway_config
from tests.support.mtls import MeshAuthority, mutual, section
from tests.support.nodes import node_config
from tests.support.tokens import TokenIssuer


class MutualRegion:
    """See the module."""

    def __init__(self, tmp_path: Path, stack: contextlib.AsyncExitStack, *, region: str) -> None:
        self.tmp_path = tmp_path
        self.region = region
        self.mesh = MeshAuthority(tmp_path / "certificates")
        self.issuer = TokenIssuer()
        self.control: ControlPlaneApp
        self.files: dict[str, Any] = {}
        self._stack = stack

    async def start_control(self) -> None:
        self.store = await self._stack.enter_async_context(MemoryStore(clock=SystemClock()))
        self.control = await self._stack.enter_async_context(
            running(
                store=self.store,
                mtls=self.own(Role.CONTROL_PLANE, "c0"),
                replica_id="c0",
                reflection=True,
                health={
                    "probe": {"interval_s": 0.5},
                    "canary": {"enabled": True, "idle_s": 1.0, "retry_s": 1.0},
                },
            )
        )

    async def add_node(self, node_id: str, script: Script | None = None, **changes: Any) -> NodeApp:
        folder = self.tmp_path / node_id
        folder.mkdir()
        config = node_config(
            folder,
            node_id=node_id,
            control_planes=[self.control.address],
            **{"mtls": self.own(Role.NODE, node_id), **changes},
        )
        launcher = FakeLauncher([script or Script()])
        return await self._stack.enter_async_context(build_node(config, launcher=launcher))

    async def add_gateway(self, name: str, **changes: Any) -> GatewayApp:
        jwks = self.issuer.write_jwks(self.tmp_path / "jwks.json")
        issuer = {
            "issuer": self.issuer.issuer,
            "audience": self.issuer.audience,
            "jwks_file": str(jwks),
        }
        config = gateway_config(
            self.tmp_path,
            gateway_id=name,
            control_plane={"endpoints": [self.control.address]},
            jobs={"store": "control-plane"},
            artifacts={"url": str(self.tmp_path / "artifacts")},
            auth={"issuers": [issuer]},
            **{"mtls": self.own(Role.GATEWAY, name), **changes},
        )
        return await self._stack.enter_async_context(build_app(config))

    def own(self, role: Role, id_: str) -> dict[str, str]:
        """Files of a new part, as its configuration names them."""
        self.files[id_] = self.mesh.part(self.region, role, id_)
        return section(self.files[id_])

    def channels(self, region: str, role: Role, id_: str) -> Channels:
        """What a part, or somebody with its files, opens channels with."""
        return Channels(mutual(self.mesh.part(region, role, id_)))


@contextlib.asynccontextmanager
async def mutual_region(tmp_path: Path, *, region: str = "ap") -> AsyncIterator[MutualRegion]:
    """A region with its control plane ``c0`` and nothing else yet."""
    async with contextlib.AsyncExitStack() as stack:
        made = MutualRegion(tmp_path, stack, region=region)
        await made.start_control()
        yield made


async def until(condition: Callable[[], object]) -> None:
    """Waits for something in this process to come about."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - of many parts, one wait
            await asyncio.sleep(0.01)
