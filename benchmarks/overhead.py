"""What the whole mesh adds to the bare pipeline, and what its overlap gains.

``python -m benchmarks.overhead [--repeat 40] [--backlog 40] [--rounds 3] [--model DIR]``

The bare loop (benchmarks/bare.py: stock WanPipeline, then PyAV with the same settings, in
one process) and a mesh of one region and one node run the same requests with the same
model, threads and seeds. Single requests take turns: bare, gRPC, HTTP, bare, ...; the
backlog is timed whole, mesh and bare in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
from grpc import aio
from reelmesh.v1 import video_pb2, video_service_pb2, video_service_pb2_grpc

from benchmarks.bare import BareLoop, Request
from benchmarks.support.table import Spread, print_table

START_TIMEOUT_S = 180.0
REQUEST_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Mesh:
    """Where the running mesh is."""

    grpc: str
    http: str
    token: str


@contextlib.contextmanager
def running_mesh(folder: Path, *, model: Path, threads: int) -> Iterator[Mesh]:
    """``reelmesh up`` with one region and one node, stopped when the block is left."""
    command = [sys.executable, "-m", "reelmesh_cli", "up", "--regions", "bench"]
    command += ["--nodes-per-region", "1", "--threads", str(threads)]
    command += ["--model", str(model), "--state-dir", str(folder)]
    # The same is asked for again and again, and is to be drawn each time.
    environment = {**os.environ, "REELMESH_GATEWAY__CACHE__ENABLED": "false"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        mesh_file = folder / "mesh.json"
        while not mesh_file.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the mesh did not start; its logs are in " + str(folder / "logs"))
            time.sleep(0.1)
        mesh = json.loads(mesh_file.read_text())
        region = mesh["regions"]["bench"]
        yield Mesh(region["grpc"], region["http"], mesh["tokens"]["user"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class MeshClient:
    """Sends the bare loop's requests to the mesh, by gRPC and by HTTP."""

    def __init__(self, mesh: Mesh, session: aiohttp.ClientSession, channel: aio.Channel) -> None:
        self._mesh = mesh
        self._session = session
        self._stub = video_service_pb2_grpc.VideoServiceStub(channel)
        self._headers = {"authorization": f"Bearer {mesh.token}"}

    async def by_grpc(self, request: Request) -> bytes:
        """The MP4 by one GenerateVideo stream."""
        spec = video_pb2.VideoSpec(
            prompt=request.prompt,
            width=request.width,
            height=request.height,
            num_frames=request.num_frames,
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            flow_shift=request.flow_shift,
            seed=request.seed,
        )
        video = bytearray()
        async for answer in self._stub.GenerateVideo(
            video_service_pb2.GenerateVideoRequest(spec=spec),
            metadata=tuple(self._headers.items()),
            timeout=REQUEST_TIMEOUT_S,
        ):
            event = answer.event
            match event.WhichOneof("event"):
                case "restarted":
                    video.clear()
                case "chunk":
                    video += event.chunk.data
                case "completed":
                    return bytes(video)
                case "failed" | "cancelled" as ended:
                    raise RuntimeError(f"the video {ended}: {event.failed.message}")
        raise RuntimeError("the stream ended early")

    async def by_http(self, request: Request) -> bytes:
        """The MP4 by create, events and content."""
        body = {
            "prompt": request.prompt,
            "width": request.width,
            "height": request.height,
            "num_frames": request.num_frames,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "flow_shift": request.flow_shift,
            "seed": request.seed,
        }
        base = f"{self._mesh.http}/v1/videos"
        async with self._session.post(base, json=body, headers=self._headers) as answer:
            answer.raise_for_status()
            video_id = (await answer.json())["id"]
        async with self._session.get(f"{base}/{video_id}/events", headers=self._headers) as events:
            events.raise_for_status()
            async for _line in events.content:
                pass
        url = f"{base}/{video_id}/content"
        async with self._session.get(url, headers=self._headers) as content:
            content.raise_for_status()
            return await content.read()


