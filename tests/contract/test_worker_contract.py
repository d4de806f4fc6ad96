"""What every worker does on the wire: the engine's real one and the scripted fake.

The agent's tests lean on the fake; this suite keeps it true to the real worker.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from reelmesh.v1 import node_pb2, video_pb2, worker_pb2
from reelmesh.v1.worker_pb2 import WorkerCommand, WorkerEvent

from node_agent.engine.settings import WorkerSettings
from node_agent.engine.spawn import start_worker
from node_agent.engine.spawn_shared import start_shared_worker
from node_agent.model_folder import open_model_folder
from node_agent.worker_life import Launcher, WorkerHandle
from node_agent.worker_wire import AsyncWire
from tests.support.fakeworker import FakeLauncher, Script, write_fake_model

DEADLINE_S = 60.0
TERMINAL = {"completed", "failed", "cancelled"}


@dataclass(frozen=True)
class Kind:
    """A kind of worker and the model it loads."""

    launcher: Launcher
    model_dir: Path


@pytest.fixture(scope="module")
def shared_fork_server(tmp_path_factory) -> Iterator[Path]:
    """The socket of a fork server that is there for the whole module."""
    path = tmp_path_factory.mktemp("fork") / "s"
    command = [sys.executable, "-m", "node_agent.engine.fork_server", "--listen", str(path)]
    process = subprocess.Popen(command)
    yield path
    process.terminate()
    assert process.wait(DEADLINE_S) == 0


@pytest.fixture(params=["fake", "real", "shared"])
def kind(request, tmp_path_factory) -> Kind:
    if request.param == "fake":
        launcher = FakeLauncher([Script(step_s=0.01)])
        return Kind(launcher, write_fake_model(tmp_path_factory.mktemp("fake")).path)
    settings = WorkerSettings(region="ap", node_id="ap-node-0", log_format="console")
    if request.param == "shared":
        path = request.getfixturevalue("shared_fork_server")
        return Kind(
            lambda worker_id: start_shared_worker(path, worker_id=worker_id, settings=settings),
            request.getfixturevalue("random_model_dir"),
        )
    return Kind(
        lambda worker_id: start_worker(worker_id=worker_id, settings=settings),
        request.getfixturevalue("random_model_dir"),
    )


class Agent:
    """The agent's end of one worker."""

    def __init__(self, handle: WorkerHandle, wire: AsyncWire, kind: Kind) -> None:
        self.handle = handle
        self.wire = wire
        self.folder = open_model_folder(kind.model_dir)
        self.heartbeats = 0

    async def send(self, **command: object) -> None:
        await self.wire.send(WorkerCommand(**command))

    async def receive(self) -> WorkerEvent | None:
        """The next event that is no heartbeat; None at the end."""
        async with asyncio.timeout(DEADLINE_S):
            while (event := await self.wire.receive()) is not None:
                if not event.HasField("heartbeat"):
                    return event
                self.heartbeats += 1
        return None

    async def load(self) -> tuple[worker_pb2.WorkerLoaded, list[int]]:
        order = worker_pb2.WorkerLoad(model_dir=str(self.folder.path), device="cpu", threads=1)
        await self.send(load=order)
        states: list[int] = []
        while (event := await self.receive()) is not None:
            if event.HasField("state"):
                states.append(event.state.state)
            if event.HasField("loaded"):
                return event.loaded, states
        raise AssertionError(f"the worker left while loading, after {states}")

    def spec(self, **changes: object) -> video_pb2.ResolvedSpec:
        manifest = self.folder.manifest
        fields = {
            "prompt": "a red ball",
            "model": manifest.name,
            "model_version": manifest.version,
            "width": manifest.sizes[-1].width_px,
            "height": manifest.sizes[-1].height_px,
            "num_frames": 9,
            "fps": manifest.fps,
            "steps": 3,
            "guidance_scale": 3.0,
            "flow_shift": 5.0,
            "seed": 5,
            **changes,
        }
        return video_pb2.ResolvedSpec(**fields)

    async def generate(
        self, run_id: str, *, attempt: int = 1, deadline_s: float | None = None, **changes: object
    ) -> None:
        generate = worker_pb2.WorkerGenerate(
            run_id=run_id, attempt=attempt, spec=self.spec(**changes), deadline_s=deadline_s
        )
        await self.send(generate=generate)

    async def cancel(self, run_id: str) -> None:
        await self.send(cancel=worker_pb2.WorkerCancel(run_id=run_id, reason="client"))

    async def follow(self, *run_ids: str, until: int | None = None) -> list[tuple[str, object]]:
        """(run id, event or "device_done") until every run has ended, or so many came."""
        seen: list[tuple[str, object]] = []
        ended: set[str] = set()
        while len(ended) < len(run_ids) and (until is None or len(seen) < until):
            message = await self.receive()
            assert message is not None, f"the worker left after {seen}"
            if message.HasField("device_done"):
                seen.append((message.device_done.run_id, "device_done"))
            elif message.HasField("run"):
                event = message.run.event
                seen.append((message.run.run_id, event))
                if event.WhichOneof("event") in TERMINAL:
                    ended.add(message.run.run_id)
        return seen

    async def until_gone(self) -> int | None:
        while await self.receive() is not None:
            pass
        assert await asyncio.to_thread(self.handle.join, DEADLINE_S)
        return self.handle.exitcode


@pytest.fixture
async def agent(kind) -> AsyncIterator[Agent]:
    handle = await asyncio.to_thread(kind.launcher, "ap-node-0/worker-0")
    wire = await AsyncWire.open(handle.sock)
    yield Agent(handle, wire, kind)
    await wire.close()
    handle.kill()
    assert await asyncio.to_thread(handle.join, DEADLINE_S)


