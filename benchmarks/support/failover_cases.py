"""The faults that benchmarks/failover.py times, each with the smallest mesh that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.faulty_mesh import FaultyMesh


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a video runs at the moment of the fault."""

    gateway: str
    node: str


Act = Callable[[FaultyMesh, Spot], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of fault."""

    name: str
    do: Act
    undo: Act
    target_s: float | None
    """Bound on the time to the first event of the new attempt; None: nothing restarts."""
    by_sdk: bool = False
    """The client is the SDK with every gateway, not one stream to one gateway."""
    regions: tuple[str, ...] = ("ap",)
    mesh: dict[str, Any] = field(default_factory=dict)


def _nothing(_mesh: FaultyMesh, _spot: Spot) -> None:
    """What was killed is started again by itself."""


def _kill_region(mesh: FaultyMesh, spot: Spot) -> None:
    # The one that draws the video, which need not be the one that was asked.
    region = spot.node.partition("-node-")[0]
    for each in mesh.plan.processes:
        if each.region == region:
            mesh.kill(each.id)


def _kill_control_planes(mesh: FaultyMesh, _spot: Spot) -> None:
    mesh.kill(mesh.ids("control-plane")[0])


TWO_NODES = {"nodes_per_region": 2}

CASES: tuple[Case, ...] = (
    Case(
        "worker killed",
        lambda mesh, spot: _all(mesh.kill(f"{spot.node}/worker-0")),
        _nothing,
        0.25,
        mesh=TWO_NODES,
    ),
    Case(
        "agent killed",
        lambda mesh, spot: _all(mesh.kill(spot.node)),
        _nothing,
        0.25,
        mesh=TWO_NODES,
    ),
    Case(
        "agent stopped",
        lambda mesh, spot: _all(mesh.stop(spot.node)),
        lambda mesh, spot: _all(mesh.go_on(spot.node)),
        3.0,
        mesh=TWO_NODES,
    ),
    Case(
        "worker stopped",
        lambda mesh, spot: _all(mesh.stop(f"{spot.node}/worker-0")),
        _nothing,
        3.0,
        mesh=TWO_NODES,
    ),
    Case(
        "network of a node cut",
        lambda mesh, spot: mesh.hold(spot.node),
        lambda mesh, spot: mesh.heal(spot.node),
        3.0,
        mesh=TWO_NODES,
    ),
    Case(
        "owner gateway killed",
        lambda mesh, spot: _all(mesh.kill(spot.gateway)),
        _nothing,
        0.25,
        by_sdk=True,
        mesh={"gateways_per_region": 2},
    ),
    Case(
        "control plane killed",
        _kill_control_planes,
        _nothing,
        None,
        mesh={"control_planes_per_region": 2},
    ),
    Case(
        "etcd leader killed",
        lambda mesh, _spot: _all(mesh.kill(etcd_leader(mesh))),
        _nothing,
        None,
        mesh={"etcd_members": {"global": 3}},
    ),
    Case(
        "region lost",
        _kill_region,
        _nothing,
        3.0,
        by_sdk=True,
        regions=("ap", "eu"),
        mesh={"etcd": "separate"},
    ),
)


def _all(_done: bool) -> None:
    """What is dead already need not be killed."""


def etcd_leader(mesh: FaultyMesh) -> str:
    """The member that leads its cluster now."""
    from tests.chaos.members import leader

    urls = {f"http://{each.address}": each.id for each in mesh.plan.of_role("etcd")}
    return urls[leader(list(urls))]
