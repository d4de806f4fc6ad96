"""Real worker processes, spoken to as the agent speaks to them."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from reelmesh.v1 import node_pb2, worker_pb2

from node_agent.engine.settings import WorkerSettings
from node_agent.engine.spawn import WorkerProcess, start_worker
from node_agent.model_folder import open_model_folder
from node_agent.worker_wire import AsyncWire, SyncWire, WireError, socket_pair, to_frame
from tests.support.engine import TERMINAL, resolved, wait_until

SETTINGS = WorkerSettings(region="ap", node_id="ap-node-0", log_format="console")
DEADLINE_S = 60.0


class Agent:
    """The agent's end of one worker."""

    def __init__(self, process: WorkerProcess, wire: AsyncWire) -> None:
        self.process = process
        self.wire = wire

    async def send(self, **command) -> None:
        await self.wire.send(worker_pb2.WorkerCommand(**command))

    async def load(self, model_dir: Path, **changes) -> None:
        fields = {"model_dir": str(model_dir), "device": "cpu", "threads": 1}
        await self.send(load=worker_pb2.WorkerLoad(**{**fields, **changes}))

    async def generate(self, run_id: str, *, traceparent: str = "", **changes) -> None:
        generate = worker_pb2.WorkerGenerate(
            run_id=run_id, attempt=1, spec=resolved(**changes), traceparent=traceparent
        )
        await self.send(generate=generate)

    async def cancel(self, run_id: str) -> None:
        await self.send(cancel=worker_pb2.WorkerCancel(run_id=run_id, reason="client"))

    async def next(self, *kinds: str) -> worker_pb2.WorkerEvent:
        """The next event of a kind; others are passed over."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                event = await self.wire.receive()
                assert event is not None, f"the worker left before {kinds}"
                if event.WhichOneof("event") in kinds:
                    return event

    async def next_of_run(self, run_id: str, *kinds: str):
        while True:
            event = (await self.next("run")).run
            kind = event.event.WhichOneof("event")
            if event.run_id == run_id and kind in kinds:
                return event.event
            assert event.run_id != run_id or kind not in TERMINAL, f"{run_id}: {event.event}"

    async def until_gone(self) -> int | None:
        """Reads to the end and returns the exit code."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.wire.receive() is not None:
                pass
            assert await asyncio.to_thread(self.process.join, DEADLINE_S)
        return self.process.exitcode


@pytest.fixture
async def agent():
    process = await asyncio.to_thread(
        start_worker, worker_id="ap-node-0/worker-0", settings=SETTINGS
    )
    wire = await AsyncWire.open(process.sock)
    yield Agent(process, wire)
    process.kill()
    await wire.close()
    assert await asyncio.to_thread(process.join, DEADLINE_S)


@pytest.fixture
async def loaded(agent, random_model_dir):
    await agent.load(random_model_dir)
    await agent.next("loaded")
    return agent


async def test_a_worker_loads_warms_and_says_what_it_can_do(agent, random_model_dir):
    await agent.load(random_model_dir)

    states = []
    while node_pb2.WORKER_STATE_IDLE not in states:
        event = await agent.next("state", "loaded")
        if event.HasField("loaded"):
            loaded = event.loaded
            continue
        states.append(event.state.state)

    assert states == [
        node_pb2.WORKER_STATE_STARTING,
        node_pb2.WORKER_STATE_LOADING,
        node_pb2.WORKER_STATE_WARMING,
        node_pb2.WORKER_STATE_IDLE,
    ]
    assert loaded.model == open_model_folder(random_model_dir).to_model_info()
    assert 0.1 < loaded.units_per_second < 10_000


async def test_it_beats_while_it_loads_draws_and_idles(loaded):
    await loaded.next("heartbeat")
    await loaded.generate("a", steps=50, num_frames=49)
    await loaded.next_of_run("a", "started")
    for _ in range(2):
        await loaded.next("heartbeat")


