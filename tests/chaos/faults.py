"""Faults of every kind, drawn from a seed, one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.faulty_mesh import FaultyMesh

# As long as a lease and a half, so that what is stopped is also given up.
LONG_S = 6.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong with one process, or a whole region, for a while."""

    name: str
    target: str
    lasts_s: float
    do: Callable[[FaultyMesh, str], object]
    undo: Callable[[FaultyMesh, str], object] | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.target}" + (f" for {self.lasts_s:.1f} s" if self.undo else "")


def _go_on(mesh: FaultyMesh, target: str) -> None:
    mesh.go_on(target)


def _heal(mesh: FaultyMesh, target: str) -> None:
    mesh.heal(target)


def _all_of(mesh: FaultyMesh, region: str) -> list[str]:
    ids = [each.id for each in mesh.plan.processes if each.region == region]
    return ids + [f"{node}/worker-0" for node in mesh.ids("node-agent", region)]


def _stop_all(mesh: FaultyMesh, region: str) -> None:
    for process_id in _all_of(mesh, region):
        mesh.stop(process_id)


def _all_go_on(mesh: FaultyMesh, region: str) -> None:
    for process_id in _all_of(mesh, region):
        mesh.go_on(process_id)


_KINDS: tuple[tuple[str, tuple[str, ...], Callable[[FaultyMesh, str], object], object], ...] = (
    ("kill", ("worker", "node-agent", "gateway", "control-plane", "etcd"), FaultyMesh.kill, None),
    ("stop", ("worker", "node-agent", "gateway", "control-plane", "etcd"), FaultyMesh.stop, _go_on),
    ("hold the network of", ("node-agent", "gateway", "control-plane"), FaultyMesh.hold, _heal),
    ("reset the network of", ("node-agent", "gateway", "control-plane"), FaultyMesh.cut, _heal),
    (
        "slow the network of",
        ("node-agent", "gateway", "control-plane"),
        lambda mesh, target: mesh.delay(target, 0.3),
        _heal,
    ),
    (
        "lose answers of",
        ("gateway", "control-plane"),
        lambda mesh, target: [link.cut_after(2_000) for link in mesh.links_of(target)],
        _heal,
    ),
    ("stop all of", ("region",), _stop_all, _all_go_on),
)


def schedule(mesh: FaultyMesh, *, rng: random.Random) -> list[Fault]:
    """One fault of every kind on every role, in an order of chance."""
    faults = []
    for name, roles, do, undo in _KINDS:
        for role in roles:
            target = _target(mesh, role, rng)
            lasts_s = rng.choice((rng.uniform(0.5, 2.5), LONG_S)) if undo else 0.0
            faults.append(Fault(name, target, lasts_s, do, undo))  # type: ignore[arg-type]
    rng.shuffle(faults)
    return faults


def _target(mesh: FaultyMesh, role: str, rng: random.Random) -> str:
    if role == "region":
        return rng.choice(mesh.plan.options.regions)
    if role == "worker":
        return f"{rng.choice(mesh.ids('node-agent'))}/worker-0"
    return rng.choice(mesh.ids(role))


async def hurt(mesh: FaultyMesh, fault: Fault) -> None:
    """Does it, waits, and takes it back."""
    fault.do(mesh, fault.target)
    if fault.undo is None:
        return
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        fault.undo(mesh, fault.target)
