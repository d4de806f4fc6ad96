"""Resident memory of each process of an idle mesh, against its bound.

``python -m benchmarks.memory``

A mesh of one region and one node, idle after one video; the figures are resident set
sizes, shared pages included, so what a container's limit would count at most.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks.bare import BareLoop
from benchmarks.overhead import Mesh, connected, running_mesh
from benchmarks.support.table import print_table

BOUNDS_MIB = {"gateway": 120, "control-plane": 100, "node-agent": 120}


def main() -> None:
    """Starts a mesh, reads, prints."""
    with tempfile.TemporaryDirectory(prefix="reelmesh-bench-") as scratch:
        model, folder = Path(scratch) / "model", Path(scratch) / "mesh"
        command = [sys.executable, "-m", "tools.make_random_model", str(model)]
        subprocess.run(command, check=True)
        with running_mesh(folder, model=model, threads=1) as mesh:
            before = _sizes(folder)
            asyncio.run(_one_video(mesh, model))
            after = _sizes(folder)
    rows = [
        [name, role, f"{size:.0f}", f"{after[name, role]:.0f}", str(BOUNDS_MIB.get(role, "-"))]
        for (name, role), size in before.items()
    ]
    print_table(
        "Resident memory; MiB", ["process", "role", "before a job", "after one", "bound"], rows
    )


async def _one_video(mesh: Mesh, model: Path) -> None:
    request = BareLoop(model, threads=1).default_request()
    async with connected(mesh) as client:
        await client.by_grpc(request)


def _sizes(folder: Path) -> dict[tuple[str, str], float]:
    processes = json.loads((folder / "mesh.json").read_text())["processes"]
    return {
        (each["id"], each["role"]): psutil.Process(each["pid"]).memory_info().rss / 2**20
        for each in processes
    }


if __name__ == "__main__":
    main()
