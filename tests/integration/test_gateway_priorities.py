"""Who goes first where machines are short, inside one gateway."""

import asyncio

import pytest
from reelmesh.v1 import tenant_pb2

from gateway.application import Caller
from gateway.errors import ResourceExhausted
from gateway.fleet.order import Standing
from gateway.tenants import TenantPolicies
from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import open_gateway

SCOPES = frozenset({"video:generate", "video:read"})
ACME, BORA = Caller("acme", "a", SCOPES), Caller("bora", "b", SCOPES)
BATCH = tenant_pb2.PRIORITY_BATCH
MODEL = ("fake-wan", "1")


@pytest.fixture
async def node():
    node = FakeNode("n0", slots=1, units_per_second=0.01)
    node.default = fakenode.held()
    async with serve_node(node), asyncio.timeout(30):
        yield node


async def run_order(node, count):
    """The prompts of the next runs, each of which ends when the next is to begin."""
    prompts = []
    for index in range(count):
        run = await node.run_at(index)
        prompts.append(run.request.spec.prompt)
        run.go.set()
    return prompts


async def test_interactive_first_then_tenants_in_turn_then_deadlines(node, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        await gateway.create(prompt="running")
        await node.run_at(0)
        for caller, prompt, options in (
            (ACME, "batch 1", {"priority": BATCH}),
            (ACME, "batch 2", {"priority": BATCH}),
            (BORA, "batch b", {"priority": BATCH}),
            (ACME, "late", {"deadline_s": 90_000}),
            (ACME, "whenever", {}),
            (ACME, "soon", {"deadline_s": 80_000}),
            (BORA, "b", {}),
        ):
            await gateway.create(caller=caller, prompt=prompt, **options)
        order = await run_order(node, 8)
        interactive, batch = order[1:5], order[5:]
        assert [prompt for prompt in interactive if prompt != "b"] == ["soon", "late", "whenever"]
        assert interactive.index("b") <= 1
        assert batch == ["batch 1", "batch b", "batch 2"]


async def test_a_run_that_a_more_urgent_job_shares_goes_as_that_one_would(node, tmp_path):
    async with open_gateway(tmp_path, cache={"enabled": True}) as gateway:
        await gateway.know(node)
        await gateway.create(prompt="running")
        await node.run_at(0)
        await gateway.create(prompt="first", priority=BATCH)
        await gateway.create(prompt="shared", priority=BATCH)
        await gateway.create(prompt="shared")
        assert gateway.core.waiting.ahead(MODEL, Standing(rank=1)) == 2
        assert (await run_order(node, 3))[1:] == ["shared", "first"]


async def test_weights_are_the_tenants_policies(node, tmp_path):
    policies = TenantPolicies()
    policies.replace([tenant_pb2.TenantPolicy(tenant="acme", weight=3.0)])
    async with open_gateway(tmp_path, policies=policies) as gateway:
        await gateway.know(node)
        await gateway.create(prompt="running")
        await node.run_at(0)
        for _ in range(6):
            await gateway.create(caller=BORA, prompt="b")
            await gateway.create(caller=ACME, prompt="a")
        order = await run_order(node, 9)
        assert order[1:].count("a") == 6


async def test_an_interactive_request_is_judged_by_what_goes_before_it(node, tmp_path):
    async with open_gateway(tmp_path) as gateway:
        await gateway.know(node)
        # 42 s of work each.
        await gateway.create(prompt="running")
        await node.run_at(0)
        for _ in range(12):
            await gateway.create(priority=BATCH, deadline_s=500.0)
        with pytest.raises(ResourceExhausted, match="passes the deadline of 500 s") as refused:
            await gateway.create(priority=BATCH, deadline_s=500.0)
        assert refused.value.retry_after_s > 500
        # Inside its tenant the earliest deadline goes first, and interactive before all of them.
        await gateway.create(priority=BATCH, deadline_s=100.0)
        await gateway.create(deadline_s=100.0)


async def test_a_queue_full_of_batch_jobs_takes_interactive_ones(node, tmp_path):
    runs = {"max_waiting": 10, "interactive_share": 0.3}
    async with open_gateway(tmp_path, runs=runs) as gateway:
        await gateway.know(node)
        await gateway.create(prompt="running")
        await node.run_at(0)
        for _ in range(7):
            await gateway.create(priority=BATCH)
        with pytest.raises(ResourceExhausted, match="7 videos wait already"):
            await gateway.create(priority=BATCH)
        for _ in range(3):
            await gateway.create()
        with pytest.raises(ResourceExhausted, match="10 videos wait already"):
            await gateway.create()