def events_of(seen: list, run_id: str) -> list:
    return [event for owner, event in seen if owner == run_id and event != "device_done"]


def kinds_of(events: list) -> list[str]:
    return [event.WhichOneof("event") for event in events]


async def test_it_says_how_loading_goes_and_what_it_loaded(agent):
    loaded, states = await agent.load()
    wanted = [node_pb2.WORKER_STATE_LOADING, node_pb2.WORKER_STATE_WARMING]
    assert [state for state in states if state in wanted] == wanted
    assert loaded.model == agent.folder.to_model_info()
    assert loaded.units_per_second > 0


async def test_a_run_is_numbered_without_gaps_and_its_bytes_add_up(agent):
    await agent.load()
    await agent.generate("r1", attempt=7)
    events = events_of(await agent.follow("r1"), "r1")
    assert [event.n for event in events] == list(range(1, len(events) + 1))
    assert {event.attempt for event in events} == {7}
    kinds = kinds_of(events)
    assert kinds[0] == "started"
    assert kinds[-1] == "completed"
    steps = [
        event.progress.step
        for event in events
        if event.HasField("progress") and event.progress.stage == video_pb2.STAGE_DENOISE
    ]
    assert steps == [1, 2, 3]
    video = b""
    for event in events:
        if event.HasField("chunk"):
            assert event.chunk.offset == len(video)
            assert event.chunk.attempt == 7
            video += event.chunk.data
    completed = events[-1].completed
    assert completed.sha256 == hashlib.sha256(video).hexdigest()
    assert completed.size_bytes == len(video) > 0
    assert (completed.num_frames, completed.seed, completed.attempt) == (9, 5, 7)


async def test_the_device_is_free_no_later_than_the_run_ends_and_the_next_one_follows(agent):
    await agent.load()
    await agent.generate("r1")
    await agent.generate("r2")
    seen = await agent.follow("r1", "r2")
    order = [(run_id, e if e == "device_done" else e.WhichOneof("event")) for run_id, e in seen]
    assert order.index(("r1", "device_done")) < order.index(("r2", "started"))
    assert order.index(("r1", "completed")) < order.index(("r2", "completed"))


async def test_a_running_run_stops_within_a_step_and_the_worker_goes_on(agent):
    await agent.load()
    await agent.generate("r1", steps=50)
    await agent.follow("r1", until=3)
    await agent.cancel("r1")
    events = events_of(await agent.follow("r1"), "r1")
    assert events[-1].cancelled.reason == "client"
    assert "chunk" not in kinds_of(events)
    await agent.generate("r2")
    assert kinds_of(events_of(await agent.follow("r2"), "r2"))[-1] == "completed"


async def test_waiting_runs_can_be_cancelled_again_and_again(agent):
    await agent.load()
    await agent.generate("long", steps=50)
    for index in range(6):
        await agent.generate(f"w{index}")
        await agent.cancel(f"w{index}")
    names = [f"w{index}" for index in range(6)]
    seen = await agent.follow(*names)
    for name in names:
        assert kinds_of(events_of(seen, name)) == ["cancelled"]
    await agent.generate("last")
    await agent.cancel("long")
    seen = await agent.follow("long", "last")
    assert kinds_of(events_of(seen, "last"))[-1] == "completed"


async def test_a_deadline_stops_the_running_and_drops_the_waiting_without_its_agent(agent):
    await agent.load()
    await agent.generate("running", steps=50, deadline_s=0.1)
    await agent.generate("waiting", deadline_s=0.05)
    await agent.generate("after")
    seen = await agent.follow("running", "waiting", "after")
    assert events_of(seen, "running")[-1].cancelled.reason == "deadline"
    assert "completed" not in kinds_of(events_of(seen, "running"))
    (only,) = events_of(seen, "waiting")
    assert only.cancelled.reason == "deadline"
    assert kinds_of(events_of(seen, "after"))[-1] == "completed"


async def test_cancelling_what_it_does_not_have_changes_nothing(agent):
    await agent.load()
    await agent.cancel("nobody")
    await agent.generate("r1")
    assert kinds_of(events_of(await agent.follow("r1"), "r1"))[-1] == "completed"


async def test_its_heart_beats_while_it_works(agent):
    await agent.load()
    agent.heartbeats = 0
    async with asyncio.timeout(DEADLINE_S):
        while agent.heartbeats < 2:
            event = await agent.wire.receive()
            assert event is not None
            agent.heartbeats += event.HasField("heartbeat")


async def test_a_killed_worker_is_gone_from_the_wire_and_by_its_exit_code(agent):
    await agent.load()
    await agent.generate("r1", steps=50)
    await agent.follow("r1", until=2)
    os.kill(agent.handle.pid, signal.SIGKILL)
    assert await agent.until_gone() == -signal.SIGKILL


async def test_it_leaves_when_told(agent):
    await agent.load()
    await agent.send(shutdown=worker_pb2.WorkerShutdown())
    assert await agent.until_gone() == 0


async def test_it_leaves_when_its_agent_does(agent):
    await agent.load()
    await agent.wire.close()
    assert await asyncio.to_thread(agent.handle.join, DEADLINE_S)


async def test_a_model_that_cannot_be_loaded_is_fatal_and_said(agent, tmp_path):
    order = worker_pb2.WorkerLoad(model_dir=str(tmp_path / "nowhere"), device="cpu", threads=1)
    await agent.send(load=order)
    fatal = None
    while (event := await agent.receive()) is not None:
        if event.HasField("fatal"):
            fatal = event.fatal
    assert fatal is not None
    assert fatal.code
    assert await asyncio.to_thread(agent.handle.join, DEADLINE_S)
    assert agent.handle.exitcode == 1
