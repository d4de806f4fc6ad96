"""The event log and its spool: readers at their own pace, attempts that supersede."""

import asyncio
import contextlib
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from reelmesh.v1 import node_service_pb2, video_pb2, video_service_pb2

from gateway.jobs.attempts import TERMINAL_N, seq_of
from gateway.output.event_log import EventLog
from gateway.output.spool import ByteGap, BytesGone, VideoBytes
from gateway.output.spool_budget import SpoolBudget, SpoolFull
from gateway.output.spool_file import SpoolFile
from gateway.output.wire import NodeChunk
from reelkit.clock import ManualClock, SystemClock

MIB = 1024 * 1024


class Spools:
    """Spools over one folder."""

    def __init__(self, folder, *, memory_bytes=4096, max_bytes=64 * MIB, patience_s=5.0):
        self.executor = ThreadPoolExecutor(1)
        self.memory_bytes = memory_bytes
        self.folder = folder
        self.budget = SpoolBudget(
            max_bytes=max_bytes,
            max_bytes_per_video=32 * MIB,
            patience_s=patience_s,
            clock=SystemClock(),
        )

    def new(self):
        return VideoBytes(
            directory=self.folder,
            memory_bytes=self.memory_bytes,
            budget=self.budget,
            executor=self.executor,
        )


@pytest.fixture
def spools(tmp_path):
    made = Spools(tmp_path)
    yield made
    made.executor.shutdown()


@pytest.fixture
def log(spools):
    return EventLog(video_id="v", new_bytes=spools.new, queued=video_pb2.QueuedEvent(position=3))


def progress(n, *, attempt=1):
    event = video_pb2.ProgressEvent(step=n, total_steps=99)
    return node_service_pb2.NodeEvent(attempt=attempt, n=n, progress=event)


def chunk(n, offset, data, *, attempt=1):
    return NodeChunk(attempt, n, offset, memoryview(data))


def terminal(attempt=1, **event):
    event = event or {"completed": video_pb2.CompletedEvent()}
    return video_pb2.VideoEvent(seq=seq_of(attempt, TERMINAL_N), video_id="v", **event)


def kinds(events):
    return [event.WhichOneof("event") for event in events]


async def read_all(log, after_seq=0):
    async with asyncio.timeout(10):
        return [event async for event in log.read(after_seq)]


async def test_a_reader_that_resumes_before_a_nodes_replay_gets_only_what_is_new(log):
    # Another gateway's job: the reader comes first, then the node tells it all again.
    reading = asyncio.ensure_future(read_all(log, after_seq=seq_of(1, 3)))
    await asyncio.sleep(0.01)
    log.begin(1, "")
    log.append(progress(1), "progress")
    log.append_chunk(chunk(2, 0, b"ab"))
    log.append_chunk(chunk(3, 2, b"cd"))
    await asyncio.sleep(0.01)
    log.append_chunk(chunk(4, 4, b"ef"))
    log.finish(terminal())
    events = await reading
    assert kinds(events) == ["queued", "chunk", "completed"]
    assert (events[1].chunk.offset, events[1].chunk.data) == (4, b"ef")


async def feed(log, spooled, data, *, piece, first_n=1):
    """Chunks as a runner appends them."""
    for index, offset in enumerate(range(0, len(data), piece)):
        log.append_chunk(chunk(first_n + index, offset, data[offset : offset + piece]))
        if spooled.behind:
            await spooled.room()


async def test_queued_is_first_at_once(log):
    events = log.read(0)
    first = await anext(events)
    assert (first.seq, first.queued.position) == (0, 3)
    await events.aclose()
    assert log.readers == 0


async def test_both_forms_tell_the_same(log):
    log.begin(1, "")
    log.append(progress(1), "progress")
    log.append_chunk(chunk(2, 0, b"abc"))
    log.finish(terminal())
    encoded = [
        video_service_pb2.WatchVideoResponse.FromString(message).event
        async for message in log.read_encoded(0)
    ]
    assert encoded == await read_all(log)
    assert kinds(encoded) == ["queued", "progress", "chunk", "completed"]


async def test_a_reader_that_is_behind_gets_progress_conflated_and_every_chunk(log):
    log.begin(1, "")
    offset = 0
    for n in range(1, 41):
        if n % 4:
            log.append(progress(n), "progress")
        else:
            log.append_chunk(chunk(n, offset, b"x" * n))
            offset += n
    log.append(progress(41), "progress")
    log.finish(terminal())
    events = await read_all(log)
    assert kinds(events).count("progress") == 1
    assert kinds(events).count("chunk") == 10
    assert next(e for e in events if e.HasField("progress")).progress.step == 41
    seqs = [event.seq for event in events]
    assert seqs == sorted(seqs)


