"""Workers that die, hang, stop or never start: the agent and its node survive them."""

from __future__ import annotations

import os
import signal

import pytest
from reelmesh.v1 import node_pb2

from node_agent.config import WorkersSettings
from tests.support.fakeworker import FakeLauncher, Script
from tests.support.nodes import kind_of, node_config, run_request, running_node

# Short, but longer than a busy two-core machine may keep a process from running.
PATIENCE = {
    "heartbeat_timeout_s": 1.0,
    "loading_silence_s": 10.0,
    "stall_floor_s": 10.0,
    "respawn_first_s": 0.05,
    "respawn_max_s": 0.1,
}


@pytest.fixture
async def node(tmp_path):
    async with running_node(node_config(tmp_path, workers=PATIENCE)) as node:
        await node.until_ready()
        yield node


@pytest.fixture
async def impatient_node(tmp_path):
    workers = {**PATIENCE, "heartbeat_timeout_s": 10.0, "stall_floor_s": 0.5}
    async with running_node(node_config(tmp_path, workers=workers)) as node:
        await node.until_ready()
        yield node


async def fails_and_respawns(node, call, *, code="worker_died"):
    """The stream ends with a retryable failure and the node is ready again."""
    before = node.launcher.handles[-1].pid
    failed = (await node.read_until(call, "failed"))[-1].failed
    assert (failed.code, failed.retryable) == (code, True)
    status = await node.until(
        lambda s: s.state == node_pb2.NODE_STATE_READY and s.workers[0].pid != before
    )
    assert status.workers[0].id == "ap-node-0/worker-0"
    assert status.workers[0].restarts == 1
    assert status.free_slots == 2
    events = await node.events(run_request("after"))
    assert kind_of(events[-1]) == "completed"
    return failed


async def test_a_killed_worker_costs_its_runs_and_is_respawned(node):
    running = node.stub.Run(run_request("a", prompt="slow"))
    await node.read_until(running, "progress")
    waiting = node.stub.Run(run_request("b"))
    await node.read_until(waiting, "accepted")
    os.kill(node.launcher.handles[0].pid, signal.SIGKILL)
    failed = await fails_and_respawns(node, running)
    assert "exit code -9" in failed.message
    events = await node.read_until(waiting, "failed")
    assert [kind_of(event) for event in events] == ["failed"]
    assert events[-1].failed.code == "worker_unavailable"


async def test_a_job_that_kills_its_worker_is_told_apart(node):
    await fails_and_respawns(node, node.stub.Run(run_request(prompt="die@2")))


async def test_a_stopped_worker_is_noticed_by_its_heartbeat(node):
    running = node.stub.Run(run_request(prompt="slow"))
    await node.read_until(running, "progress")
    os.kill(node.launcher.handles[0].pid, signal.SIGSTOP)
    failed = await fails_and_respawns(node, running)
    assert "no heartbeat" in failed.message


@pytest.mark.parametrize("stage", ["text", "1", "3", "decode", "tail"])
async def test_a_hang_in_any_stage_is_noticed_though_the_heart_beats(impatient_node, stage):
    node = impatient_node
    agent_incarnation = node.app.board.current.incarnation
    failed = await fails_and_respawns(node, node.stub.Run(run_request(prompt=f"hang@{stage}")))
    assert "no progress" in failed.message
    # It cost the worker its life, and not the agent.
    assert node.app.board.current.incarnation == agent_incarnation


@pytest.mark.parametrize("stage", ["text", "decode", "tail"])
async def test_a_death_in_any_stage_is_told_apart(node, stage):
    await fails_and_respawns(node, node.stub.Run(run_request(prompt=f"die@{stage}")))


async def test_a_slow_model_is_given_ten_of_its_own_steps(tmp_path):
    # A step of 0.2 s is twice the floor; only the multiple lets it live.
    workers = {**PATIENCE, "heartbeat_timeout_s": 10.0, "stall_floor_s": 0.1, "stall_steps": 50.0}
    async with running_node(node_config(tmp_path, workers=workers)) as node:
        await node.until_ready()
        # The warm-up's figure says too little of these steps: the median has to be seen.
        node.app.table.speed.observe_step(0.2)
        events = await node.events(run_request(prompt="slow"))
        assert kind_of(events[-1]) == "completed"
        assert node.app.board.current.workers[0].restarts == 0


