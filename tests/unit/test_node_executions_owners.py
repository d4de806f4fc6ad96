"""Who owns a run, without any I/O."""

from __future__ import annotations

import pytest
from reelmesh.v1 import video_pb2

from node_agent.errors import StaleOwnerError
from tests.support.execution_bench import Bench

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
