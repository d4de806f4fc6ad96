"""Equal requests in flight share one run, and each job stays a job of its own."""

import asyncio
import contextlib

import pytest
from reelmesh.v1 import tenant_pb2, video_pb2

from gateway import errors
from gateway.application import Caller
from gateway.jobs.attempts import TERMINAL_N, seq_of
from gateway.tenants import TenantPolicies
from tests.support import fakenode
from tests.support.fakenode import VIDEO, FakeNode, serve_node
from tests.support.gateways import ME, data_of, kinds, open_gateway

COMPLETED = video_pb2.VIDEO_STATUS_COMPLETED
CANCELLED = video_pb2.VIDEO_STATUS_CANCELLED
FAILED = video_pb2.VIDEO_STATUS_FAILED
MISS, SHARED = video_pb2.CACHE_STATUS_MISS, video_pb2.CACHE_STATUS_SHARED
OTHERS = Caller("globex", "them", ME.scopes)


def sharing(**tenants):
    """Policies by tenant."""
    found = TenantPolicies()
    found.replace(
        tenant_pb2.TenantPolicy(tenant=tenant, cache_sharing=kind)
        for tenant, kind in tenants.items()
    )
    return found


@contextlib.asynccontextmanager
async def mesh(tmp_path, *nodes, script=None, **changes):
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            if script is not None:
                node.default = script
            await stack.enter_async_context(serve_node(node))
        changes.setdefault("cache", {"enabled": True})
        gateway = await stack.enter_async_context(open_gateway(tmp_path, **changes))
        await gateway.know(*nodes)
        yield gateway


def record_of(gateway, video_id):
    return gateway.core.lifetimes.get(video_id).record


# --- one run ---


async def test_equal_requests_share_one_run(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, script=fakenode.held(before=2)) as gateway:
        first = await gateway.create()
        run = await node.run_at(0)
        watching = asyncio.ensure_future(gateway.watched(first.id))
        others = [await gateway.create(prompt=" a   ball ") for _ in range(3)]
        assert len({first.id, *(video.id for video in others)}) == 4
        assert [video.cache for video in (first, *others)] == [MISS, SHARED, SHARED, SHARED]
        assert {video.spec.seed for video in others} == {first.spec.seed}
        late = [asyncio.ensure_future(gateway.watched(video.id)) for video in others]
        await gateway.until(lambda: gateway.metric("jobs_sharing") == 3)
        run.go.set()
        for video, events in zip(
            (first, *others), [await watching, *[await x for x in late]], strict=True
        ):
            assert data_of(events) == VIDEO
            assert {event.video_id for event in events} == {video.id}
            assert events[-1].seq == seq_of(1, TERMINAL_N)
            seqs = [event.seq for event in events if event.seq]
            assert seqs == sorted(set(seqs))
        assert len(node.runs) == 1
        results = [(await gateway.videos.get(ME, v.id)).result for v in (first, *others)]
        assert [result.cache for result in results] == [MISS, SHARED, SHARED, SHARED]
        assert [result.gpu_seconds for result in results] == [0.5, 0, 0, 0]
        assert len({record_of(gateway, v.id).artifact_key for v in (first, *others)}) == 4
        await gateway.until(lambda: gateway.metric("jobs_sharing") == 0)
        assert gateway.metric("jobs_live") == 0


async def test_other_requests_do_not(tmp_path):
    node = FakeNode("n0", slots=10)
    async with mesh(tmp_path, node, script=fakenode.held()) as gateway:
        made = [
            await gateway.create(),
            await gateway.create(prompt="A ball"),
            await gateway.create(steps=5),
            await gateway.create(seed=1),
            await gateway.create(seed=2),
            await gateway.create(no_cache=True),
        ]
        await node.run_at(len(made) - 1)
        assert all(not record_of(gateway, video.id).follows for video in made)
        again = await gateway.create(seed=2)
        assert record_of(gateway, again.id).follows == made[4].id
        assert again.spec.seed == 2
        # Whoever gives no seed takes any: the newest.
        anyone = await gateway.create()
        assert record_of(gateway, anyone.id).follows == made[5].id
        assert made[5].cache == video_pb2.CACHE_STATUS_REFRESHED