def test_by_default_a_worker_has_two_seconds_and_a_device_ten_steps_or_thirty_seconds():
    limits = WorkersSettings()
    assert limits.heartbeat_timeout_s == 2
    assert (limits.stall_floor_s, limits.stall_steps) == (30, 10)


async def test_a_hung_device_that_ignores_a_cancel_is_noticed_too(impatient_node):
    node = impatient_node
    before = node.launcher.handles[0].pid
    call = node.stub.Run(run_request(prompt="hang@2"))
    await node.read_until(call, "progress")
    assert await node.cancel("job-1")
    assert (await node.read_until(call, "cancelled"))[-1].cancelled.reason == "client"
    await node.until(lambda s: s.state == node_pb2.NODE_STATE_READY and s.workers[0].pid != before)


@pytest.mark.parametrize(
    ("load", "reason"), [("die", "exit code 3"), ("fatal", "model_broken: told to")]
)
async def test_a_worker_that_dies_at_load_is_tried_again_and_says_why(tmp_path, load, reason):
    launcher = FakeLauncher([Script(load=load), Script(load=load), Script()])
    config = node_config(tmp_path, workers=PATIENCE)
    async with running_node(config, launcher=launcher) as node:
        status = await node.until(lambda s: s.state == node_pb2.NODE_STATE_UNHEALTHY)
        assert reason in status.reason
        status = await node.until_ready()
        assert status.workers[0].restarts == 2
        assert status.reason == ""


async def test_the_wait_between_failing_loads_grows(tmp_path, monkeypatch):
    launcher = FakeLauncher([Script(load="die")] * 5 + [Script()])
    workers = {**PATIENCE, "respawn_first_s": 0.01, "respawn_max_s": 0.05}
    async with running_node(node_config(tmp_path, workers=workers), launcher=launcher) as node:
        waits: list[float] = []
        clock = node.app.supervisor.workers[0]._clock
        sleep = clock.sleep

        async def recording_sleep(delay_s: float) -> None:
            if delay_s in (0.01, 0.02, 0.04, 0.05):
                waits.append(delay_s)
            await sleep(delay_s)

        monkeypatch.setattr(clock, "sleep", recording_sleep)
        await node.until_ready()
        assert waits == [0.01, 0.02, 0.04, 0.05, 0.05]


async def test_a_load_that_takes_for_ever_is_ended(tmp_path):
    launcher = FakeLauncher([Script(load="hang"), Script()])
    workers = {**PATIENCE, "load_timeout_s": 1.0}
    async with running_node(node_config(tmp_path, workers=workers), launcher=launcher) as node:
        status = await node.until(lambda s: s.state == node_pb2.NODE_STATE_UNHEALTHY)
        assert "did not load" in status.reason
        await node.until_ready()


async def test_a_launcher_that_fails_is_tried_again(tmp_path):
    class Flaky(FakeLauncher):
        calls = 0

        def __call__(self, worker_id: str):
            self.calls += 1
            if self.calls == 1:
                raise OSError("no processes left")
            return super().__call__(worker_id)

    config = node_config(tmp_path, workers=PATIENCE)
    async with running_node(config, launcher=Flaky()) as node:
        status = await node.until(lambda s: s.state == node_pb2.NODE_STATE_UNHEALTHY)
        assert "no processes left" in status.reason
        await node.until_ready()


async def test_two_workers_are_two_failure_domains(tmp_path):
    workers = {**PATIENCE, "devices": ["cpu", "cpu"]}
    async with running_node(node_config(tmp_path, workers=workers)) as node:
        await node.until(lambda s: s.free_slots == 4)
        first = node.stub.Run(run_request("a", prompt="slow"))
        await node.read_until(first, "started")
        second = node.stub.Run(run_request("b", prompt="slow"))
        await node.read_until(second, "started")
        victim = node.app.table._jobs.get("a").worker_id
        pids = {worker.worker_id: worker.pid for worker in node.app.supervisor.workers}
        os.kill(pids[victim], signal.SIGKILL)
        await node.read_until(first, "failed")
        assert node.app.board.current.state == node_pb2.NODE_STATE_READY
        await node.read_until(second, "completed")
        await node.until(lambda s: s.free_slots == 4)


async def test_nothing_is_left_behind_at_the_end(tmp_path):
    launcher = FakeLauncher()
    async with running_node(node_config(tmp_path), launcher=launcher) as node:
        await node.until_ready()
    assert [handle.exitcode for handle in launcher.handles] == [0]
