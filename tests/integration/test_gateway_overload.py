"""A region that is asked for far more than it can do keeps every promise that it makes.

``python -m benchmarks.overload`` has the figures; here nothing depends on speed.
"""

import asyncio
import contextlib
import random
from collections import Counter

import pytest

from benchmarks.support.overload_history import ENDED, violations
from benchmarks.support.overload_load import Crowd, Door
from benchmarks.support.slot_node import SlotNode, serve
from reelkit.tasks import TaskScope
from tests.support.controlplanes import REGION
from tests.support.etcd import EtcdProcess
from tests.support.gateway_region import acquainted
from tests.support.tenants import operated_region

pytestmark = pytest.mark.timeout(180)

NODES, SLOTS = 2, 2
MAX_WAITING = 12
OFFERED_PER_S, FOR_S = 80.0, 8.0
PATIENCE_S = 60.0


@pytest.fixture
async def etcd(tmp_path):
    member = EtcdProcess(tmp_path / "etcd")
    await member.start()
    yield member
    member.kill()


@contextlib.asynccontextmanager
async def slot_nodes(region, count):
    """Nodes of two slots, each held for a quarter of a second."""
    nodes = [SlotNode(f"slots-{number}", slots=SLOTS, hold_s=0.25) for number in range(count)]
    async with TaskScope("nodes") as scope:
        for node in nodes:
            scope.spawn(
                serve(node, control_plane=region.control.address, region=REGION), name=node.name
            )
        yield nodes


async def longest(members, seen):
    """Looks at every queue until it is cancelled; notes the most that was in one."""
    while True:
        seen["waiting"] = max(seen["waiting"], *(len(m.core.waiting) for m in members))
        await asyncio.sleep(0.005)


async def test_refusals_have_a_delay_queues_a_bound_and_what_was_taken_ends(tmp_path, etcd):
    async with contextlib.AsyncExitStack() as stack:
        region, operators = await stack.enter_async_context(
            operated_region(tmp_path, etcd.endpoint, nodes=0)
        )
        await stack.enter_async_context(slot_nodes(region, NODES))
        members = [await region.start(name, runs={"max_waiting": MAX_WAITING}) for name in "ab"]
        await acquainted(*members)
        for member in members:
            await member.until(lambda m=member: m.core.fleet.ready_workers == SLOTS * NODES)
        # One of them may have far less than it asks for.
        policy = await operators.set("globex", concurrent_jobs=4, queued_jobs=2)
        for member in members:
            await member.until(lambda m=member: m.policy("globex").revision == policy.revision)
        doors = [Door(f"http://{m.app.http_address}", m.app.grpc_address) for m in members]
        tokens = {name: region.issuer.issue(tenant=name) for name in ("acme", "globex", "initech")}
        crowd = await stack.enter_async_context(Crowd(doors, tokens, rng=random.Random(7)))
        watching = await stack.enter_async_context(TaskScope("watching"))
        seen = {"waiting": 0}
        watching.spawn(longest(members, seen), name="queues")
        await crowd.offer(per_s=OFFERED_PER_S, for_s=FOR_S)
        assert await crowd.answered(within_s=PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while any(member.core.lifetimes.live for member in members):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        standings = await crowd.standings()
        assert violations(crowd.history, standings) == []
        assert {each.status for each in standings.values()} <= set(ENDED)
        # The load was one: much was refused, and much was done.
        assert sum(bool(each.refused) for each in crowd.history) > 50
        assert sum(each.status == "completed" for each in standings.values()) > 20
        # A job that a full node gave back stands in the line again, beyond those let in.
        refusals = Counter(each.refused.split()[-1] for each in crowd.history if each.refused)
        assert refusals["resource_exhausted"], refusals
        # Which of its two limits is met first is a matter of speed.
        assert refusals["quota_concurrent_jobs"] + refusals["quota_queued_jobs"], refusals
        assert seen["waiting"] <= MAX_WAITING + 2 * SLOTS * NODES
        assert not any(len(member.core.waiting) for member in members)