async def test_it_may_be_switched_off(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, cache={"enabled": False}, script=fakenode.held()) as gateway:
        one, other = await gateway.create(), await gateway.create()
        await node.run_at(1)
        assert one.cache == other.cache == video_pb2.CACHE_STATUS_BYPASSED
        assert not record_of(gateway, one.id).execution_key


async def test_one_that_comes_late_gets_everything(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, script=fakenode.held(before=4)) as gateway:
        first = await gateway.create()
        run = await node.run_at(0)
        log = gateway.core.lifetimes.get(first.id).log
        await gateway.until(lambda: log.spooled.size == 4096)
        late = await gateway.create()
        assert late.status == video_pb2.VIDEO_STATUS_RUNNING
        assert late.progress_percent == 22
        assert late.attempts == 1
        watching = asyncio.ensure_future(gateway.watched(late.id))
        run.go.set()
        events = await watching
        assert data_of(events) == VIDEO
        assert "started" in kinds(events)
        half = next(event for event in events if event.chunk.offset == 4096)
        resumed = await gateway.watched(late.id, after_seq=half.seq)
        assert kinds(resumed)[:2] == ["queued", "chunk"]
        assert resumed[1].chunk.offset == 4096 + 1024


async def test_while_it_waits_in_line_positions_are_told_to_all(tmp_path):
    node = FakeNode("n0", slots=1)
    async with mesh(tmp_path, node, script=fakenode.held()) as gateway:
        before = await gateway.create(prompt="before")
        run = await node.run_at(0)
        await gateway.create()
        follower = await gateway.create()
        assert follower.status == video_pb2.VIDEO_STATUS_QUEUED
        assert gateway.metric("jobs_waiting") == 1
        watching = asyncio.ensure_future(gateway.watched(follower.id))
        node.default = fakenode.finish()
        run.go.set()
        assert data_of(await watching) == VIDEO
        assert len(node.runs) == 2
        assert before.id != follower.id


async def test_the_key_of_a_request_makes_one_follower(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, script=fakenode.held()) as gateway:
        first = await gateway.create()
        one = await gateway.create(idempotency_key="k")
        other = await gateway.create(idempotency_key="k")
        assert one.id == other.id != first.id
        assert gateway.metric("jobs_sharing") == 1
        with pytest.raises(errors.IdempotencyConflict):
            await gateway.create(idempotency_key="k", prompt="another")


async def test_no_more_follow_than_the_bound(tmp_path):
    node = FakeNode("n0")
    cache = {"enabled": True, "max_followers": 2}
    async with mesh(tmp_path, node, cache=cache, script=fakenode.held()) as gateway:
        for _ in range(3):
            await gateway.create()
        with pytest.raises(errors.ResourceExhausted) as raised:
            await gateway.create()
        assert raised.value.retry_after_s
        # Another video is no matter of theirs.
        await gateway.create(prompt="another")


# --- attempts ---


