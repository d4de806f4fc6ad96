"""Threads for calls that may hang, and writes that may be given up."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from gateway.output.artifact_write import RevocableWrite
from gateway.output.threads import Threads

DEADLINE_S = 20


def test_results_and_errors_come_back():
    threads = Threads(2, "test")
    assert threads.submit(divmod, 7, 2).result(DEADLINE_S) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 7, 0).result(DEADLINE_S)
    threads.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(divmod, 7, 2)


def test_no_more_run_at_once_than_there_are_threads():
    threads = Threads(3, "test")
    # Three of them are there at once, beside the test.
    together = threading.Barrier(4)
    go = threading.Event()
    for _ in range(3):
        threads.submit(lambda: (together.wait(DEADLINE_S), go.wait()))
    behind = threads.submit(lambda: "behind")
    together.wait(DEADLINE_S)
    assert not behind.running()
    assert not behind.done()
    go.set()
    assert behind.result(DEADLINE_S) == "behind"
    threads.shutdown()


def test_what_is_cancelled_in_the_line_never_runs():
    threads = Threads(1, "test")
    go, ran = threading.Event(), []
    first = threads.submit(go.wait)
    behind = threads.submit(ran.append, 1)
    assert behind.cancel()
    go.set()
    first.result(DEADLINE_S)
    threads.shutdown()
    assert ran == []
    with pytest.raises(CancelledError):
        behind.result()


async def test_a_call_that_hangs_holds_up_the_end_no_longer_than_its_time():
    threads = Threads(1, "test")
    go = threading.Event()
    hangs, behind = threads.submit(go.wait), threads.submit(lambda: None)
    async with asyncio.timeout(DEADLINE_S):
        await threads.close(0.05)
    assert behind.cancelled()
    assert not hangs.done()
    go.set()
    hangs.result(DEADLINE_S)


def test_a_process_ends_though_a_call_hangs_for_good():
    script = (
        "import threading\n"
        "from gateway.output.threads import Threads\n"
        "began = threading.Event()\n"
        "Threads(1, 'test').submit(lambda: (began.set(), threading.Event().wait()))\n"
        "began.wait()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=DEADLINE_S)


class Scripted:
    """A write that waits for the test in the middle, and its undoing."""

    def __init__(self):
        self.kept = False
        self.writing = threading.Event()
        self.go = threading.Event()

    def write(self):
        self.writing.set()
        assert self.go.wait(DEADLINE_S)
        self.kept = True

    def undo(self):
        self.kept = False


def test_a_write_that_is_given_up_leaves_nothing_whenever_that_is():
    before, during, after = Scripted(), Scripted(), Scripted()

    write = RevocableWrite(before.write, before.undo)
    assert not write.give_up()
    write.run()
    assert not before.writing.is_set()

    write = RevocableWrite(during.write, during.undo)
    thread = threading.Thread(target=write.run)
    thread.start()
    assert during.writing.wait(DEADLINE_S)
    assert not write.give_up()
    during.go.set()
    thread.join(DEADLINE_S)
    assert not during.kept

    write = RevocableWrite(after.write, after.undo)
    after.go.set()
    write.run()
    assert after.kept
    # Too late for the thread: the caller undoes it.
    assert write.give_up()


def test_a_write_that_is_wanted_stays():
    scripted = Scripted()
    scripted.go.set()
    RevocableWrite(scripted.write, scripted.undo).run()
    assert scripted.kept
