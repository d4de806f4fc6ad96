"""What a node agent says of itself and of its workers, followed over its lives."""

from __future__ import annotations

from collections.abc import Callable

from grpc import aio
from reelmesh.v1 import node_pb2, node_service_pb2, node_service_pb2_grpc

from reelkit.clock import Clock
from reelkit.mtls.channels import Channels
from reelkit.mtls.config import MutualTlsSettings
from reelkit.mtls.identity import Role
from reelkit.mtls.material import MutualTls
from reelkit.tasks import TaskScope, retry_forever
from reelmesh_cli.mesh.mesh_file import WorkerEntry
from reelmesh_cli.mesh.topology import ProcessPlan

OnStatus = Callable[[node_pb2.NodeStatus], None]


async def watch_node(plan: ProcessPlan, on_status: OnStatus, *, clock: Clock) -> None:
    """Calls ``on_status`` with each status of the agent, also after it was started again.

    Runs until it is cancelled.
    """
    channels = _channels_of(plan, clock)
    async with (
        TaskScope(f"watch {plan.id}") as scope,
        channels.open(
            plan.address, role=Role.NODE, region=plan.region or "", id=plan.id
        ) as channel,
    ):
        if plan.called_with is not None:
            scope.spawn(channels.follow(), name="identity")
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
            name=f"watch {plan.address}",
            clock=clock,
            expected=(aio.AioRpcError,),
            max_delay_s=1.0,
        )


def _channels_of(plan: ProcessPlan, clock: Clock) -> Channels:
    files = plan.called_with
    if files is None:
        return Channels()
    settings = MutualTlsSettings(ca_file=files.ca, cert_file=files.cert, key_file=files.key)
    return Channels(MutualTls(settings, clock=clock))


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