async def test_a_restart_is_one_for_all_each_in_its_own_numbers(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    for node in nodes:
        node.script.append(fakenode.held(before=2))
        node.default = fakenode.held(before=1)
    async with mesh(tmp_path, *nodes) as gateway:
        first = await gateway.create()
        await gateway.until(lambda: nodes[0].live or nodes[1].live)
        at, other = sorted(nodes, key=lambda node: not node.live)
        at.runs[0].die.set()
        run = await other.run_at(0)
        late = await gateway.create()
        watching = [asyncio.ensure_future(gateway.watched(v.id)) for v in (first, late)]
        await gateway.until(lambda: gateway.core.lifetimes.get(late.id).progress_percent)
        run.go.set()
        events, late_events = await watching[0], await watching[1]
        assert kinds(events)[1] == "restarted"
        assert events[-1].seq == seq_of(2, TERMINAL_N)
        # For the one that came late this is the first attempt.
        assert "restarted" not in kinds(late_events)
        assert late_events[-1].seq == seq_of(1, TERMINAL_N)
        assert late_events[-1].completed.attempt == 1
        assert next(e for e in late_events if e.HasField("started")).started.attempt == 1
        assert {e.chunk.attempt for e in late_events if e.HasField("chunk")} == {1}
        assert data_of(events) == data_of(late_events) == VIDEO


async def test_one_inside_a_lost_attempt_is_told_of_the_restart(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    for node in nodes:
        node.default = fakenode.held(before=2)
    async with mesh(tmp_path, *nodes) as gateway:
        await gateway.create()
        await gateway.until(lambda: nodes[0].live or nodes[1].live)
        follower = await gateway.create()
        at, other = sorted(nodes, key=lambda node: not node.live)
        reading = gateway.videos.watch(ME, follower.id, after_seq=0)
        got = []
        async for event in reading:
            got.append(event)
            if event.chunk.offset == 1024:
                break
        at.runs[0].die.set()
        run = await other.run_at(0)
        run.go.set()
        async with asyncio.timeout(20):
            got += [event async for event in reading]
        assert data_of(got) == VIDEO
        restarted = next(event for event in got if event.HasField("restarted"))
        assert restarted.restarted.reason == "worker_died"
        assert restarted.seq == seq_of(2, 0)
        record = record_of(gateway, follower.id)
        assert [attempt.cause for attempt in record.attempts] == ["worker_died", ""]


# --- ends ---


async def test_a_run_ends_at_its_node_with_the_last_of_its_jobs(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, script=fakenode.held()) as gateway:
        first, second, third = [await gateway.create() for _ in range(3)]
        await node.run_at(0)
        await gateway.videos.cancel(ME, second.id)
        await gateway.videos.cancel(ME, first.id)
        running = video_pb2.VIDEO_STATUS_RUNNING
        await gateway.until(lambda: record_of(gateway, third.id).video.status == running)
        assert not node.cancels
        await gateway.videos.delete(ME, third.id)
        await node.until(lambda: node.cancels)
        assert node.cancels[0].job_id == first.id
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)
        assert len(node.runs) == 1
        # Nobody joins what is being stopped.
        assert not record_of(gateway, (await gateway.create()).id).follows


@pytest.mark.parametrize("end", ["cancel", "delete"])
async def test_a_leader_that_is_gone_leaves_the_run_to_the_others(tmp_path, end):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, script=fakenode.held(before=2)) as gateway:
        first, second, third = [await gateway.create() for _ in range(3)]
        run = await node.run_at(0)
        own = asyncio.ensure_future(gateway.watched(first.id))
        watching = [asyncio.ensure_future(gateway.watched(v.id)) for v in (second, third)]
        log = gateway.core.lifetimes.get(first.id).log
        await gateway.until(lambda: log.spooled.size == 2048 and log.readers)
        await getattr(gateway.videos, end)(ME, first.id)
        assert kinds(await own)[-1] == "cancelled"
        # The first of those that are left pays.
        assert record_of(gateway, second.id).follows == ""
        assert record_of(gateway, third.id).follows == first.id
        fourth = await gateway.create()
        assert fourth.cache == SHARED
        run.go.set()
        for task in watching:
            assert data_of(await task) == VIDEO
        assert data_of(await gateway.watched(fourth.id)) == VIDEO
        assert len(node.runs) == 1
        assert not node.cancels
        paid = [(await gateway.videos.get(ME, v.id)).result for v in (second, third, fourth)]
        assert [result.gpu_seconds for result in paid] == [0.5, 0, 0]
        assert {result.cache for result in paid} == {SHARED}
        await node.until(lambda: node.releases)
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)


