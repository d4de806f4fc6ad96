"""The node's state from its workers and wishes, and how changes are published."""

from __future__ import annotations

import asyncio

import pytest
from reelmesh.v1 import node_pb2
from reelmesh.v1.node_pb2 import WorkerStatus
from reelmesh.v1.node_service_pb2 import WatchStatusResponse

from node_agent.devices import DeviceReport
from node_agent.executions import ExecutionLimits, ExecutionTable
from node_agent.slots import Execution
from node_agent.status import StatusBoard, Wishes, node_state
from node_agent.work import Speed
from reelkit.clock import SystemClock
from reelkit.tasks import TaskScope

IDLE, DEAD = node_pb2.WORKER_STATE_IDLE, node_pb2.WORKER_STATE_DEAD
STARTING, LOADING = node_pb2.WORKER_STATE_STARTING, node_pb2.WORKER_STATE_LOADING
WARMING, BUSY = node_pb2.WORKER_STATE_WARMING, node_pb2.WORKER_STATE_BUSY


@pytest.mark.parametrize(
    ("workers", "state"),
    [
        ([], "STARTING"),
        ([STARTING], "STARTING"),
        ([LOADING], "LOADING"),
        ([WARMING, LOADING], "WARMING"),
        ([IDLE], "READY"),
        ([BUSY], "READY"),
        ([DEAD, BUSY], "READY"),
        ([DEAD, LOADING], "LOADING"),
        ([DEAD], "UNHEALTHY"),
    ],
)
def test_a_node_is_as_good_as_its_best_worker(workers, state):
    statuses = [WorkerStatus(state=worker) for worker in workers]
    assert node_pb2.NodeState.Name(node_state(Wishes(), statuses)) == f"NODE_STATE_{state}"


@pytest.mark.parametrize(
    ("wishes", "state"),
    [
        (Wishes(cordoned=True), "CORDONED"),
        (Wishes(cordoned=True, draining=True), "DRAINING"),
        (Wishes(stopping=True, fault="x"), "DRAINING"),
        (Wishes(fault="x"), "UNHEALTHY"),
    ],
)
def test_wishes_come_before_workers(wishes, state):
    ready = [WorkerStatus(state=IDLE)]
    assert node_pb2.NodeState.Name(node_state(wishes, ready)) == f"NODE_STATE_{state}"


class NoGate:
    def generate(self, execution: Execution) -> None:
        pass

    def cancel(self, execution: Execution, reason: str) -> None:
        pass


@pytest.fixture
def board() -> StatusBoard:
    table = ExecutionTable(
        gate=NoGate(), limits=ExecutionLimits(), speed=Speed(), new_run_id=lambda: "run"
    )
    board = StatusBoard(
        node_id="n",
        incarnation="i",
        table=table,
        worker_statuses=lambda: [(WorkerStatus(id="n/worker-0", state=IDLE), "detail")],
        models=list,
        devices=DeviceReport,
        clock=SystemClock(),
    )
    table.on_change = board.touch
    return board


@pytest.fixture
async def scope():
    async with TaskScope("test") as scope:
        yield scope


@pytest.fixture
async def publishing(scope, board):
    """Changes are published while the test runs."""
    return scope.spawn(board.publish_changes(), name="status")


@pytest.mark.usefixtures("publishing")
async def test_many_changes_at_once_are_one_message(board):
    for _ in range(100):
        board.touch()
    async with asyncio.timeout(5):
        status = await board.next(1)
    assert status.version == 2


@pytest.mark.usefixtures("publishing")
async def test_the_bytes_are_the_status(board):
    board.wish(cordoned=True)
    async with asyncio.timeout(5):
        status = await board.next(1)
    frames = board.frames()
    assert WatchStatusResponse.FromString(await anext(frames)).status == status
    board.close()
    with pytest.raises(StopAsyncIteration):
        await anext(frames)
    assert status.reason == "cordoned by an operator"
    assert status.free_slots == 0


@pytest.mark.usefixtures("publishing")
async def test_a_watcher_that_is_cancelled_leaves_the_others(board, scope):
    leaving = scope.spawn(board.next(1), name="leaving")
    staying = scope.spawn(board.next(1), name="staying")
    await asyncio.sleep(0)
    leaving.cancel()
    board.touch()
    async with asyncio.timeout(5):
        assert (await staying).version == 2


@pytest.mark.usefixtures("publishing")
async def test_an_overlong_reason_is_cut(board):
    board.wish(fault="x" * 10_000)
    async with asyncio.timeout(5):
        assert len((await board.next(1)).reason) == 500


def test_uncordoning_admits_again(board):
    board.wish(cordoned=True)
    assert not board._table.admitting
    board.wish(cordoned=False)
    assert board._table.admitting
