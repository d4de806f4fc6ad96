"""The newest execution of each job, the bytes that are kept, and who may still ask."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from reelmesh.v1.node_service_pb2 import NodeEvent

from node_agent.errors import StaleOwnerError
from node_agent.slots import Claim, Execution, Phase

# Claims of forgotten jobs, so that a stale owner is still refused; about 2 MB at most.
_MAX_FENCES = 10_000


class JobBook:
    """One execution per job; a forgotten one leaves its claim behind as a fence."""

    def __init__(self) -> None:
        self.kept_bytes = 0
        """Bytes of the events of every execution in the book."""
        self._current: dict[str, Execution] = {}
        self._fences: OrderedDict[str, Claim] = OrderedDict()

    def __iter__(self) -> Iterator[Execution]:
        """The executions, oldest first; the book may change meanwhile."""
        return iter(list(self._current.values()))

    def get(self, job_id: str) -> Execution | None:
        """The job's newest execution, live or kept."""
        return self._current.get(job_id)

    def put(self, execution: Execution) -> None:
        """Makes an execution its job's newest; a former one was forgotten before."""
        self._current[execution.job_id] = execution
        self._fences.pop(execution.job_id, None)

    def append(self, execution: Execution, event: NodeEvent) -> bool:
        """Adds to the execution's log; False once that has ended."""
        before = execution.log.size_bytes
        appended = execution.log.append(event)
        if self._current.get(execution.job_id) is execution:
            self.kept_bytes += execution.log.size_bytes - before
        return appended

    def forget(self, execution: Execution) -> None:
        """Drops an execution's bytes; its claim goes on keeping older owners out."""
        if self._current.get(execution.job_id) is execution:
            del self._current[execution.job_id]
            self.kept_bytes -= execution.log.size_bytes
        self._fences[execution.job_id] = execution.claim
        self._fences.move_to_end(execution.job_id)
        if len(self._fences) > _MAX_FENCES:
            self._fences.popitem(last=False)

    def shrink(self, limit_bytes: int, *, keep: Execution) -> bool:
        """Forgets ended executions, the oldest first, down to the limit; False if over it."""
        if self.kept_bytes > limit_bytes:
            ended = [e for e in self if e.phase is Phase.ENDED and e is not keep]
            for execution in sorted(ended, key=lambda e: e.ended_s or 0.0):
                self.forget(execution)
                if self.kept_bytes <= limit_bytes:
                    break
        return self.kept_bytes <= limit_bytes

    def refuse_stale(self, job_id: str, claim: Claim) -> None:
        """Returns unless a newer claim than ``claim`` was seen.

        Raises:
            StaleOwnerError: One was.
        """
        current = self._current.get(job_id)
        newest = current.claim if current is not None else self._fences.get(job_id, (0, 0))
        if claim < newest:
            raise stale(job_id, claim, newest)


def stale(job_id: str, claim: Claim, newest: Claim) -> StaleOwnerError:
    """The error for an owner whose job was taken over."""
    return StaleOwnerError(
        f"job {job_id} belongs to epoch {newest[0]} try {newest[1]}; "
        f"epoch {claim[0]} no longer owns it"
    )
