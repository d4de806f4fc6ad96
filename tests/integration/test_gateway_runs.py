"""Jobs through the gateway's application to fake nodes over real gRPC."""

import asyncio
import contextlib
import hashlib

import grpc
import pytest
from reelmesh.v1 import node_pb2, video_pb2

from gateway import errors
from gateway.jobs.attempts import seq_of, split_seq
from tests.support import fakenode
from tests.support.fakenode import VIDEO, FakeNode, serve_node
from tests.support.gateways import ME, data_of, kinds, open_gateway

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
FAILED = video_pb2.VIDEO_STATUS_FAILED
QUEUED = video_pb2.VIDEO_STATUS_QUEUED
RUNNING = video_pb2.VIDEO_STATUS_RUNNING


@contextlib.asynccontextmanager
async def mesh(tmp_path, *nodes, **changes):
    """A gateway that knows some nodes."""
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path, **changes))
        await gateway.know(*nodes)
        yield gateway


async def first_run(*nodes):
    """The node that got the first run, and the run."""
    async with asyncio.timeout(10):
        while True:
            for node in nodes:
                if node.runs:
                    return node, node.runs[0]
            await asyncio.sleep(0.005)


def once(nodes, script):
    """Whichever of the nodes gets the first run does that; all others run as by default."""
    for node in nodes:
        node.script = nodes[0].script
    nodes[0].script.append(script)


def other(nodes, node):
    return next(n for n in nodes if n is not node)


def reason_of(event):
    return event.restarted.reason


# --- the plain way ---