async def test_a_leader_without_readers_leaves_the_run_to_the_others(tmp_path):
    node = FakeNode("n0")
    runs = {"client_grace_s": 0.1}
    async with mesh(tmp_path, node, script=fakenode.held(), runs=runs) as gateway:
        first = await gateway.create(streamed=True)
        run = await node.run_at(0)
        kept = await gateway.create()
        await gateway.until(lambda: record_of(gateway, first.id).video.status == CANCELLED)
        assert (await gateway.watched(first.id))[-1].cancelled.reason == "disconnected"
        await gateway.until(lambda: record_of(gateway, kept.id).follows == "")
        run.go.set()
        assert data_of(await gateway.watched(kept.id)) == VIDEO
        assert not node.cancels


async def test_a_leader_past_its_deadline_leaves_the_run_to_the_others(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, script=fakenode.held()) as gateway:
        first = await gateway.create(deadline_s=0.3)
        run = await node.run_at(0)
        second = await gateway.create()
        assert (await gateway.watched(first.id))[-1].failed.code == "deadline_exceeded"
        run.go.set()
        assert data_of(await gateway.watched(second.id)) == VIDEO
        assert len(node.runs) == 1


async def test_a_node_that_was_told_less_time_than_there_is_now_is_asked_again(tmp_path):
    node = FakeNode("n0")

    async def overdue(run):
        yield run.started()
        await run.go.wait()
        yield run.event(cancelled=video_pb2.CancelledEvent(reason="deadline"))

    node.script.append(overdue)
    async with mesh(tmp_path, node, script=fakenode.finish()) as gateway:
        await gateway.create(deadline_s=30)
        run = await node.run_at(0)
        second = await gateway.create(deadline_s=60)
        run.go.set()
        assert data_of(await gateway.watched(second.id)) == VIDEO
        assert node.runs[1].request.deadline_s > 30


async def test_a_followers_deadline_is_its_own(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, script=fakenode.held()) as gateway:
        first = await gateway.create()
        run = await node.run_at(0)
        second = await gateway.create(deadline_s=0.2)
        assert (await gateway.watched(second.id))[-1].failed.code == "deadline_exceeded"
        run.go.set()
        assert data_of(await gateway.watched(first.id)) == VIDEO


async def test_the_failure_of_a_run_is_that_of_all_its_jobs(tmp_path):
    nodes = [FakeNode("n0"), FakeNode("n1")]
    async with mesh(tmp_path, *nodes, script=fakenode.held()) as gateway:
        videos = [await gateway.create() for _ in range(3)]
        for _ in range(2):
            await gateway.until(lambda: nodes[0].live or nodes[1].live)
            (run,) = [*nodes[0].live.values(), *nodes[1].live.values()]
            run.die.set()
            await run.ended.wait()
        for video in videos:
            assert (await gateway.watched(video.id))[-1].failed.code == "poison"
            found = await gateway.videos.get(ME, video.id)
            assert (found.status, found.attempts) == (FAILED, 2)
        assert sum(len(node.runs) for node in nodes) == 2


async def test_cancels_and_the_finish_have_one_winner_each(tmp_path):
    node = FakeNode("n0", slots=100)
    async with mesh(tmp_path, node, script=fakenode.held()) as gateway:
        outcomes = set()
        for index in range(30):
            videos = [await gateway.create(prompt=f"ball {index}") for _ in range(3)]
            run = await node.run_at(index)
            watching = [asyncio.ensure_future(gateway.watched(v.id)) for v in videos]
            await asyncio.sleep(0)
            run.go.set()
            for _ in range(index):
                await asyncio.sleep(0.0005)
            for video in videos[: 1 + index % 2]:
                await gateway.videos.cancel(ME, video.id)
            for video, task in zip(videos, watching, strict=True):
                events = await task
                record = await gateway.videos.get(ME, video.id)
                terminal = {COMPLETED: "completed", CANCELLED: "cancelled"}[record.status]
                assert kinds(events)[-1] == terminal
                if terminal == "completed":
                    assert data_of(events) == VIDEO
                outcomes.add((videos.index(video), terminal))
            assert (await gateway.videos.get(ME, videos[2].id)).status == COMPLETED
        assert {(0, "completed"), (0, "cancelled"), (2, "completed")} <= outcomes
        await gateway.until(lambda: gateway.metric("jobs_live") == 0)
        assert len(node.runs) == 30


