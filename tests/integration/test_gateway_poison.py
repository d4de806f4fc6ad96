"""A job that kills workers: it runs alone once, harms nobody then, and is failed as poison."""

from __future__ import annotations

import asyncio

from reelmesh.v1 import video_pb2

from tests.support.fakeworker import fake_spec
from tests.support.gateways import ME, kinds
from tests.support.node_region import node_region
from tests.support.nodes import kind_of, run_request


def holding(region, video_id):
    """The node that holds a run of the video."""
    return next(
        (
            node
            for node in region.nodes
            if any(e.job_id == video_id for e in node.app.board.current.executions)
        ),
        None,
    )


async def test_a_job_that_kills_two_workers_is_poison_and_its_neighbours_live(tmp_path):
    async with node_region(tmp_path) as region:
        gateway = region.gateway
        # Each node works on something for two seconds.
        neighbours = [await gateway.create(prompt=f"slow {i}", steps=10) for i in range(2)]
        await gateway.until(lambda: all(holding(region, video.id) for video in neighbours))
        suspect = await gateway.create(prompt="slow die@4", steps=10)
        watching = asyncio.ensure_future(gateway.watched(suspect.id))
        await gateway.until(lambda: gateway.metric("node_failures_total", cause="worker_died"))
        # Its first worker is dead; the second try begins at the other node.
        await gateway.until(lambda: holding(region, suspect.id))
        node = holding(region, suspect.id)
        alone = node.app.table._jobs.get(suspect.id)
        assert alone.alone
        # Another gateway's job finds no place beside or behind it.
        (answer,) = await node.responses(run_request("of-another-gateway", spec=fake_spec()))
        assert answer.HasField("busy")
        events = await watching
        assert kinds(events)[-1] == "failed"
        failed = events[-1].failed
        assert (failed.code, failed.retryable) == ("poison", False)
        assert "ap-node-0" in failed.message
        assert "ap-node-1" in failed.message
        for video in neighbours:
            drawn = await gateway.watched(video.id)
            assert kinds(drawn)[-1] == "completed"
            assert (await gateway.videos.get(ME, video.id)).attempts == 1
        # Two workers, and not a third.
        assert sum(n.app.board.current.workers[0].restarts for n in region.nodes) == 2
        assert gateway.metric("node_ejections_total") == 0
        # The nodes go on.
        after = await gateway.create(prompt="after")
        assert kinds(await gateway.watched(after.id))[-1] == "completed"


async def test_the_causes_are_in_the_jobs_record(tmp_path):
    async with node_region(tmp_path) as region:
        gateway = region.gateway
        suspect = await gateway.create(prompt="die@1")
        await gateway.watched(suspect.id)
        record = gateway.core.lifetimes.get(suspect.id).record
        assert record.video.status == video_pb2.VIDEO_STATUS_FAILED
        assert [attempt.cause for attempt in record.attempts] == ["worker_died"] * 2
        assert len({attempt.node_id for attempt in record.attempts}) == 2


async def test_one_death_is_forgiven_and_the_second_try_has_a_worker_to_itself(tmp_path):
    """A worker killed from outside: the job is innocent, and ends on its lonely second try."""
    async with node_region(tmp_path) as region:
        gateway = region.gateway
        innocent = await gateway.create(prompt="slow", steps=10)
        await gateway.until(lambda: holding(region, innocent.id))
        first = holding(region, innocent.id)
        other = next(node for node in region.nodes if node is not first)
        neighbour = await gateway.create(prompt="slow neighbour", steps=15)
        await gateway.until(lambda: holding(region, neighbour.id) is other)
        await first.until(lambda s: any(e.running and e.progress for e in s.executions))
        first.launcher.handles[0].kill()
        await gateway.until(lambda: holding(region, innocent.id) is other)
        # It waits for the neighbour, unknown to the worker that it may kill.
        execution = other.app.table._jobs.get(innocent.id)
        assert execution.alone
        assert not execution.dispatched
        assert other.app.board.current.free_slots == 0
        drawn = await gateway.watched(neighbour.id)
        assert kinds(drawn)[-1] == "completed"
        events = await gateway.watched(innocent.id)
        assert kinds(events)[-1] == "completed"
        assert next(e.restarted.reason for e in events if e.HasField("restarted")) == "worker_died"
        events = await other.events(run_request("after"))
        assert kind_of(events[-1]) == "completed"
