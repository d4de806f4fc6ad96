"""An execution table with a recording gate and a hand-moved time; no worker, no I/O."""

from __future__ import annotations

from reelmesh.v1 import video_pb2
from reelmesh.v1.node_service_pb2 import NodeEvent, RunRequest, RunResponse

from node_agent.executions import ExecutionLimits, ExecutionTable
from node_agent.slots import Execution
from node_agent.work import Speed

SPEC = video_pb2.ResolvedSpec(prompt="x", width=100, height=100, num_frames=10, steps=10)  # 1 unit


class RecordingGate:
    """A gate that remembers what workers were told, and can answer for them."""

    def __init__(self) -> None:
        self.generated: list[Execution] = []
        self.cancelled: list[tuple[str, str]] = []

    def generate(self, execution: Execution) -> None:
        self.generated.append(execution)

    def cancel(self, execution: Execution, reason: str) -> None:
        self.cancelled.append((execution.run_id, reason))


class Bench:
    """A table with a fake gate and a hand-moved time."""

    def __init__(self, *, workers: int = 1, **limits: float) -> None:
        self.gate = RecordingGate()
        self.now_s = 100.0
        self.speed = Speed()
        self.speed.seed(1.0)
        numbers = iter(range(1, 100_000))
        self.table = ExecutionTable(
            gate=self.gate,
            limits=ExecutionLimits(**limits),
            speed=self.speed,
            new_run_id=lambda: f"run-{next(numbers)}",
        )
        for index in range(workers):
            self.table.worker_ready(f"w{index}")

    def run(self, job_id: str = "job", epoch: int = 1, try_: int = 1, **fields) -> Execution:
        fields = {"attempt": (epoch - 1) * 1024 + try_, "spec": SPEC, **fields}
        request = RunRequest(job_id=job_id, epoch=epoch, **{"try": try_}, **fields)
        return self.table.run(request, now_s=self.now_s)

    def say(self, execution: Execution, **event) -> None:
        message = NodeEvent(attempt=execution.attempt, **event)
        self.table.on_event(execution.run_id, message, now_s=self.now_s)

    def start(self, execution: Execution) -> None:
        self.say(execution, started=video_pb2.StartedEvent())

    def step(self, execution: Execution, step: int, total: int = 10) -> None:
        progress = video_pb2.ProgressEvent(
            step=step, total_steps=total, stage=video_pb2.STAGE_DENOISE
        )
        self.say(execution, progress=progress)

    def device_done(self, execution: Execution) -> None:
        self.table.on_device_done(execution.run_id, now_s=self.now_s)

    def complete(self, execution: Execution) -> None:
        self.say(execution, completed=video_pb2.CompletedEvent())

    def cancel(self, job_id: str = "job", epoch: int = 1) -> bool:
        return self.table.cancel(job_id, epoch=epoch, reason="client", now_s=self.now_s)

    def expire(self, after_s: float) -> None:
        self.now_s += after_s
        self.table.expire(now_s=self.now_s)


def last_event(execution: Execution) -> NodeEvent:
    return RunResponse.FromString(execution.log.frames_after(0)[-1]).event
