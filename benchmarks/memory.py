"""Resident memory of each process of an idle mesh, against its bound.

``python -m benchmarks.memory [--floods 3]``

A mesh of one region and one node, idle: before a job, after one video, and after floods.
A flood is 1,200 requests, more than a gateway lets wait, over a few connections at once;
those that were taken are then deleted, and the figure is read when no job is left. The
figures are resident set sizes, shared pages included, so what a container's limit would
count at most. Exits with 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import aiohttp
import psutil

from benchmarks.bare import BareLoop
from benchmarks.overhead import Mesh, connected, running_mesh
from benchmarks.support.table import print_table

BOUNDS_MIB = {"gateway": 120, "control-plane": 100, "node-agent": 120}

FLOOD_REQUESTS = 1200
FLOOD_CONNECTIONS = 8
# The gateway's own bound of waiting jobs refuses the others of a flood.
FLOOD_STATUSES = (200, 429)
IDLE_TIMEOUT_S = 60.0
SETTLE_S = 2.0

Sizes = dict[tuple[str, str], float]


def main() -> None:
    """Starts a mesh, reads, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--floods", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="reelmesh-bench-") as scratch:
        model, folder = Path(scratch) / "model", Path(scratch) / "mesh"
        command = [sys.executable, "-m", "tools.make_random_model", str(model)]
        subprocess.run(command, check=True)
        with running_mesh(folder, model=model, threads=1) as mesh:
            reads = {"before a job": _sizes(folder)}
            asyncio.run(_one_video(mesh, model))
            reads["after one"] = _sizes(folder)
            for flood in range(1, args.floods + 1):
                taken = asyncio.run(_flood(mesh))
                reads[f"flood {flood}"] = _sizes(folder)
                print(f"flood {flood}: {taken} of {FLOOD_REQUESTS} requests taken, then deleted")
    _report(reads)


def _report(reads: dict[str, Sizes]) -> None:
    rows, missed = [], []
    for name, role in reads["before a job"]:
        sizes = [read[name, role] for read in reads.values()]
        bound = BOUNDS_MIB.get(role)
        if bound is not None and max(sizes) > bound:
            missed.append(name)
        cells = [f"{size:.0f}" for size in sizes]
        rows.append([name, role, *cells, "-" if bound is None else str(bound)])
    print_table("Resident memory; MiB", ["process", "role", *reads, "bound"], rows)
    if missed:
        sys.exit(f"bounds missed: {', '.join(missed)}")


async def _flood(mesh: Mesh) -> int:
    """Sends a flood, deletes what was taken and waits for no job to be left; how many were."""
    numbers = iter(range(FLOOD_REQUESTS))
    taken: list[str] = []
    url = f"{mesh.http}/v1/videos"

    async def send(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            body = {"prompt": f"flood {number}", "num_inference_steps": 1}
            async with session.post(url, json=body) as answer:
                if answer.status not in FLOOD_STATUSES:
                    sys.exit(f"a flood's request was answered {answer.status}")
                if answer.status == 200:
                    taken.append((await answer.json())["id"])

    headers = {"authorization": f"Bearer {mesh.token}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        await asyncio.gather(*(send(session) for _ in range(FLOOD_CONNECTIONS)))
        for video_id in taken:
            async with session.delete(f"{url}/{video_id}") as answer:
                answer.raise_for_status()
        async with asyncio.timeout(IDLE_TIMEOUT_S):
            while await _live(session, mesh):  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLE_S)
    return len(taken)


async def _live(session: aiohttp.ClientSession, mesh: Mesh) -> float:
    async with session.get(f"{mesh.http}/metrics") as answer:
        for line in (await answer.text()).splitlines():
            if line.startswith("reelmesh_gateway_jobs_live "):
                return float(line.split()[1])
    sys.exit("the gateway shows no jobs_live")


async def _one_video(mesh: Mesh, model: Path) -> None:
    request = BareLoop(model, threads=1).default_request()
    async with connected(mesh) as client:
        await client.by_grpc(request)


def _sizes(folder: Path) -> Sizes:
    processes = json.loads((folder / "mesh.json").read_text())["processes"]
    return {
        (each["id"], each["role"]): psutil.Process(each["pid"]).memory_info().rss / 2**20
        for each in processes
    }


if __name__ == "__main__":
    main()