# --- artifacts ---


async def test_each_job_has_an_artifact_of_its_own(tmp_path):
    node = FakeNode("n0")
    async with mesh(tmp_path, node, script=fakenode.held()) as gateway:
        first, second, third = [await gateway.create() for _ in range(3)]
        (await node.run_at(0)).go.set()
        for video in (first, second, third):
            await gateway.watched(video.id)
        folder = tmp_path / "gateway" / "artifacts" / "videos"
        files = {v.id: next((folder / v.id).iterdir()) for v in (first, second, third)}
        # Names of the same bytes, in a folder.
        assert len({file.stat().st_ino for file in files.values()}) == 1
        await gateway.videos.delete(ME, first.id)
        await gateway.until(lambda: not files[first.id].exists())
        with pytest.raises(errors.VideoNotFound):
            await gateway.videos.download(ME, first.id, offset=0)
        for video in (second, third):
            found = await gateway.videos.download(ME, video.id, offset=0)
            assert b"".join([data async for data in found.chunks]) == VIDEO
            assert data_of(await gateway.watched(video.id)) == VIDEO
        await gateway.videos.delete(ME, second.id)
        await gateway.videos.delete(ME, third.id)
        await gateway.until(lambda: not any(file.exists() for file in files.values()))


# --- who with whom ---


@pytest.mark.parametrize(
    ("mine", "theirs", "shared"),
    [
        (tenant_pb2.CACHE_SHARING_SHARED, tenant_pb2.CACHE_SHARING_SHARED, True),
        (tenant_pb2.CACHE_SHARING_SHARED, tenant_pb2.CACHE_SHARING_TENANT, False),
        (tenant_pb2.CACHE_SHARING_TENANT, tenant_pb2.CACHE_SHARING_SHARED, False),
        (tenant_pb2.CACHE_SHARING_UNSPECIFIED, tenant_pb2.CACHE_SHARING_UNSPECIFIED, False),
        (tenant_pb2.CACHE_SHARING_OFF, tenant_pb2.CACHE_SHARING_SHARED, False),
        (tenant_pb2.CACHE_SHARING_SHARED, tenant_pb2.CACHE_SHARING_OFF, False),
    ],
)
async def test_tenants_share_a_run_only_where_both_say_so(tmp_path, mine, theirs, shared):
    node = FakeNode("n0")
    policies = sharing(acme=mine, globex=theirs)
    async with mesh(tmp_path, node, script=fakenode.held(), policies=policies) as gateway:
        first = await gateway.create()
        second = await gateway.create(caller=OTHERS)
        await node.until(lambda: len(node.runs) == (1 if shared else 2))
        assert (second.cache == SHARED) == shared
        assert (record_of(gateway, second.id).follows == first.id) == shared
        with pytest.raises(errors.VideoNotFound):
            await gateway.videos.get(OTHERS, first.id)
        for run in node.runs:
            run.go.set()
        assert data_of(await gateway.watched(second.id, caller=OTHERS)) == VIDEO


async def test_a_tenant_without_a_cache_shares_not_even_with_itself(tmp_path):
    node = FakeNode("n0")
    policies = sharing(acme=tenant_pb2.CACHE_SHARING_OFF)
    async with mesh(tmp_path, node, script=fakenode.held(), policies=policies) as gateway:
        await gateway.create()
        second = await gateway.create()
        await node.run_at(1)
        assert second.cache == video_pb2.CACHE_STATUS_BYPASSED


async def test_a_tenant_that_shares_no_more_lets_nobody_join(tmp_path):
    node = FakeNode("n0")
    shared = tenant_pb2.CACHE_SHARING_SHARED
    policies = sharing(acme=shared, globex=shared)
    async with mesh(tmp_path, node, script=fakenode.held(), policies=policies) as gateway:
        await gateway.create()
        policies.replace([tenant_pb2.TenantPolicy(tenant="globex", cache_sharing=shared)])
        second = await gateway.create(caller=OTHERS)
        await node.run_at(1)
        assert second.cache == MISS
