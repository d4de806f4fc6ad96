"""Admission, ownership and the ends of runs, without any I/O."""

from __future__ import annotations

import pytest
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
from reelmesh.v1.node_service_pb2 import NodeEvent, RunRequest, RunResponse

from node_agent.errors import StaleOwnerError
from node_agent.executions import ExecutionLimits, ExecutionTable, NotAdmittedError
from node_agent.slots import MAX_HELD, Execution, Phase
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


# --- admission ---


def test_one_runs_one_waits_and_the_next_is_told_how_long():
    bench = Bench()
    first, second = bench.run("a"), bench.run("b")
    assert bench.gate.generated == [first, second]
    bench.start(first)
    bench.step(first, 5)
    with pytest.raises(NotAdmittedError) as busy:
        bench.run("c")
    assert busy.value.remaining_work_s == pytest.approx(0.55 + 1.0)
    assert bench.table.free_slots() == 0


def test_a_device_that_is_done_makes_room_while_the_tail_is_encoded():
    bench = Bench()
    first, second = bench.run("a"), bench.run("b")
    bench.start(first)
    bench.device_done(first)
    third = bench.run("c")
    assert bench.gate.generated == [first, second, third]
    assert first.phase is Phase.TAIL


def test_the_run_goes_to_the_worker_that_is_free_first():
    bench = Bench(workers=2)
    first, second = bench.run("a"), bench.run("b")
    assert {first.worker_id, second.worker_id} == {"w0", "w1"}
    bench.start(second)
    bench.step(second, 8)
    assert bench.run("c").worker_id == second.worker_id


def test_nothing_is_admitted_while_the_node_is_emptied():
    bench = Bench()
    bench.table.admitting = False
    with pytest.raises(NotAdmittedError):
        bench.run()
    assert bench.table.free_slots() == 0


def test_a_node_without_workers_admits_nothing():
    with pytest.raises(NotAdmittedError):
        Bench(workers=0).run()


# --- ownership ---


def test_the_same_claim_attaches():
    bench = Bench()
    assert bench.run() is bench.run()
    assert len(bench.gate.generated) == 1


def test_a_higher_epoch_attaches_to_the_live_run_and_owns_it():
    bench = Bench()
    execution = bench.run(epoch=1, try_=3)
    bench.start(execution)
    adopted = bench.run(epoch=2, try_=1)
    assert adopted is execution
    assert execution.claim == (2, 1)
    assert execution.attempt == 3, "events go on carrying the attempt that runs"
    with pytest.raises(StaleOwnerError):
        bench.table.check_claim(execution, (1, 3))


def test_a_higher_epoch_takes_a_completed_run_and_repeats_a_failed_one():
    bench = Bench()
    done = bench.run("done")
    bench.start(done)
    bench.complete(done)
    assert bench.run("done", epoch=2) is done
    failed = bench.run("failed")
    bench.say(failed, failed=video_pb2.FailedEvent(code="x"))
    assert bench.run("failed", epoch=2) is not failed


def test_a_higher_epoch_does_not_attach_to_a_run_that_is_being_cancelled():
    bench = Bench()
    execution = bench.run()
    bench.start(execution)
    assert bench.cancel()
    assert bench.run(epoch=2) is not execution


def test_a_higher_try_replaces_the_run_and_tells_its_readers():
    bench = Bench()
    former = bench.run(try_=1)
    bench.start(former)
    newer = bench.run(try_=2)
    assert newer is not former
    assert bench.gate.cancelled == [(former.run_id, "superseded")]
    with pytest.raises(StaleOwnerError):
        bench.table.check_claim(former, (1, 1))


def test_a_replaced_run_keeps_no_slot_from_its_replacement():
    bench = Bench()
    other, former = bench.run("other"), bench.run("job", try_=1)
    newer = bench.run("job", try_=2)
    assert bench.gate.generated == [other, former], "the worker has two until it lets one go"
    bench.say(former, cancelled=video_pb2.CancelledEvent())
    assert bench.gate.generated == [other, former, newer]


@pytest.mark.parametrize(("epoch", "try_"), [(1, 9), (2, 1)])
def test_anything_lower_is_stale(epoch, try_):
    bench = Bench()
    bench.run(epoch=2, try_=2)
    with pytest.raises(StaleOwnerError):
        bench.run(epoch=epoch, try_=try_)