async def test_a_reader_that_keeps_up_sees_steps_that_take_their_time(log):
    log.begin(1, "")
    events = log.read(0)
    assert kinds([await anext(events)]) == ["queued"]
    for n in range(1, 4):
        log.append(progress(n), "progress")
        async with asyncio.timeout(5):
            assert (await anext(events)).progress.step == n
    await events.aclose()


async def test_the_last_of_a_burst_is_told_though_nothing_follows(log):
    log.begin(1, "")
    events = log.read(0)
    await anext(events)
    for n in range(1, 9):
        log.append(progress(n), "progress")
    async with asyncio.timeout(5):
        steps = [(await anext(events)).progress.step]
        while steps[-1] != 8:
            steps.append((await anext(events)).progress.step)
    assert len(steps) <= 2
    await events.aclose()


async def test_a_new_attempt_voids_the_old_one(log):
    log.begin(1, "")
    log.append_chunk(chunk(1, 0, b"old"))
    events = log.read(0)
    seen = [await anext(events), await anext(events)]
    assert kinds(seen) == ["queued", "chunk"]
    log.begin(2, "node_lost")
    log.append_chunk(chunk(1, 0, b"new", attempt=2))
    log.finish(terminal(2))
    rest = [event async for event in events]
    assert kinds(rest) == ["restarted", "chunk", "completed"]
    assert rest[0].seq == seq_of(2, 0)
    assert (rest[0].restarted.attempt, rest[0].restarted.reason) == (2, "node_lost")
    assert rest[1].chunk.data == b"new"
    # One who comes back to the old attempt is told first that it is void.
    resumed = await read_all(log, seq_of(1, 1))
    assert kinds(resumed) == ["queued", "restarted", "chunk", "completed"]


async def test_a_replay_that_overlaps_is_taken_once(log):
    log.begin(1, "")
    for _ in range(2):
        log.append_chunk(chunk(1, 0, b"abc"))
        log.append(progress(2), "progress")
        log.append_chunk(chunk(3, 3, b"def"))
    log.finish(terminal())
    events = await read_all(log)
    assert b"".join(e.chunk.data for e in events if e.HasField("chunk")) == b"abcdef"


async def test_a_gap_in_the_bytes_is_noticed(log):
    log.begin(1, "")
    log.append_chunk(chunk(1, 0, b"abc"))
    with pytest.raises(ByteGap):
        log.append_chunk(chunk(2, 4, b"e"))


async def test_after_a_failure_a_reader_goes_straight_to_the_end(log):
    log.begin(1, "")
    log.append_chunk(chunk(1, 0, b"abc"))
    log.finish(terminal(failed=video_pb2.FailedEvent(code="x")))
    log.finish(terminal())
    assert kinds(await read_all(log)) == ["queued", "failed"]


async def test_positions_are_told_while_the_job_waits(log):
    events = log.read(0)
    await anext(events)
    log.requeue(1, 5.0)
    assert (await anext(events)).queued.position == 1
    log.begin(1, "")
    log.append(progress(1), "progress")
    assert kinds([await anext(events)]) == ["progress"]
    await events.aclose()


async def test_readers_are_counted(log):
    counts = []
    log.on_readers = counts.append
    first, second = log.read(0), log.read(0)
    await anext(first)
    await anext(second)
    await first.aclose()
    await second.aclose()
    assert counts == [1, 2, 1, 0]


# --- the spool under it ---


async def test_a_slow_reader_is_served_from_the_file_then_from_the_artifact(log, spools, tmp_path):
    data = bytes(range(256)) * 4096 * 5
    log.begin(1, "")
    spooled = log.spooled
    events = log.read(0)
    got = [await anext(events)]
    await feed(log, spooled, data, piece=100_000)
    got.extend([await anext(events) for _ in range(5)])
    assert await spooled.seal() == hashlib.sha256(data).hexdigest()
    assert spooled.recent(0) is None
    assert spools.budget.used_bytes >= len(data)
    reads = []

    async def read(offset, length):
        reads.append(offset)
        return data[offset : offset + length]

    spooled.rebase(read)
    assert spools.budget.used_bytes == 0
    log.finish(terminal())
    got.extend([event async for event in events])
    assert b"".join(e.chunk.data for e in got if e.HasField("chunk")) == data
    assert reads
    assert list(tmp_path.iterdir()) == []


