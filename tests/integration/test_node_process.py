"""The agent as a process of its own, with the engine's real worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from reelmesh.v1 import node_pb2, video_pb2
from reelmesh.v1.node_service_pb2 import RunRequest, WatchStatusRequest
from reelmesh.v1.node_service_pb2_grpc import NodeServiceStub

from node_agent.model_folder import open_model_folder
from reelkit.rpc import internal_channel

DEADLINE_S = 90.0
MAX_AGENT_BYTES = 120 * 1024 * 1024


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


async def all_gone(family: list[psutil.Process]) -> None:
    """Zombies count as gone: whoever is init here reaps them."""

    def living() -> list[psutil.Process]:
        alive = []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive

    await until(lambda: not living(), what="the agent's children to leave", within_s=30)


async def test_one_agent_from_start_to_sigterm(tmp_path, random_model_dir):
    """Runs, survives its worker's death, stays small, and leaves nothing behind."""
    async with agent_process(tmp_path, random_model_dir) as agent:
        status = await agent.until_ready()
        worker_pid = status.workers[0].pid
        family = agent.family()
        assert worker_pid in {process.pid for process in family}
        completed = (await agent.last_event(agent.request("a"))).completed
        assert completed.size_bytes > 0

        rss_bytes = psutil.Process(agent.process.pid).memory_info().rss
        assert rss_bytes < MAX_AGENT_BYTES, f"{rss_bytes / 2**20:.0f} MiB"

        os.kill(worker_pid, signal.SIGKILL)
        await agent.until(
            lambda s: s.state == node_pb2.NODE_STATE_READY and s.workers[0].pid != worker_pid
        )
        again = (await agent.last_event(agent.request("b"))).completed
        assert again.sha256 == completed.sha256, "same seed, same bytes, another process"

        family = agent.family()
        agent.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.process.wait, DEADLINE_S) == 0
        await all_gone(family)
        assert "Traceback" not in agent.log.read_text()


async def test_a_dead_fork_server_is_replaced_and_a_killed_agent_takes_all_along(
    tmp_path, random_model_dir
):
    async with agent_process(tmp_path, random_model_dir) as agent:
        before = (await agent.until_ready()).workers[0].pid
        fork_server = psutil.Process(before).parent()
        assert fork_server.pid != agent.process.pid
        fork_server.kill()
        status = await agent.until(
            lambda s: s.state == node_pb2.NODE_STATE_READY and s.workers[0].pid != before
        )
        family = agent.family()
        assert status.workers[0].pid in {process.pid for process in family}
        agent.process.kill()
        agent.process.wait(DEADLINE_S)
        await all_gone(family)


async def test_sigterm_while_the_engine_is_still_imported_is_obeyed(tmp_path, random_model_dir):
    async with agent_process(tmp_path, random_model_dir) as agent:
        family = agent.family()
        began_s = time.monotonic()
        agent.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(agent.process.wait, DEADLINE_S) == 0
        await all_gone(family)
        assert time.monotonic() - began_s < 5, "it did not wait for torch"


def test_the_agent_imports_no_torch():
    """Everything that the agent process imports, in a fresh interpreter."""
    script = (
        "import sys, node_agent.__main__, node_agent.app, node_agent.engine.spawn\n"
        "import grpc_reflection.v1alpha.reflection\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'av', 'obstore'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--check-config", "--set", "workers.threads=3"], 0, "threads: 3"),
        (["--set", "workers.threads=-1"], 2, "workers.threads"),
        (["--set", "nonsense"], 2, "nonsense"),
    ],
)
def test_the_command_line(tmp_path, arguments, code, said):
    file = tmp_path / "node.yaml"
    file.write_text("node_id: a\nregion: ap\nmodel: {source: x}\n")
    done = subprocess.run(
        [sys.executable, "-m", "node_agent", "--config", str(file), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
