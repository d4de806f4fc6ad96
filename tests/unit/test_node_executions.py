"""Admission, ownership and the ends of runs, without any I/O."""

from __future__ import annotations

import pytest
from reelmesh.v1 import video_pb2

from node_agent.errors import StaleOwnerError
from node_agent.executions import NotAdmittedError
from node_agent.slots import MAX_HELD, Phase
from tests.support.execution_bench import Bench, last_event

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


def test_a_job_that_would_wait_longer_than_it_may_is_refused():
    bench = Bench()
    first = bench.run("a")
    bench.start(first)
    bench.step(first, 5)
    left_s = bench.table.remaining_work_s()
    with pytest.raises(NotAdmittedError) as busy:
        bench.run("b", max_wait_s=left_s / 2)
    assert busy.value.too_long
    assert busy.value.remaining_work_s == pytest.approx(left_s)
    assert bench.run("b", max_wait_s=left_s + 0.1).phase is Phase.WAITING
    # Where it attaches there is nothing to wait for.
    assert bench.run("a", max_wait_s=0.0) is first


def test_nothing_is_admitted_while_the_node_is_emptied():
    bench = Bench()
    bench.table.admitting = False
    with pytest.raises(NotAdmittedError):
        bench.run()
    assert bench.table.free_slots() == 0


def test_a_node_without_workers_admits_nothing():
    with pytest.raises(NotAdmittedError):
        Bench(workers=0).run()


# --- runs that are alone ---


def test_one_that_is_alone_begins_when_the_worker_has_let_go_of_all_else():
    bench = Bench()
    first = bench.run("a")
    bench.start(first)
    suspect = bench.run("s", alone=True)
    assert bench.gate.generated == [first]
    bench.device_done(first)
    # The tail is still encoded in the process that the suspect may kill.
    assert bench.gate.generated == [first]
    bench.complete(first)
    assert bench.gate.generated == [first, suspect]


def test_nothing_is_admitted_beside_it_nor_behind_it_until_it_has_ended():
    bench = Bench()
    suspect = bench.run("s", alone=True)
    assert bench.gate.generated == [suspect]
    for step in (lambda: None, lambda: bench.start(suspect), lambda: bench.device_done(suspect)):
        step()
        assert bench.table.free_slots() == 0
        with pytest.raises(NotAdmittedError):
            bench.run("b")
    bench.complete(suspect)
    assert bench.table.free_slots() == MAX_HELD
    assert bench.run("b").dispatched


def test_its_neighbours_are_on_other_workers():
    bench = Bench(workers=2)
    busy = bench.run("a")
    suspect = bench.run("s", alone=True)
    assert suspect.worker_id != busy.worker_id
    assert bench.run("b").worker_id == busy.worker_id
    with pytest.raises(NotAdmittedError):
        bench.run("c")


def test_one_that_waits_to_be_alone_is_cancelled_without_the_worker():
    bench = Bench()
    first = bench.run("a")
    bench.run("s", alone=True)
    bench.cancel("s")
    assert bench.gate.cancelled == []
    assert bench.table.free_slots() == 1
    assert bench.gate.generated == [first]


def test_waiting_to_be_alone_is_no_silence_of_the_device():
    bench = Bench()
    first = bench.run("a")
    bench.start(first)
    bench.run("s", alone=True)
    bench.device_done(first)
    for _ in range(10):
        bench.now_s += 10
        bench.say(first, chunk=video_pb2.ChunkEvent(data=b"x"))
    assert bench.table.silence("w0", now_s=bench.now_s)[0] == 0.0


# --- deadlines ---


def test_what_is_overdue_never_reaches_the_device():
    bench = Bench()
    late = bench.run("late", deadline_s=0.0)
    assert last_event(late).cancelled.reason == "deadline"
    assert bench.gate.generated == []
    assert bench.table.free_slots() == MAX_HELD


def test_one_that_becomes_overdue_while_it_waits_is_dropped_when_its_turn_comes():
    bench = Bench()
    first = bench.run("a")
    waits = bench.run("s", alone=True, deadline_s=5.0)
    bench.start(first)
    bench.now_s += 6.0
    bench.complete(first)
    assert last_event(waits).cancelled.reason == "deadline"
    assert bench.gate.generated == [first]


def test_time_drops_the_waiting_one_and_stops_the_running_one():
    bench = Bench()
    running, waiting = bench.run("a", deadline_s=5.0), bench.run("b", deadline_s=5.0)
    bench.start(running)
    bench.expire(4.9)
    assert bench.gate.cancelled == []
    bench.expire(0.2)
    assert last_event(waiting).cancelled.reason == "deadline"
    # The running one ends when its worker says so, within a step.
    assert (running.run_id, "deadline") in bench.gate.cancelled


# --- workers whose device fails ---


def test_a_barred_worker_is_given_nothing_new_and_keeps_what_it_has():
    bench = Bench(workers=2)
    kept = bench.run("a")
    bench.table.bar(frozenset({kept.worker_id}))
    assert bench.table.free_slots() == MAX_HELD
    for job in ("b", "c"):
        assert bench.run(job).worker_id != kept.worker_id
    with pytest.raises(NotAdmittedError):
        bench.run("d")
    assert kept in bench.table.live()
    bench.table.bar(frozenset())
    assert bench.run("d").worker_id == kept.worker_id


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
