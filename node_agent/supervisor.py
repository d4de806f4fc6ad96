"""All workers of the node, kept alive together, and the way to reach them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from reelmesh.v1.worker_pb2 import WorkerCancel, WorkerCommand, WorkerGenerate

from node_agent.slots import Execution
from node_agent.worker_life import LoadOrder, Worker
from reelkit.tasks import TaskScope


class Supervisor:
    """All workers of the node; the gate through which the table reaches them."""

    def __init__(self) -> None:
        self.workers: Sequence[Worker] = ()
        self._by_id: dict[str, Worker] = {}

    def adopt(self, workers: Sequence[Worker]) -> None:
        """Takes the workers that it is responsible for; call it once."""
        self.workers = workers
        self._by_id = {worker.worker_id: worker for worker in workers}

    def generate(self, execution: Execution) -> None:
        """Tells the execution's worker to run it."""
        generate = WorkerGenerate(
            run_id=execution.run_id,
            attempt=execution.attempt,
            spec=execution.spec,
            traceparent=execution.traceparent,
        )
        if execution.deadline_at_s is not None and execution.dispatched_s is not None:
            generate.deadline_s = execution.deadline_at_s - execution.dispatched_s
        self._by_id[execution.worker_id].send(WorkerCommand(generate=generate))

    def cancel(self, execution: Execution, reason: str) -> None:
        """Tells the execution's worker to stop it."""
        cancel = WorkerCancel(run_id=execution.run_id, reason=reason)
        self._by_id[execution.worker_id].send(WorkerCommand(cancel=cancel))

    async def serve(self, order: LoadOrder) -> None:
        """Keeps every worker alive until cancelled."""
        async with TaskScope("workers") as scope:
            for worker in self.workers:
                scope.spawn(worker.live(order), name=worker.worker_id)
            await scope.failed.wait()
            if scope.failure is not None:
                raise scope.failure

    async def shut_down(self, *, timeout_s: float) -> None:
        """Asks every worker to leave, together, and waits ``timeout_s`` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s + 1):
                await asyncio.gather(
                    *(worker.shut_down(timeout_s=timeout_s) for worker in self.workers)
                )
