"""A local mesh from its options to its end: the composition of this package."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from reelkit.clock import Clock, SystemClock
from reelmesh_cli.errors import UsageError
from reelmesh_cli.mesh.certificates import issue, open_authorities
from reelmesh_cli.mesh.keys import write_keys
from reelmesh_cli.mesh.live_board import LiveBoard
from reelmesh_cli.mesh.model import (
    check_manifest,
    make_random_model,
    named_manifest,
    named_model,
    shipped_model,
)
from reelmesh_cli.mesh.parts import plan_mesh
from reelmesh_cli.mesh.ports import free_ports
from reelmesh_cli.mesh.programs import find_programs
from reelmesh_cli.mesh.state_dir import hold_state_dir
from reelmesh_cli.mesh.supervisor import Mesh, Supervision, run_mesh
from reelmesh_cli.mesh.topology import MeshOptions, check_etcd, check_options


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalMesh:
    """What ``reelmesh up`` was asked for."""

    regions: str
    nodes_per_region: int
    state_dir: Path
    model: str | None
    manifest: Path | None
    threads: int
    restart: bool
    start_timeout_s: float
    gateways_per_region: int = 1
    control_planes_per_region: int = 1
    etcd: str = "shared"
    etcd_members: str = ""
    tls: bool = False


@contextlib.asynccontextmanager
async def local_mesh(
    asked: LocalMesh, *, board: LiveBoard, on_made: Callable[[Mesh], None]
) -> AsyncIterator[Mesh]:
    """A mesh that serves inside the block; nothing of it is left after the block.

    Args:
        asked: What to run.
        board: Where progress is told.
        on_made: Called before the first process is started, so that a signal's handler
            can kill what there is.

    Raises:
        CommandError: It cannot be had; says what to do.
    """
    clock: Clock = SystemClock()
    regions = check_options(
        asked.regions,
        asked.nodes_per_region,
        gateways_per_region=asked.gateways_per_region,
        control_planes_per_region=asked.control_planes_per_region,
    )
    members = check_etcd(asked.etcd, asked.etcd_members, regions=regions)
    programs = find_programs()
    named = await _named(asked)
    with hold_state_dir(asked.state_dir) as folder:
        options = MeshOptions(
            regions=regions,
            nodes_per_region=asked.nodes_per_region,
            gateways_per_region=asked.gateways_per_region,
            control_planes_per_region=asked.control_planes_per_region,
            etcd="separate" if asked.etcd == "separate" else "shared",
            etcd_members=members,
            state_dir=folder,
            model_source=named[0] if named else await _model_without_a_name(folder, board),
            model_manifest=named[1] if named else None,
            tls=asked.tls,
            threads=asked.threads or _fair_threads(len(regions) * asked.nodes_per_region),
        )
        now = dt.datetime.fromtimestamp(clock.wall(), tz=dt.UTC)
        tokens = write_keys(folder / "keys", now=now)
        with free_ports() as ports:
            plan = plan_mesh(options, ports=ports, programs=programs)
        open_authorities(plan.certificates, now=now)
        issue(plan.certificates, now=now)
        board.expect(plan.processes)
        supervision = Supervision(restart=asked.restart, start_timeout_s=asked.start_timeout_s)
        async with run_mesh(
            plan,
            tokens=tokens,
            supervision=supervision,
            board=board,
            clock=clock,
            on_made=on_made,
        ) as mesh:
            yield mesh


def _fair_threads(workers: int) -> int:
    """Each worker's share of the cores: more threads than cores spin and starve each other."""
    return max(1, (os.cpu_count() or 1) // workers)


async def _named(asked: LocalMesh) -> tuple[str, str | None] | None:
    """The nodes' ``model.source`` and ``model.manifest``, where a model is named."""
    if asked.model is None:
        if asked.manifest is not None:
            raise UsageError("--manifest goes with --model", hint="name the model's weights too")
        return None
    source = named_model(asked.model, has_manifest=asked.manifest is not None)
    if asked.manifest is None:
        return source, None
    manifest = named_manifest(asked.manifest)
    await check_manifest(manifest)
    return source, str(manifest)


async def _model_without_a_name(folder: Path, board: LiveBoard) -> str:
    shipped = shipped_model()
    if shipped is not None:
        return str(shipped)
    random = folder / "models" / "random"
    if not random.exists():
        board.warn(
            "no demo model is installed: making a small one of random weights; it draws noise"
        )
    return str(await make_random_model(random))