def test_a_stale_owner_can_neither_cancel_nor_release():
    bench = Bench()
    bench.run(epoch=2)
    with pytest.raises(StaleOwnerError):
        bench.cancel(epoch=1)
    with pytest.raises(StaleOwnerError):
        bench.table.release("job", epoch=1)


def test_a_stale_owner_is_refused_after_the_bytes_were_released():
    bench = Bench()
    execution = bench.run(epoch=2)
    bench.complete(execution)
    bench.table.release("job", epoch=2)
    assert bench.table.kept_bytes() == 0
    with pytest.raises(StaleOwnerError):
        bench.run(epoch=1)


# --- ends ---


def test_cancelling_a_waiting_run_ends_it_at_once():
    bench = Bench()
    bench.run("a")
    waiting = bench.run("b")
    assert bench.cancel("b")
    assert last_event(waiting).cancelled.reason == "client"
    assert bench.cancel("b") is False


def test_cancelling_a_running_one_waits_for_the_worker():
    bench = Bench()
    execution = bench.run()
    bench.start(execution)
    assert bench.cancel()
    assert bench.cancel()
    assert bench.gate.cancelled == [(execution.run_id, "client")]
    assert not execution.log.ended
    bench.say(execution, cancelled=video_pb2.CancelledEvent(reason="client"))
    assert execution.log.ended


def test_a_run_that_completes_before_its_cancel_arrives_is_complete():
    bench = Bench()
    execution = bench.run()
    bench.start(execution)
    bench.cancel()
    bench.complete(execution)
    assert last_event(execution).WhichOneof("event") == "completed"


def test_cancelling_an_unknown_job_finds_nothing():
    assert Bench().cancel("nobody") is False


def test_events_after_the_end_are_dropped():
    bench = Bench()
    execution = bench.run()
    bench.complete(execution)
    bench.say(execution, chunk=video_pb2.ChunkEvent(data=b"late"))
    assert execution.log.last_n == 1


def test_a_dead_worker_fails_what_it_ran_and_gives_back_what_it_had_not_begun():
    bench = Bench()
    tail, running, waiting = bench.run("a"), bench.run("b"), None
    bench.start(tail)
    bench.device_done(tail)
    bench.start(running)
    waiting = bench.run("c")
    bench.table.worker_lost("w0", message="worker w0 died", now_s=bench.now_s)
    codes = [last_event(e).failed.code for e in (tail, running, waiting)]
    assert codes == ["worker_died", "worker_died", "worker_unavailable"]
    assert all(last_event(e).failed.retryable for e in (tail, running, waiting))
    assert bench.table.free_slots() == 0
    bench.table.worker_ready("w0")
    assert bench.table.free_slots() == MAX_HELD


def test_a_cancelled_run_of_a_dead_worker_is_cancelled():
    bench = Bench()
    execution = bench.run()
    bench.start(execution)
    bench.cancel()
    bench.table.worker_lost("w0", message="x", now_s=bench.now_s)
    assert last_event(execution).cancelled.reason == "client"


def test_a_late_event_of_a_lost_workers_run_is_dropped():
    bench = Bench()
    execution = bench.run()
    bench.table.worker_lost("w0", message="x", now_s=bench.now_s)
    bench.complete(execution)
    assert last_event(execution).WhichOneof("event") == "failed"


def test_all_that_is_left_at_shutdown_fails_as_retryable():
    bench = Bench()
    running, waiting = bench.run("a"), bench.run("b")
    bench.start(running)
    bench.table.fail_all(code="node_shutdown", message="bye", now_s=bench.now_s)
    for execution in (running, waiting):
        failed = last_event(execution).failed
        assert (failed.code, failed.retryable) == ("node_shutdown", True)
    assert bench.table.live() == []


# --- time ---


def test_a_deadline_drops_waiting_work_and_cancels_running_work():
    bench = Bench()
    running, waiting = bench.run("a", deadline_s=5.0), bench.run("b", deadline_s=5.0)
    bench.start(running)
    for execution in (running, waiting):
        bench.table.attach(execution)
    bench.expire(4.9)
    assert bench.gate.cancelled == []
    bench.expire(0.2)
    assert last_event(waiting).cancelled.reason == "deadline"
    assert (running.run_id, "deadline") in bench.gate.cancelled
    bench.expire(1.0)
    assert len(bench.gate.cancelled) == 2