async def test_runs_are_drawn_in_order_and_the_device_is_said_to_be_free(loaded):
    await loaded.generate("a", seed=5)
    await loaded.generate("b", seed=5)

    seen, bytes_of, shas = [], {"a": b"", "b": b""}, {}
    while len(shas) < 2:
        event = await loaded.next("run", "device_done")
        if event.HasField("device_done"):
            seen.append((event.device_done.run_id, "device_done"))
            continue
        run_id, inner = event.run.run_id, event.run.event
        kind = inner.WhichOneof("event")
        seen.append((run_id, kind))
        if kind == "chunk":
            assert inner.chunk.offset == len(bytes_of[run_id])
            bytes_of[run_id] += inner.chunk.data
        elif kind in TERMINAL:
            shas[run_id] = inner.completed.sha256

    assert seen.index(("a", "device_done")) < seen.index(("b", "started"))
    assert bytes_of["a"] == bytes_of["b"]
    assert shas["a"] == shas["b"] == hashlib.sha256(bytes_of["a"]).hexdigest()


async def test_busy_and_idle_are_said_when_they_change(loaded):
    await loaded.next("state")
    await loaded.generate("a")
    assert (await loaded.next("state")).state.state == node_pb2.WORKER_STATE_BUSY
    assert (await loaded.next("state")).state.state == node_pb2.WORKER_STATE_IDLE


async def test_cancel_ends_a_running_and_a_waiting_run_and_the_next_is_well(loaded):
    await loaded.generate("running", steps=50, num_frames=49)
    await loaded.generate("waiting")
    await loaded.next_of_run("running", "progress")
    await loaded.cancel("waiting")
    await loaded.next_of_run("waiting", "cancelled")
    await loaded.cancel("running")
    await loaded.cancel("unheard of")
    assert (await loaded.next_of_run("running", *TERMINAL)).cancelled.reason == "client"

    await loaded.generate("next")
    assert (await loaded.next_of_run("next", *TERMINAL)).HasField("completed")


async def test_more_than_it_may_hold_is_refused_and_the_rest_goes_on(loaded):
    for i in range(6):
        await loaded.generate(str(i), steps=50, num_frames=49)
    refused = (await loaded.next("run")).run
    while not refused.event.HasField("failed"):
        refused = (await loaded.next("run")).run

    assert refused.event.failed.code == "worker_full"
    assert refused.event.failed.retryable
    await loaded.cancel("0")
    assert (await loaded.next_of_run("1", "started")).n == 1


async def test_work_before_the_model_is_loaded_is_refused(agent):
    await agent.generate("early")

    failed = (await agent.next_of_run("early", *TERMINAL)).failed
    assert (failed.code, failed.retryable) == ("worker_not_ready", True)


async def test_a_tampered_model_is_fatal_and_named(agent, random_model_dir, tmp_path):
    folder = shutil.copytree(random_model_dir, tmp_path / "model")
    file = folder / "transformer" / "config.json"
    file.write_text(file.read_text().replace("2", "3", 1))

    await agent.load(folder)

    fatal = (await agent.next("fatal")).fatal
    assert fatal.code == "model_invalid"
    assert "transformer/config.json" in fatal.message
    assert await agent.until_gone() == 1


async def test_weights_that_do_not_fit_their_configuration_are_fatal(
    agent, random_model_dir, tmp_path
):
    from node_agent.model_folder import write_manifest

    folder = shutil.copytree(random_model_dir, tmp_path / "model")
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    index["vae"] = ["diffusers", "NoSuchClass"]
    file.write_text(json.dumps(index))
    fields = json.loads((folder / "manifest.json").read_text())
    del fields["files"]
    write_manifest(folder, fields)

    await agent.load(folder)

    assert (await agent.next("fatal")).fatal.code == "load_failed"
    assert await agent.until_gone() == 1


async def test_a_device_that_is_not_there_is_fatal(agent, random_model_dir):
    await agent.load(random_model_dir, device="cuda:7")

    assert (await agent.next("fatal")).fatal.code == "device_unavailable"
    assert await agent.until_gone() == 1


async def test_a_killed_worker_is_seen_by_its_socket_and_its_sentinel(loaded):
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(loaded.process.sentinel, gone.set)
    await loaded.generate("a", steps=50, num_frames=49)
    await loaded.next_of_run("a", "progress")

    os.kill(loaded.process.pid, signal.SIGKILL)

    async with asyncio.timeout(DEADLINE_S):
        await gone.wait()
    asyncio.get_running_loop().remove_reader(loaded.process.sentinel)
    assert await loaded.until_gone() == -signal.SIGKILL


