"""Retries beyond the budget wait for it, whatever made them needed; none fails for it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from gateway.fleet import ejection
from gateway.fleet.ejection import RETRY_FLOOR, EjectionRules, Standing
from tests.support import fakenode
from tests.support.fakenode import FakeNode, serve_node
from tests.support.gateways import kinds, open_gateway

WINDOW_S = 1.0
JOBS = RETRY_FLOOR + 4

FAULTS = {
    "worker death": fakenode.fail("worker_died"),
    "node loss": fakenode.break_off(after=1),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_retries_beyond_the_budget_wait_and_are_not_lost(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(ejection, "RETRY_WINDOW_S", WINDOW_S)
    nodes = [FakeNode("n0", slots=50), FakeNode("n1", slots=50)]
    again_at_s = []

    async def once_only(run):
        """The first try fails, any other is noted and draws the video."""
        first = run.request.attempt == 1
        if not first:
            again_at_s.append(asyncio.get_running_loop().time())
        async for response in (FAULTS[fault] if first else fakenode.finish())(run):
            yield response

    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            node.default = once_only
            await stack.enter_async_context(serve_node(node))
        gateway = await stack.enter_async_context(open_gateway(tmp_path))
        await gateway.know(*nodes)
        for node in nodes:
            # Not what is looked at here.
            never = EjectionRules(failures_in_a_row=1000, min_runs=1000)
            gateway.core.fleet.link(node.node_id).standing = Standing(never)
        videos = [await gateway.create() for _ in range(JOBS)]
        for video in videos:
            events = await gateway.watched(video.id)
            assert kinds(events)[-1] == "completed"
            assert kinds(events).count("restarted") == 1
    assert len(again_at_s) == JOBS
    again_at_s.sort()
    # The floor of ten at once, and what is beyond it a window later.
    for earlier, later in zip(again_at_s, again_at_s[RETRY_FLOOR:], strict=False):
        assert later - earlier > WINDOW_S / 2