async def test_a_short_video_never_touches_the_disk(spools):
    spools.memory_bytes = 2 * MIB
    spooled = spools.new()
    data = b"x" * MIB
    for offset in range(0, MIB, 1024):
        spooled.append(offset, data[offset : offset + 1024])
        if spooled.behind:
            await spooled.room()
    assert await spooled.seal() == hashlib.sha256(data).hexdigest()
    assert spooled.finished() == data
    assert spools.budget.used_bytes == 0


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, 3 * MIB + 17])
@pytest.mark.parametrize("memory_bytes", [0, 4096, 16 * MIB])
async def test_what_is_sealed_is_what_was_appended(spools, size, memory_bytes):
    spools.memory_bytes = memory_bytes
    spooled = spools.new()
    data = hashlib.shake_128(b"seed").digest(size)
    for offset in range(0, size, 99_991):
        spooled.append(offset, data[offset : offset + 99_991])
        if spooled.behind:
            await spooled.room()
    assert await spooled.seal() == hashlib.sha256(data).hexdigest()
    finished = spooled.finished()
    kept = finished
    if isinstance(finished, SpoolFile):
        kept = b"".join(finished.pieces())
        finished.close()
    assert kept == data
    spooled.void()


async def on_disk(spools, size=3 * MIB):
    """A sealed spool whose bytes are in its file."""
    spooled = spools.new()
    for offset in range(0, size, MIB):
        spooled.append(offset, b"x" * MIB)
        await spooled.room()
    await spooled.seal()
    return spooled


async def test_the_finished_file_outlives_the_spools_own(spools, tmp_path):
    spooled = await on_disk(spools)
    finished = spooled.finished()
    spooled.void()
    # The next file gets the number of the closed one.
    other = SpoolFile(tmp_path)
    other.write(b"else")
    assert b"".join(finished.pieces()) == b"x" * 3 * MIB
    finished.close()
    other.close()


def descriptors():
    """How many this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_a_reader_that_leaves_the_line_for_a_thread_leaves_no_descriptor(spools):
    spooled = await on_disk(spools)
    go = threading.Event()
    spools.executor.submit(go.wait)
    before = descriptors()
    try:
        reading = asyncio.ensure_future(spooled.read(0, 10))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        assert descriptors() == before
    finally:
        go.set()
    assert await spooled.read(0, 10) == b"x" * 10
    spooled.void()


async def test_void_bytes_are_gone_for_every_reader(spools):
    spooled = spools.new()
    for offset in range(0, 3 * MIB, MIB):
        spooled.append(offset, b"x" * MIB)
        await spooled.room()
    spooled.void()
    with pytest.raises(BytesGone):
        await spooled.read(0, 10)
    async with asyncio.timeout(5):
        while spools.budget.used_bytes:  # noqa: ASYNC110 - told to nobody
            await asyncio.sleep(0.01)


async def test_a_video_over_its_bound_fails_at_once(spools):
    with pytest.raises(SpoolFull):
        await spools.budget.reserve(object(), 33 * MIB)


async def test_room_is_waited_for_and_not_for_ever(tmp_path):
    clock = ManualClock()
    budget = SpoolBudget(max_bytes=10, max_bytes_per_video=10, patience_s=0.2, clock=clock)
    first, second = object(), object()
    await budget.reserve(first, 8)
    waiting = asyncio.ensure_future(budget.reserve(second, 5))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.release(first)
    await waiting
    assert budget.used_bytes == 5
    with pytest.raises(SpoolFull):
        await budget.reserve(first, 6)
    assert budget.used_bytes == 5


async def test_a_broken_disk_is_told_and_not_hidden(spools, monkeypatch):
    def broken(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SpoolFile, "write", broken)
    spooled = spools.new()

    async def fill():
        for offset in range(0, 8 * MIB, MIB):
            spooled.append(offset, b"x" * MIB)
            await spooled.room()
            await asyncio.sleep(0.01)

    with pytest.raises(OSError, match="No space"):
        await fill()
    with contextlib.suppress(OSError):
        await spooled.seal()
    spooled.void()


def test_a_spool_file_gets_a_name_when_it_is_kept(tmp_path):
    file = SpoolFile(tmp_path)
    file.write(b"abc")
    file.write(memoryview(b"def"))
    assert list(tmp_path.iterdir()) == []
    assert file.keep_as(tmp_path / "kept")
    assert file.read(1, 3) == b"bcd"
    other = file.duplicate()
    file.close()
    assert b"".join(other.pieces()) == b"abcdef"
    with pytest.raises(OSError, match="ends"):
        other.read(4, 5)
    other.close()
    assert (tmp_path / "kept").read_bytes() == b"abcdef"
