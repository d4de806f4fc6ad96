"""A gateway's application over real node agents with fake workers, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelmesh.v1 import control_plane_service_pb2, node_pb2

from tests.support.fakeworker import FakeLauncher, Script
from tests.support.gateways import DEADLINE_S, Gateway, open_gateway
from tests.support.nodes import Node, node_config, running_node

__all__ = ["DEADLINE_S", "NodeRegion", "node_region", "record_of"]


@dataclass
class NodeRegion:
    """The gateway and its nodes."""

    gateway: Gateway
    nodes: list[Node]


def record_of(node: Node) -> control_plane_service_pb2.NodeRecord:
    """What a control plane would know of the node."""
    status = node.app.board.current
    return control_plane_service_pb2.NodeRecord(
        node_id=status.node_id,
        region="ap",
        address=node.app.address,
        incarnation=status.incarnation,
        state=status.state,
        models=status.models,
        worker_count=len(status.workers),
        units_per_second=status.units_per_second,
    )


@contextlib.asynccontextmanager
async def node_region(
    tmp_path: Path, count: int = 2, *, script: Script | None = None, **gateway_changes: Any
) -> AsyncIterator[NodeRegion]:
    """Nodes ``ap-node-0`` and on, ready and known to a gateway."""
    async with contextlib.AsyncExitStack() as stack:
        nodes: list[Node] = []
        for index in range(count):
            folder = tmp_path / f"node-{index}"
            folder.mkdir()
            config = node_config(folder, node_id=f"ap-node-{index}")
            launcher = FakeLauncher([script or Script()])
            nodes.append(await stack.enter_async_context(running_node(config, launcher=launcher)))
        for node in nodes:
            await node.until_ready()
        gateway = await stack.enter_async_context(open_gateway(tmp_path, **gateway_changes))
        folder_of_any = nodes[0].app.folder
        assert folder_of_any is not None
        snapshot = control_plane_service_pb2.FleetSnapshot(
            nodes=[record_of(node) for node in nodes], models=[folder_of_any.to_model_info()]
        )
        gateway.core.fleet.replace(snapshot)
        await gateway.until(
            lambda: all(
                (link := gateway.core.fleet.link(node.app.config.node_id)) is not None
                and link.ready
                and link.status is not None
                and link.status.state == node_pb2.NODE_STATE_READY
                for node in nodes
            )
        )
        yield NodeRegion(gateway, nodes)
