"""How runs end, and what time does to them, without any I/O."""

from __future__ import annotations

from reelmesh.v1 import video_pb2

from node_agent.slots import MAX_HELD
from tests.support.execution_bench import Bench, last_event

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
