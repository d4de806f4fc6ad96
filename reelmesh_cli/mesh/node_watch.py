"""What a node agent says of itself and of its workers, followed over its lives."""

from __future__ import annotations

from collections.abc import Callable

from grpc import aio
from reelmesh.v1 import node_pb2, node_service_pb2, node_service_pb2_grpc

from reelkit.clock import Clock
from reelkit.rpc import internal_channel
from reelkit.tasks import retry_forever
from reelmesh_cli.mesh.mesh_file import WorkerEntry

OnStatus = Callable[[node_pb2.NodeStatus], None]


async def watch_node(address: str, on_status: OnStatus, *, clock: Clock) -> None:
    """Calls ``on_status`` with each status of the agent, also after it was started again.

    Runs until it is cancelled.
    """
    async with internal_channel(address) as channel:
        stub = node_service_pb2_grpc.NodeServiceStub(channel)

        async def follow() -> None:
            call = stub.WatchStatus(
                node_service_pb2.WatchStatusRequest(),
                # It cannot wait for ever: the channel's pings notice an agent that is gone.
                wait_for_ready=True,
            )
            async for answer in call:
                on_status(answer.status)

        await retry_forever(
            follow,
            name=f"watch {address}",
            clock=clock,
            expected=(aio.AioRpcError,),
            max_delay_s=1.0,
        )


def live_workers(status: node_pb2.NodeStatus) -> tuple[WorkerEntry, ...]:
    """The worker processes that a status tells of."""
    return tuple(
        WorkerEntry(worker.id, worker.pid)
        for worker in status.workers
        if worker.pid and worker.state != node_pb2.WORKER_STATE_DEAD
    )


def describe(status: node_pb2.NodeStatus) -> str:
    """The state of an agent in a few words."""
    name = node_pb2.NodeState.Name(status.state).removeprefix("NODE_STATE_").lower()
    reason = f": {status.reason}" if status.reason and name != "ready" else ""
    return f"{name}{reason}"