async def test_shutdown_ends_it_in_the_middle_of_a_run(loaded):
    await loaded.generate("a", steps=50, num_frames=49)
    await loaded.next_of_run("a", "progress")

    await loaded.send(shutdown=worker_pb2.WorkerShutdown())

    assert await loaded.until_gone() == 0


async def test_a_signal_to_the_group_leaves_ending_to_the_agent(loaded):
    for signum in (signal.SIGTERM, signal.SIGINT):
        os.kill(loaded.process.pid, signum)
        os.kill(psutil.Process(loaded.process.pid).ppid(), signum)

    await loaded.generate("a")
    assert (await loaded.next_of_run("a", *TERMINAL)).HasField("completed")


async def test_a_frame_that_is_no_command_ends_the_worker(agent):
    agent.wire._writer.write(struct.pack(">I", 4) + b"\xff\xff\xff\xff")

    assert await agent.until_gone() == 0


async def test_workers_share_a_fork_server_and_start_at_once(agent):
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    other = await asyncio.to_thread(start_worker, worker_id="other", settings=SETTINGS)
    took_s = loop.time() - began_s
    try:
        assert psutil.Process(other.pid).ppid() == psutil.Process(agent.process.pid).ppid()
        # Importing torch again would take seconds.
        assert took_s < 2.0
    finally:
        other.kill()
        assert await asyncio.to_thread(other.join, DEADLINE_S)
        other.sock.close()


def test_nothing_is_left_behind_when_the_agent_is_killed(random_model_dir):
    script = Path(__file__).parents[1] / "support" / "agent_script.py"
    agent = subprocess.Popen(
        [sys.executable, str(script), str(random_model_dir)], stdout=subprocess.PIPE
    )
    try:
        assert agent.stdout is not None
        said = json.loads(agent.stdout.readline())
        assert said["torch_in_agent"] is False
        # Stopped: it cannot notice anything by itself.
        os.kill(said["workers"][1], signal.SIGSTOP)
        family = psutil.Process(agent.pid).children(recursive=True)
        assert {*said["workers"], said["forkserver"]} <= {child.pid for child in family}
    finally:
        agent.kill()
        agent.wait(DEADLINE_S)
        agent.stdout.close()

    wait_until(lambda: not any(map(_alive, family)), what="the agent's children to end")


def _alive(process: psutil.Process) -> bool:
    # A zombie waits for whoever adopted it; it runs no more.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_frames_survive_any_split():
    ours, theirs = socket_pair()
    wire = SyncWire.of_worker(theirs)
    command = worker_pb2.WorkerCommand(cancel=worker_pb2.WorkerCancel(run_id="a" * 300))
    frame = to_frame(command)
    for i in range(len(frame)):
        ours.sendall(frame[i : i + 1])
    ours.sendall(frame * 2)

    assert [wire.receive() for _ in range(3)] == [command] * 3
    ours.close()
    assert wire.receive() is None
    wire.close()
    wire.close()


@pytest.mark.parametrize("data", [b"\x00\x00", b"\x00\x00\x00\x05abc", b"\x7f\xff\xff\xff"])
async def test_broken_frames_are_errors_on_both_ends(data):
    for end in ("sync", "async"):
        ours, theirs = socket_pair()
        ours.sendall(data)
        ours.close()
        if end == "sync":
            wire = SyncWire.of_worker(theirs)
            with pytest.raises(WireError):
                wire.receive()
            wire.close()
        else:
            async_wire = await AsyncWire.open(theirs)
            with pytest.raises(WireError):
                await async_wire.receive()
            await async_wire.close()


async def test_a_worker_that_does_not_read_is_noticed(agent):
    os.kill(agent.process.pid, signal.SIGSTOP)
    load = worker_pb2.WorkerLoad(model_dir="x" * 8_000_000)

    with pytest.raises(TimeoutError):
        await agent.wire.send(worker_pb2.WorkerCommand(load=load), timeout_s=0.2)
