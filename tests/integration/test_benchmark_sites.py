"""The sites of the benchmarks still start, and answer: nobody looks at them between releases."""

import asyncio
import random

import pytest

from benchmarks import overload
from benchmarks.support import edge_calls
from benchmarks.support.edge_figures import completed, idle, video_of
from benchmarks.support.edge_site import start_edge_site
from benchmarks.support.overload_history import violations
from benchmarks.support.overload_load import Crowd
from benchmarks.support.talk import child

pytestmark = pytest.mark.timeout(120)


async def test_the_edges_site_makes_a_video_and_refuses_a_forged_token(tmp_path):
    async with (
        start_edge_site(tmp_path, wanted=frozenset()) as site,
        child("benchmarks.support.edge_client", nice=0) as client,
        asyncio.timeout(60),
    ):
        token = site.tokens["busy"]
        video_id = await video_of(client, edge_calls.create(site.http, token))
        await completed(client, site.http, token, video_id)
        made = await client.ask("once", call=edge_calls.rpc_create(site.grpc, token))
        assert made["answer"] == "OK"
        await idle(client, site.http)
        forged = edge_calls.http(site.http, "GET", "/v1/videos", token=edge_calls.forged(token))
        assert (await client.ask("once", call=forged))["answer"] == "401"
        await site.limit("flood", per_s=1.0)
        backend = edge_calls.create(site.backend, "none", model="instant")
        assert (await client.ask("once", call=backend))["answer"] == "200"


async def test_the_overloaded_region_makes_what_is_asked_of_it(tmp_path):
    async with (
        overload.region(tmp_path) as site,
        Crowd(site.doors, site.tokens, rng=random.Random(1)) as crowd,
        asyncio.timeout(90),
    ):
        await crowd.offer(per_s=10.0, for_s=1.0)
        assert await crowd.answered(within_s=60.0)
        while await site.live_jobs():  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.1)
        standings = await crowd.standings()
        assert violations(crowd.history, standings) == []
        assert any(each.status == "completed" for each in standings.values())
