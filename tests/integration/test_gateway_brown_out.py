"""Under load a request of quality auto gets fewer steps, and is told so."""

import asyncio

import pytest
from reelmesh.v1 import tenant_pb2

from gateway.application import Caller
from gateway.edge_http.openai_objects import video_object
from gateway.errors import IdempotencyConflict
from gateway.tenants import TenantPolicies
from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import ME, open_gateway

CAREFUL = Caller("careful", "c", ME.scopes)
WAITS = {"on_wait_s": 500.0, "off_wait_s": 100.0, "full_wait_s": 1_000.0}


@pytest.fixture
async def node():
    node = FakeNode("n0", slots=1, units_per_second=0.01)
    node.default = fakenode.held()
    async with serve_node(node), asyncio.timeout(30):
        yield node


@pytest.fixture
async def gateway(node, tmp_path):
    policies = TenantPolicies()
    policies.replace([tenant_pb2.TenantPolicy(tenant="careful", min_steps_percent=90)])
    async with open_gateway(tmp_path, policies=policies, brown_out=WAITS) as gateway:
        await gateway.know(node)
        await gateway.create(prompt="running")
        await node.run_at(0)
        yield gateway


async def load(gateway, *, caller=ME):
    """209 s of work each."""
    for number in range(6):
        await gateway.create(caller=caller, prompt=f"load {number}", steps=20)


async def test_without_load_nothing_is_cut(gateway):
    video = await gateway.create(quality="auto", steps=20)
    assert (video.spec.steps, video.spec.unloaded_steps) == (20, 0)
    assert video_object(video)["brown_out"] is None
    assert gateway.metric("brown_out") == 0


async def test_under_load_auto_gets_fewer_steps_and_the_answer_says_which(gateway, node):
    await load(gateway)
    cut = await gateway.create(quality="auto", steps=20)
    assert (cut.spec.steps, cut.spec.unloaded_steps) == (10, 20)
    assert video_object(cut)["brown_out"] == {"steps": 10, "unloaded_steps": 20}
    plain = await gateway.create(steps=20)
    assert (plain.spec.steps, plain.spec.unloaded_steps) == (20, 0)
    assert gateway.metric("jobs_browned_out_total") == 1
    assert gateway.metric("brown_out") == 1
    # It is what the node draws.
    for run in range(8):
        (await node.run_at(run)).go.set()
    found = [run.request.spec.steps for run in node.runs if run.request.spec.quality == "auto"]
    assert found == [10]


async def test_a_tenant_keeps_the_steps_that_its_policy_says(gateway):
    await load(gateway, caller=CAREFUL)
    cut = await gateway.create(caller=CAREFUL, quality="auto", steps=20)
    assert (cut.spec.steps, cut.spec.unloaded_steps) == (18, 20)
    # Another's first job would not wait so long.
    free = await gateway.create(quality="auto", steps=20)
    assert free.spec.unloaded_steps == 0


async def test_a_key_is_of_the_request_and_not_of_what_was_made_of_it(gateway, node):
    first = await gateway.create(quality="auto", steps=20, idempotency_key="k")
    await load(gateway)
    again = await gateway.create(quality="auto", steps=20, idempotency_key="k")
    assert (again.id, again.spec.steps) == (first.id, 20)
    with pytest.raises(IdempotencyConflict):
        await gateway.create(quality="auto", steps=10, idempotency_key="k")


async def test_it_can_be_switched_off(node, tmp_path):
    async with open_gateway(tmp_path, brown_out={**WAITS, "enabled": False}) as gateway:
        await gateway.know(node)
        await load(gateway)
        assert (await gateway.create(quality="auto", steps=20)).spec.steps == 20


async def test_a_video_that_is_drawn_in_full_already_answers_instead(node, tmp_path):
    async with open_gateway(tmp_path, brown_out=WAITS, cache={"enabled": True}) as gateway:
        await gateway.know(node)
        await gateway.create(prompt="running")
        await node.run_at(0)
        await gateway.create(prompt="same", steps=20)
        await load(gateway)
        shared = await gateway.create(prompt="same", quality="auto", steps=20)
        assert (shared.spec.steps, shared.spec.unloaded_steps) == (20, 0)