@contextlib.asynccontextmanager
async def connected(mesh: Mesh) -> AsyncIterator[MeshClient]:
    """A client with warm connections."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        aio.insecure_channel(mesh.grpc) as channel,
    ):
        yield MeshClient(mesh, session, channel)


async def single_requests(
    client: MeshClient, loop: BareLoop, request: Request, repeat: int
) -> dict[str, list[float]]:
    """Seconds of whole requests, the three ways in turn; checks that the bytes agree."""
    times: dict[str, list[float]] = {"bare": [], "gRPC": [], "HTTP": []}
    for seed in range(-3, repeat):
        each = replace(request, seed=abs(seed))
        digests = set()
        for way in times:
            began = time.perf_counter()
            if way == "bare":
                video = loop.generate(each)
            else:
                video = await (client.by_grpc if way == "gRPC" else client.by_http)(each)
            elapsed = time.perf_counter() - began
            digests.add(hashlib.sha256(video).hexdigest())
            if seed >= 0:  # before: warm-up
                times[way].append(elapsed)
        if len(digests) != 1:
            raise RuntimeError("the mesh and the bare loop drew different videos")
    return times


async def backlog(
    client: MeshClient, loop: BareLoop, request: Request, *, jobs: int, rounds: int
) -> dict[str, list[float]]:
    """Jobs per second of a backlog, the mesh and the bare loop in turn."""
    rates: dict[str, list[float]] = {"bare": [], "mesh": []}
    requests = [replace(request, seed=seed) for seed in range(jobs)]
    for _ in range(rounds):
        began = time.perf_counter()
        await asyncio.gather(*(client.by_grpc(each) for each in requests))
        rates["mesh"].append(jobs / (time.perf_counter() - began))
        began = time.perf_counter()
        for each in requests:
            loop.generate(each)
        rates["bare"].append(jobs / (time.perf_counter() - began))
    return rates


def report(times: dict[str, list[float]], rates: dict[str, list[float]], jobs: int) -> None:
    """Prints both tables."""
    bare = statistics.median(times["bare"])
    allowed = 0.005 + 0.02 * bare
    rows = []
    for way, samples in times.items():
        added = statistics.median(samples) - bare
        verdict = "-" if way == "bare" else ("met" if added <= allowed else "missed")
        cells = [Spread.of(samples).text(scale=1e3, digits=1), f"{added * 1e3:+.1f}", verdict]
        rows.append([way, *cells])
    print_table(
        f"Whole request, {len(times['bare'])} each way; ms: median [p10 … p90]; "
        f"aim: added at most 5 ms + 2% = {allowed * 1e3:.1f}",
        ["way", "seconds", "added", "aim"],
        rows,
    )
    ratios = [m / b for m, b in zip(rates["mesh"], rates["bare"], strict=True)]
    print_table(
        f"A backlog of {jobs} jobs on one node; jobs per second by round; aim: ratio at least 1.00",
        ["", *(f"round {i + 1}" for i in range(len(ratios))), "median"],
        [
            [name, *(f"{r:.3f}" for r in values), f"{statistics.median(values):.3f}"]
            for name, values in (*rates.items(), ("mesh / bare", ratios))
        ],
    )


async def measure(args: argparse.Namespace, mesh: Mesh, model: Path) -> None:
    """Runs both parts against a running mesh."""
    loop = BareLoop(model, threads=args.threads)
    request = loop.default_request(prompt="a big red ball bouncing", seed=0)
    async with connected(mesh) as client:
        times = await single_requests(client, loop, request, args.repeat)
        rates = await backlog(client, loop, request, jobs=args.backlog, rounds=args.rounds)
    report(times, rates, args.backlog)


def main() -> None:
    """Starts a mesh, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=40)
    parser.add_argument("--backlog", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, help="a model folder; default: random weights")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    with tempfile.TemporaryDirectory(prefix="reelmesh-bench-") as scratch:
        model = args.model
        if model is None:
            model = Path(scratch) / "model"
            command = [sys.executable, "-m", "tools.make_random_model", str(model)]
            subprocess.run(command, check=True)
        with running_mesh(Path(scratch) / "mesh", model=model, threads=args.threads) as mesh:
            asyncio.run(measure(args, mesh, model))


if __name__ == "__main__":
    main()
