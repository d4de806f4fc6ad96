"""Admission, deadlines, barred workers and figures of runs, without any I/O."""

from __future__ import annotations

import pytest
from reelmesh.v1 import video_pb2

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