def test_a_run_without_an_owner_goes_on_for_the_grace_time():
    bench = Bench(owner_grace_s=30.0)
    execution = bench.run()
    bench.table.attach(execution)
    bench.start(execution)
    bench.table.detach(execution, (1, 1), now_s=bench.now_s)
    bench.expire(29.9)
    assert bench.gate.cancelled == []
    bench.run(epoch=2)
    bench.table.attach(execution)
    bench.expire(1000.0)
    assert bench.gate.cancelled == []


def test_after_the_grace_time_it_is_cancelled():
    bench = Bench(owner_grace_s=30.0)
    execution = bench.run()
    bench.table.attach(execution)
    bench.start(execution)
    bench.table.detach(execution, (1, 1), now_s=bench.now_s)
    bench.expire(30.0)
    assert bench.gate.cancelled == [(execution.run_id, "disconnected")]


def test_a_former_owners_stream_neither_holds_nor_frees_the_run():
    bench = Bench(owner_grace_s=30.0)
    execution = bench.run()
    bench.table.attach(execution)
    bench.run(epoch=2)
    bench.table.attach(execution)
    bench.table.detach(execution, (1, 1), now_s=bench.now_s)
    bench.expire(1000.0)
    assert bench.gate.cancelled == []
    bench.table.detach(execution, (2, 1), now_s=bench.now_s)
    bench.expire(30.0)
    assert len(bench.gate.cancelled) == 1


def test_an_adopter_that_vanishes_between_claim_and_stream_does_not_hold_the_run():
    bench = Bench(owner_grace_s=30.0)
    execution = bench.run()
    bench.table.attach(execution)
    bench.run(epoch=2)
    bench.table.detach(execution, (1, 1), now_s=bench.now_s)
    bench.expire(30.0)
    assert len(bench.gate.cancelled) == 1


def test_finished_runs_are_kept_for_their_time_then_forgotten():
    bench = Bench(keep_s=120.0)
    execution = bench.run()
    bench.start(execution)
    bench.complete(execution)
    bench.expire(119.0)
    assert bench.run() is execution
    bench.expire(1.0)
    assert bench.table.kept_bytes() == 0


def test_the_oldest_finished_run_makes_room_for_a_growing_one():
    bench = Bench(keep_bytes=1000)
    old, new = bench.run("old"), bench.run("new")
    bench.say(old, chunk=video_pb2.ChunkEvent(data=b"x" * 600))
    bench.complete(old)
    bench.say(new, chunk=video_pb2.ChunkEvent(data=b"x" * 600))
    assert bench.table.kept_bytes() < 1000
    assert not new.log.ended
    bench.say(new, chunk=video_pb2.ChunkEvent(data=b"x" * 600))
    assert last_event(new).failed.code == "output_too_large"
    assert bench.gate.cancelled == [(new.run_id, "output_too_large")]


# --- figures ---


def test_speed_is_learned_from_completed_runs_only():
    bench = Bench()
    execution = bench.run("a")
    bench.start(execution)
    bench.now_s += 0.5
    bench.device_done(execution)
    bench.now_s += 5.0
    bench.complete(execution)
    assert bench.speed.units_per_second == pytest.approx(1.5)
    failing = bench.run("b")
    bench.start(failing)
    bench.device_done(failing)
    bench.say(failing, failed=video_pb2.FailedEvent())
    assert bench.speed.units_per_second == pytest.approx(1.5)


def test_the_queue_time_is_counted_from_admission():
    bench = Bench()
    execution = bench.run()
    bench.now_s += 3.0
    bench.start(execution)
    bench.complete(execution)
    assert last_event(execution).completed.timings.queue_s == pytest.approx(3.0)


def test_silence_counts_from_when_the_run_could_begin():
    bench = Bench()
    first, second = bench.run("a"), bench.run("b")
    bench.start(first)
    bench.now_s += 50.0
    bench.device_done(first)
    bench.complete(first)
    bench.now_s += 2.0
    assert bench.table.silence("w0", now_s=bench.now_s)[0] == pytest.approx(2.0)
    bench.start(second)
    assert bench.table.silence("w0", now_s=bench.now_s)[0] == 0.0
    assert bench.table.silence("nobody", now_s=bench.now_s) == (0.0, 0.0)


# --- whatever happens ---


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

    @rule(job=jobs, epoch=st.integers(1, 3), try_=st.integers(1, 3), deadline=st.booleans())
    def run_it(self, job, epoch, try_, deadline):
        fields = {"deadline_s": 2.0} if deadline else {}
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
            assert told == min(len(slots.held), MAX_HELD)

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
