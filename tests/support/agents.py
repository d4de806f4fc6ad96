"""A node agent as a process of its own, with the engine's real worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from reelmesh.v1 import node_pb2, video_pb2
from reelmesh.v1.node_service_pb2 import RunRequest, WatchStatusRequest
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub

from node_agent.model_folder import open_model_folder
from reelkit.rpc import internal_channel

DEADLINE_S = 90.0


async def until(condition: Callable[[], Any], *, what: str, within_s: float = DEADLINE_S) -> Any:
    """Waits for a state of another process, which sends no event."""
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"gave up waiting for {what}"
        await asyncio.sleep(0.05)
    return value


@dataclass
class AgentProcess:
    process: subprocess.Popen[bytes]
    address: str
    log: Path
    model_dir: Path

    def family(self) -> list[psutil.Process]:
        """The agent's descendants: resource tracker, fork server, workers."""
        return psutil.Process(self.process.pid).children(recursive=True)

    async def until(self, holds: Callable[[node_pb2.NodeStatus], bool]) -> node_pb2.NodeStatus:
        async with asyncio.timeout(DEADLINE_S), internal_channel(self.address) as channel:
            async for response in NodeServiceStub(channel).WatchStatus(WatchStatusRequest()):
                if holds(response.status):
                    return response.status
        raise AssertionError("the status stream ended")

    async def until_ready(self) -> node_pb2.NodeStatus:
        return await self.until(lambda s: s.state == node_pb2.NODE_STATE_READY)

    def request(self, job_id: str, **spec: Any) -> RunRequest:
        manifest = open_model_folder(self.model_dir).manifest
        fields = {
            "prompt": "a red ball",
            "model": manifest.name,
            "model_version": manifest.version,
            "width": manifest.sizes[-1].width_px,
            "height": manifest.sizes[-1].height_px,
            "num_frames": 9,
            "fps": manifest.fps,
            "steps": 2,
            "guidance_scale": 3.0,
            "flow_shift": 5.0,
            "seed": 1,
            **spec,
        }
        return RunRequest(
            job_id=job_id,
            epoch=1,
            attempt=1,
            spec=video_pb2.ResolvedSpec(**fields),
            **{"try": 1},
        )

    async def last_event(self, request: RunRequest) -> Any:
        async with asyncio.timeout(DEADLINE_S), internal_channel(self.address) as channel:
            return [r.event async for r in NodeServiceStub(channel).Run(request)][-1]


@contextlib.asynccontextmanager
async def agent_process(tmp_path: Path, model_dir: Path, **changes: Any) -> AsyncIterator[Any]:
    config = {
        "node_id": "ap-node-0",
        "region": "ap",
        "model": {"source": str(model_dir)},
        # Two busy cores and seven neighbours: two seconds may pass without a turn.
        "workers": {"threads": 1, "heartbeat_timeout_s": 20.0, "loading_silence_s": 60.0},
        "ready_file": str(tmp_path / "ready.json"),
        **changes,
    }
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(config))
    log = tmp_path / "node.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "node_agent", "--config", str(tmp_path / "node.yaml")],
            stderr=stderr,
        )
    try:
        ready = tmp_path / "ready.json"
        await until(lambda: ready.exists() or process.poll() is not None, what="the ready file")
        told = json.loads(ready.read_text())
        assert told["pid"] == process.pid
        yield AgentProcess(process, told["grpc"], log, model_dir)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_S)
