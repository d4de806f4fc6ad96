"""Authenticated requests: how many a second, and how long one takes."""

from __future__ import annotations

from typing import Any

from reelmesh.v1 import video_service_pb2

from benchmarks.support import edge_calls, litellm_proxy
from benchmarks.support.edge_calls import Call
from benchmarks.support.edge_figures import (
    IN_FLIGHT,
    Load,
    completed,
    middle,
    quantile,
    rates,
    singly,
    video_of,
)
from benchmarks.support.edge_site import EdgeSite
from benchmarks.support.table import print_table
from benchmarks.support.talk import Child

# A page of a list holds so many.
LISTED = 20


async def measure(site: EdgeSite, client: Child, load: Load, *, litellm_pid: int) -> dict[str, Any]:
    """Creates, reads and lists by both edges, and by LiteLLM's proxy what it can."""
    token = site.tokens["busy"]
    for _ in range(LISTED):
        video_id = await video_of(client, edge_calls.create(site.http, token))
    await completed(client, site.http, token, video_id)
    calls: dict[str, Call] = {
        "create, HTTP": edge_calls.create(site.http, token),
        "get, HTTP": edge_calls.http(site.http, "GET", f"/v1/videos/{video_id}", token=token),
        "list, HTTP": edge_calls.http(site.http, "GET", "/v1/videos", token=token),
        "create, gRPC": edge_calls.rpc_create(site.grpc, token),
        "get, gRPC": edge_calls.rpc(
            site.grpc, "GetVideo", video_service_pb2.GetVideoRequest(video_id=video_id), token=token
        ),
        "list, gRPC": edge_calls.rpc(
            site.grpc, "ListVideos", video_service_pb2.ListVideosRequest(), token=token
        ),
    }
    pids = dict.fromkeys(calls, site.pid)
    if site.litellm:
        peer = await peer_calls(site, client)
        calls |= peer
        pids |= dict.fromkeys(peer, litellm_pid)
    # Before the rates, which leave a long list behind.
    single = await singly(client, calls, load.samples)
    # A create is answered before its video is made.
    settles = {"create, HTTP": site.http, "create, gRPC": site.http}
    found = await rates(client, calls, load, pids=pids, settles=settles)
    return {
        name: {**rate.figures(), "single_s": single[name], "row": rate.row()}
        for name, rate in found.items()
    }


async def peer_calls(site: EdgeSite, client: Child) -> dict[str, Call]:
    """The same of LiteLLM's proxy before the instant node's own process."""
    assert site.litellm is not None
    key = litellm_proxy.MASTER_KEY
    make = edge_calls.create(site.litellm, key, model=litellm_proxy.MODEL)
    video_id = await video_of(client, make)
    return {
        "create, LiteLLM": make,
        "get, LiteLLM": edge_calls.http(site.litellm, "GET", f"/v1/videos/{video_id}", token=key),
    }


def report(result: dict[str, Any], load: Load) -> None:
    """Prints the table and the ratios."""
    rows = []
    for name, told in result.items():
        single = told["single_s"]
        alone = f"{middle(single) * 1e3:.2f} / {quantile(single, 99) * 1e3:.2f}"
        rows.append([name, *told["row"], alone])
    print_table(
        f"Authenticated requests, one gateway process; {load.rounds} rounds of {load.seconds:g} s "
        f"with {IN_FLIGHT} in flight, and {load.samples} one at a time; ms",
        ["call", "a second", "p50", "p99", "cpu ms", "alone p50 / p99"],
        rows,
    )
    print("creates of the gateway with the making of their videos: its time and its CPU")
    for what in ("create", "get"):
        theirs = result.get(f"{what}, LiteLLM")
        if theirs:
            ours = result[f"{what}, HTTP"]
            ratio = middle(ours["per_s"]) / middle(theirs["per_s"])
            print(f"{what}s a second over HTTP, gateway / LiteLLM: {ratio:.1f} x")
