"""Whatever gateways, workers and time do, the table's invariants hold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)
from reelmesh.v1 import video_pb2

from node_agent.errors import StaleOwnerError
from node_agent.executions import NotAdmittedError
from node_agent.slots import MAX_HELD, Execution
from tests.support.execution_bench import Bench


class TableMachine(RuleBasedStateMachine):
    """Random gateways, a worker that answers in any order it may, and time."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(workers=2, keep_bytes=5_000)
        self.ended: dict[str, int] = {}

    @rule(target=jobs, name=st.sampled_from("abcdef"))
    def job(self, name):
        return name

    @rule(
        job=jobs,
        epoch=st.integers(1, 3),
        try_=st.integers(1, 3),
        deadline_s=st.sampled_from([None, 0.0, 2.0]),
        alone=st.booleans(),
    )
    def run_it(self, job, epoch, try_, deadline_s, alone):
        fields = {"alone": alone} if deadline_s is None else {"deadline_s": deadline_s}
        current = self.bench.table._jobs.get(job)
        claim_before = current.claim if current else (0, 0)
        try:
            execution = self.bench.run(job, epoch, try_, **fields)
        except StaleOwnerError:
            return
        except NotAdmittedError:
            return
        assert execution.claim == (epoch, try_) >= claim_before

    @rule(job=jobs, epoch=st.integers(1, 3))
    def cancel_it(self, job, epoch):
        try:
            self.bench.cancel(job, epoch)
        except StaleOwnerError:
            return

    @rule(job=jobs, epoch=st.integers(1, 3))
    def release_it(self, job, epoch):
        try:
            self.bench.table.release(job, epoch=epoch)
        except StaleOwnerError:
            return

    def told(self) -> list[Execution]:
        return [run for slots in self.bench.table.slots() for run in slots.held if run.dispatched]

    @precondition(lambda self: self.told())
    @rule(data=st.data(), what=st.sampled_from(["start", "step", "chunk", "done", "end", "fail"]))
    def worker_says(self, data, what):
        execution = data.draw(st.sampled_from(self.told()))
        bench = self.bench
        if what == "start":
            bench.start(execution)
        elif what == "step":
            bench.step(execution, 3)
        elif what == "chunk":
            bench.say(execution, chunk=video_pb2.ChunkEvent(data=b"x" * 700))
        elif what == "done":
            bench.device_done(execution)
        elif what == "end":
            bench.complete(execution)
        else:
            bench.say(execution, cancelled=video_pb2.CancelledEvent())

    @rule(worker=st.sampled_from(["w0", "w1"]))
    def worker_dies(self, worker):
        self.bench.table.worker_lost(worker, message="x", now_s=self.bench.now_s)
        self.bench.table.worker_ready(worker)

    @rule(delta=st.floats(0.1, 40.0))
    def time_passes(self, delta):
        self.bench.expire(delta)

    @invariant()
    def no_worker_holds_more_than_it_may(self):
        for slots in self.bench.table.slots():
            assert sum(not run.closing for run in slots.held) <= MAX_HELD
            assert sum(run.dispatched for run in slots.held) <= MAX_HELD

    @invariant()
    def every_live_run_is_with_a_worker(self):
        held = {run for slots in self.bench.table.slots() for run in slots.all_runs()}
        for execution in self.bench.table.live():
            assert execution in held
            assert not execution.log.ended

    @invariant()
    def nothing_is_left_undispatched_while_the_worker_has_room(self):
        for slots in self.bench.table.slots():
            told = sum(run.dispatched for run in slots.held)
            waits = any(run.alone and not run.dispatched for run in slots.held)
            if not waits:
                assert told == min(len(slots.held), MAX_HELD)
            elif len(slots.all_runs()) == 1:
                raise AssertionError("it waits for nobody")

    @invariant()
    def one_that_is_alone_shares_its_worker_with_nobody(self):
        for slots in self.bench.table.slots():
            runs = slots.all_runs()
            if any(run.alone and run.dispatched for run in runs):
                assert len(runs) == 1
            if any(run.alone for run in runs):
                assert slots.free == 0

    @invariant()
    def bytes_are_counted_and_bounded(self):
        table = self.bench.table
        assert table.kept_bytes() == sum(e.log.size_bytes for e in table._jobs)
        assert table.kept_bytes() <= 5_000 + 700

    @invariant()
    def figures_are_sane(self):
        assert self.bench.table.remaining_work_s() >= 0
        assert 0 <= self.bench.table.free_slots() <= 2 * MAX_HELD


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