async def test_a_video_from_create_to_completed(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create(seed=5)
        assert video.status == QUEUED
        assert not video.durable
        events = await gateway.watched(video.id)
        assert kinds(events)[0] == "queued"
        assert events[0].queued.spec.seed == 5
        assert not events[0].queued.durable
        assert kinds(events)[-1] == "completed"
        assert data_of(events) == VIDEO
        assert events[-1].completed.sha256 == hashlib.sha256(VIDEO).hexdigest()
        assert events[-1].completed.seed == 5
        await node.until(lambda: node.releases)
        assert node.releases[0].job_id == video.id
        assert node.runs[0].request.spec.prompt == "a ball"
        # A node can tell tenants apart, and learns no name.
        assert node.runs[0].request.tenant
        assert ME.tenant not in node.runs[0].request.tenant
        record = await gateway.core.videos.get(ME, video.id)
        assert (record.status, record.attempts, record.progress_percent) == (COMPLETED, 1, 100)


async def test_release_comes_only_after_the_record_is_committed(tmp_path):
    node = FakeNode("n0")
    states = []
    async with mesh(tmp_path, node) as gateway:
        answer = node.Release

        async def release(request, context):
            states.append((await gateway.core.videos.get(ME, request.job_id)).status)
            return await answer(request, context)

        await node.kill()
        node.Release = release
        await node.start()
        await gateway.until(lambda: gateway.ready(node))
        video = await gateway.create()
        await gateway.watched(video.id)
        await node.until(lambda: node.releases)
        assert states == [COMPLETED]


async def test_status_is_running_only_once_the_node_started(tmp_path):
    node = FakeNode("n0")
    node.default = fakenode.silent()
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create()
        await node.run_at(0)
        assert (await gateway.core.videos.get(ME, video.id)).status == QUEUED
        node.default = fakenode.held()
        running = await gateway.create()
        await gateway.until(lambda: gateway.core.lifetimes.get(running.id).log.attempt)
        await gateway.until(
            lambda: gateway.core.lifetimes.get(running.id).record.video.status == RUNNING
        )


# --- a node that fails ---


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
async def test_a_broken_stream_goes_on_elsewhere_after_restarted(tmp_path, code):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    once(nodes, fakenode.break_off(b"void" * 1024, code=code))
    async with mesh(tmp_path, *nodes) as gateway:
        video = await gateway.create(seed=9)
        events = await gateway.watched(video.id)
        restarted = next(e for e in events if e.HasField("restarted"))
        assert restarted.seq == seq_of(2, 0)
        assert reason_of(restarted) in ("node_lost", "node_error")
        assert data_of(events) == VIDEO
        seqs = [e.seq for e in events if e.seq]
        assert seqs == sorted(set(seqs))
        assert split_seq(events[-1].seq)[0] == 2
        assert [len(node.runs) for node in nodes] == [1, 1]
        again = max((node.runs[0].request for node in nodes), key=lambda run: run.attempt)
        assert (again.epoch, getattr(again, "try"), again.attempt) == (1, 2, 2)
        assert again.spec.seed == 9
        record = await gateway.core.videos.get(ME, video.id)
        assert record.attempts == 2
        assert record.result.attempt == 2


async def test_a_killed_node_is_survived(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    for node in nodes:
        node.default = fakenode.held(before=2)
    async with mesh(tmp_path, *nodes) as gateway:
        video = await gateway.create()
        watching = asyncio.ensure_future(gateway.watched(video.id))
        node, _ = await first_run(*nodes)
        spare = other(nodes, node)
        spare.default = fakenode.finish()
        await node.kill()
        events = await watching
        assert kinds(events)[-1] == "completed"
        assert data_of(events) == VIDEO
        assert len(spare.runs) == 1
        assert not gateway.ready(node)


async def test_tries_are_bounded(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    for node in nodes:
        node.default = fakenode.fail("worker_stalled")
    async with mesh(tmp_path, *nodes) as gateway:
        video = await gateway.create()
        events = await gateway.watched(video.id)
        assert kinds(events)[-1] == "failed"
        assert events[-1].failed.code == "worker_stalled"
        assert events[-1].failed.retryable
        assert sum(len(node.runs) for node in nodes) == 3
        # The third try had to go back to one that failed; the second had not.
        assert {len(node.runs) for node in nodes} == {1, 2}
        record = await gateway.core.videos.get(ME, video.id)
        assert (record.status, record.attempts) == (FAILED, 3)


async def test_a_failure_of_the_jobs_own_is_final(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    for node in nodes:
        node.default = fakenode.fail("out_of_memory", retryable=False)
    async with mesh(tmp_path, *nodes) as gateway:
        video = await gateway.create()
        events = await gateway.watched(video.id)
        assert events[-1].failed.code == "out_of_memory"
        assert not events[-1].failed.retryable
        assert sum(len(node.runs) for node in nodes) == 1


async def test_two_dead_workers_are_poison(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    for node in nodes:
        node.default = fakenode.fail("worker_died")
    async with mesh(tmp_path, *nodes, runs={"max_tries": 5}) as gateway:
        video = await gateway.create()
        events = await gateway.watched(video.id)
        assert events[-1].failed.code == "poison"
        assert not events[-1].failed.retryable
        assert sum(len(node.runs) for node in nodes) == 2


async def test_after_a_worker_died_the_node_is_told_that_the_job_runs_alone(tmp_path):
    """What the node makes of it: tests/integration/test_gateway_poison.py."""
    nodes = [FakeNode("n0"), FakeNode("n1")]
    async with mesh(tmp_path, *nodes) as gateway:
        once(nodes, fakenode.fail("worker_died"))
        suspect = await gateway.create(prompt="suspect")
        assert kinds(await gateway.watched(suspect.id))[-1] == "completed"
        asked = sorted((r.request.attempt, r.request.alone) for n in nodes for r in n.runs)
        assert asked == [(1, False), (2, True)]


async def test_a_wrong_checksum_is_the_nodes_fault(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]

    async def lying(run):
        yield run.started()
        yield run.chunk(b"something else")
        yield run.completed(VIDEO)

    async with mesh(tmp_path, *nodes) as gateway:
        once(nodes, lying)
        video = await gateway.create()
        events = await gateway.watched(video.id)
        assert next(reason_of(e) for e in events if e.HasField("restarted")) == "corrupt_video"
        assert data_of(events) == VIDEO


async def test_a_silent_node_is_given_up(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    once(nodes, fakenode.silent())
    async with mesh(tmp_path, *nodes, runs={"accept_timeout_s": 0.2}) as gateway:
        video = await gateway.create()
        events = await gateway.watched(video.id)
        assert next(reason_of(e) for e in events if e.HasField("restarted")) == "node_silent"
        assert kinds(events)[-1] == "completed"


async def test_a_bug_ends_its_job_and_not_the_gateway(tmp_path, monkeypatch):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:

        def broken(*_args):
            raise LookupError("scripted")

        with monkeypatch.context() as patched:
            patched.setattr("gateway.core.runner.ordinal_of", broken)
            video = await gateway.create()
            events = await gateway.watched(video.id)
        assert (events[-1].failed.code, events[-1].failed.retryable) == ("internal", True)
        assert "scripted" not in events[-1].failed.message
        again = await gateway.create()
        assert kinds(await gateway.watched(again.id))[-1] == "completed"


# --- resuming ---


async def test_resume_inside_a_superseded_attempt_gets_restarted_first(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    for node in nodes:
        node.default = fakenode.held(b"void" * 2048, before=3)
    async with mesh(tmp_path, *nodes) as gateway:
        video = await gateway.create()
        seen = []
        async for event in gateway.core.videos.watch(ME, video.id, after_seq=0):
            seen.append(event)
            if event.HasField("chunk"):
                break
        node, _ = await first_run(*nodes)
        other(nodes, node).default = fakenode.finish()
        await node.kill()
        await gateway.watched(video.id)
        resumed = await gateway.watched(video.id, after_seq=seen[-1].seq)
        assert kinds(resumed)[:2] == ["queued", "restarted"]
        assert resumed[1].seq == seq_of(2, 0)
        assert data_of([*seen, *resumed]) == VIDEO


async def test_resume_within_an_attempt_misses_and_repeats_nothing(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        video = await gateway.create()
        events = await gateway.watched(video.id)
        for event in events[1:-1]:
            resumed = await gateway.watched(video.id, after_seq=event.seq)
            assert all(e.seq > event.seq for e in resumed[1:])
            before = [e for e in events if e.seq <= event.seq]
            assert data_of([*before, *resumed]) == VIDEO


async def test_after_the_log_is_gone_events_are_rebuilt(tmp_path):
    node = FakeNode("n0")
    big = bytes(range(256)) * 2048
    node.default = fakenode.finish(big, piece=100_000)
    async with mesh(tmp_path, node, runs={"linger_s": 0}) as gateway:
        video = await gateway.create()
        live = await gateway.watched(video.id)
        await gateway.until(lambda: gateway.core.lifetimes.get(video.id) is None)
        rebuilt = await gateway.watched(video.id)
        assert kinds(rebuilt) == ["queued", "chunk", "chunk", "completed"]
        assert data_of(rebuilt) == big
        assert rebuilt[-1] == live[-1]
        # A client of the replay resumes exactly; one of the node's numbering starts over.
        resumed = await gateway.watched(video.id, after_seq=rebuilt[1].seq)
        assert data_of([*rebuilt[:2], *resumed]) == big
        assert kinds(resumed) == ["queued", "chunk", "completed"]
        chunk = next(e for e in live if e.HasField("chunk"))
        over = await gateway.watched(video.id, after_seq=chunk.seq)
        assert kinds(over) == ["queued", "restarted", "chunk", "chunk", "completed"]
        assert data_of([chunk, *over]) == big
        ended = await gateway.watched(video.id, after_seq=live[-1].seq)
        assert kinds(ended) == ["queued", "completed"]


async def test_a_slow_reader_holds_up_nobody_and_misses_no_byte(tmp_path):
    node = FakeNode("n0")
    big = bytes(range(256)) * 4096 * 6
    node.default = fakenode.finish(big, piece=64 * 1024)
    spool = {"memory_bytes_per_video": 256 * 1024}
    async with mesh(tmp_path, node, spool=spool) as gateway:
        video = await gateway.create()
        slow = gateway.core.videos.watch(ME, video.id, after_seq=0)
        events = [await anext(slow)]
        fast = await gateway.watched(video.id)
        assert data_of(fast) == big
        # Everything has happened; what the slow one has not read is out of memory by now.
        events.extend([event async for event in slow])
        assert data_of(events) == big
        assert kinds(events)[-1] == "completed"


# --- full nodes and the line ---


async def test_busy_is_no_attempt_and_is_placed_again(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    for node in nodes:
        node.script.append(fakenode.busy())
    async with mesh(tmp_path, *nodes) as gateway:
        video = await gateway.create()
        events = await gateway.watched(video.id)
        assert "restarted" not in kinds(events)
        assert kinds(events)[-1] == "completed"
        assert split_seq(events[-1].seq)[0] == 1
        record = await gateway.core.videos.get(ME, video.id)
        assert record.attempts == 1
        assert gateway.metric("placements_total", outcome="busy") >= 1
        # Placed at an idle node: one that turns out to have work is to say so.
        waits_s = [run.request.max_wait_s for node in nodes for run in node.runs]
        assert any(0 < wait_s < 1 for wait_s in waits_s), waits_s


async def test_jobs_wait_in_the_gateway_and_go_in_order(tmp_path):
    node = FakeNode("n0", slots=1)
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        videos = [await gateway.create(prompt=f"video {i}") for i in range(4)]
        first = await node.run_at(0)
        await gateway.until(lambda: gateway.metric("jobs_waiting") == 3)
        assert len(node.runs) == 1
        events = gateway.core.videos.watch(ME, videos[3].id, after_seq=0)
        assert (await anext(events)).queued.position == 2
        first.go.set()
        # The position is told again as the line moves.
        assert (await anext(events)).queued.position == 1
        for index in range(1, 4):
            (await node.run_at(index)).go.set()
        assert [run.request.spec.prompt for run in node.runs] == [f"video {i}" for i in range(4)]
        await events.aclose()
        for video in videos:
            assert kinds(await gateway.watched(video.id))[-1] == "completed"


async def test_the_line_is_bounded(tmp_path):
    node = FakeNode("n0", slots=1)
    node.default = fakenode.held()
    async with mesh(tmp_path, node, runs={"max_waiting": 1000}) as gateway:
        await gateway.create()
        await node.run_at(0)
        for _ in range(1000):
            await gateway.create()
        await gateway.until(lambda: gateway.metric("jobs_waiting") == 1000)
        with pytest.raises(errors.ResourceExhausted) as raised:
            await gateway.create()
        assert raised.value.retry_after_s >= 1
        assert gateway.metric("jobs_refused_total", code="resource_exhausted") == 1


async def test_one_key_is_answered_even_when_the_line_is_full(tmp_path):
    node = FakeNode("n0", slots=1)
    node.default = fakenode.held()
    async with mesh(tmp_path, node, runs={"max_waiting": 1}) as gateway:
        first = await gateway.create(idempotency_key="k")
        await node.run_at(0)
        await gateway.create()
        await gateway.until(lambda: gateway.metric("jobs_waiting") == 1)
        assert (await gateway.create(idempotency_key="k")).id == first.id


# --- no node ---


async def test_no_node_is_unavailable(tmp_path):
    async with open_gateway(tmp_path) as gateway:
        with pytest.raises(errors.Unavailable) as raised:
            await gateway.create()
        assert raised.value.retry_after_s
        ready, why = gateway.core.videos.ready()
        assert not ready
        assert "control plane" in why


async def test_a_node_that_is_not_ready_gets_nothing(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node) as gateway:
        node.state = node_pb2.NODE_STATE_DRAINING
        await node.push()
        await gateway.until(lambda: not gateway.ready(node))
        with pytest.raises(errors.Unavailable):
            await gateway.create()
        with pytest.raises(errors.InvalidRequest):
            await gateway.create(steps=0)
        assert gateway.core.videos.ready() == (False, "no ready node")


async def test_a_waiting_job_outlives_its_last_node(tmp_path):
    node = FakeNode("n0", slots=1)
    node.default = fakenode.held()
    async with mesh(tmp_path, node) as gateway:
        await gateway.create()
        await node.run_at(0)
        waiting = await gateway.create()
        await node.kill()
        await gateway.until(lambda: not gateway.ready(node))
        node.default = fakenode.finish()
        await node.start()
        assert kinds(await gateway.watched(waiting.id))[-1] == "completed"
