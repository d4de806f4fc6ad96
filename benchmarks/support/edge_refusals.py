"""Requests that are refused: how many a second, and what a flood of them does to others."""

from __future__ import annotations

from typing import Any

from reelmesh.v1 import video_service_pb2

from benchmarks.support import edge_calls, litellm_proxy
from benchmarks.support.edge_calls import ANY_ADDRESS, Call
from benchmarks.support.edge_figures import (
    Load,
    completed,
    middle,
    quantile,
    rates,
    video_of,
)
from benchmarks.support.edge_site import EdgeSite
from benchmarks.support.table import print_table
from benchmarks.support.talk import Child

# Documentation addresses (RFC 5737): nobody else's.
ONE_ADDRESS = "203.0.113.7"
RATE_PER_S = 1.0
# What another tenant does meanwhile.
QUIET_PER_S = {"read": 40.0, "create": 10.0}
# Of the capacity; the aim is for the first.
FLOOD_SHARES = (0.5, 0.25)
AIM = 1.2
FLOODS = (
    "HTTP, a tenant over its rate",
    "HTTP, an address refused too often",
    "HTTP, forged token",
)
# Each condition of a round lasts so many times as long as a measure of a rate.
LONGER = 2

Kind = tuple[Call, frozenset[str]]


async def measure(
    site: EdgeSite, client: Child, flooder: Child, load: Load, *, litellm_pid: int
) -> dict[str, Any]:
    """The capacity of each kind of refusal; then floods at half of it."""
    kinds = _kinds(site)
    over_rate = await _over_its_rate(site, client)
    kinds |= over_rate
    found = await rates(
        client,
        {name: call for name, (call, _) in kinds.items()},
        load,
        pids={name: litellm_pid if "LiteLLM" in name else site.pid for name in kinds},
        expect={name: expected for name, (_, expected) in kinds.items()},
    )
    floods = {}
    for name in FLOODS:
        for share in FLOOD_SHARES if name in kinds else ():
            per_s = middle(found[name].per_s) * share
            flood = {"call": kinds[name][0], "per_s": per_s}
            floods[f"{name}, {share:g}"] = await _flood(site, client, flooder, load, flood)
    return {
        "capacity": {name: {**rate.figures(), "row": rate.row()} for name, rate in found.items()},
        "floods": floods,
        "by_rate": bool(over_rate),
    }


def _kinds(site: EdgeSite) -> dict[str, Kind]:
    """What is refused, and how. A new address each time, where the door is not to notice."""
    bad = edge_calls.forged(site.tokens["flood"])
    listing = video_service_pb2.ListVideosRequest()

    def by_http(token: str | None, address: str) -> Call:
        return edge_calls.http(site.http, "GET", "/v1/videos", token=token, from_address=address)

    def by_grpc(token: str | None, address: str) -> Call:
        return edge_calls.rpc(site.grpc, "ListVideos", listing, token=token, from_address=address)

    door = frozenset({"429", "401"}), frozenset({"too_many_refusals", "bad_signature"})
    kinds: dict[str, Kind] = {
        "HTTP, no token": (by_http(None, ANY_ADDRESS), frozenset({"401"})),
        "HTTP, forged token": (by_http(bad, ANY_ADDRESS), frozenset({"401"})),
        "HTTP, an address refused too often": (by_http(bad, ONE_ADDRESS), door[0]),
        "gRPC, no token": (by_grpc(None, ANY_ADDRESS), frozenset({"missing_token"})),
        "gRPC, forged token": (by_grpc(bad, ANY_ADDRESS), frozenset({"bad_signature"})),
        "gRPC, an address refused too often": (by_grpc(bad, ONE_ADDRESS), door[1]),
    }
    if site.litellm:
        wrong = edge_calls.http(
            site.litellm, "GET", "/v1/videos", token=f"{litellm_proxy.MASTER_KEY}-wrong"
        )
        kinds["HTTP, a wrong key at LiteLLM"] = (wrong, frozenset({"400", "401", "403"}))
    return kinds


async def _over_its_rate(site: EdgeSite, client: Child) -> dict[str, Kind]:
    """A tenant that asks more often than its policy lets it; nothing where rates are not kept."""
    await site.limit("flood", per_s=RATE_PER_S)
    token = site.tokens["flood"]
    by_http = edge_calls.http(site.http, "GET", "/v1/videos", token=token)
    for _ in range(20):
        # A policy is followed within a second.
        flow = {"call": by_http, "per_s": 50.0}
        told = await client.ask("open", flows={"flood": flow}, seconds=0.2)
        if "429" in told["flood"]["answers"]:
            listing = video_service_pb2.ListVideosRequest()
            by_grpc = edge_calls.rpc(site.grpc, "ListVideos", listing, token=token)
            return {
                "HTTP, a tenant over its rate": (by_http, frozenset({"429", "200"})),
                "gRPC, a tenant over its rate": (
                    by_grpc,
                    frozenset({"OK", "quota_requests"}),
                ),
            }
    return {}


async def _flood(
    site: EdgeSite, client: Child, flooder: Child, load: Load, flood: dict[str, Any]
) -> dict[str, Any]:
    """Another tenant's latencies, alone and beside the flood, in turn."""
    quiet = await _quiet(site, client)
    seconds = load.seconds * LONGER
    found: dict[str, list[list[float]]] = {}
    answers: dict[str, int] = {}
    for _ in range(load.rounds):
        _take(found, "alone", await client.ask("open", flows=quiet, seconds=seconds))
        # Begun before and ended after what is measured.
        begun = flooder.begin("open", flows={"flood": flood}, seconds=seconds + 1.0)
        _take(found, "flooded", await client.ask("open", flows=quiet, seconds=seconds))
        for name, count in (await begun)["flood"]["answers"].items():
            answers[name] = answers.get(name, 0) + count
    return {
        "per_s": flood["per_s"],
        "sent_per_s": sum(answers.values()) / (load.rounds * (seconds + 1.0)),
        "answers": answers,
        "p99_s": {name: [quantile(each, 99) for each in rounds] for name, rounds in found.items()},
    }


async def _quiet(site: EdgeSite, client: Child) -> dict[str, Any]:
    token = site.tokens["quiet"]
    make = edge_calls.create(site.http, token)
    video_id = await video_of(client, make)
    await completed(client, site.http, token, video_id)
    read = edge_calls.http(site.http, "GET", f"/v1/videos/{video_id}", token=token)
    calls = {"read": read, "create": make}
    return {name: {"call": calls[name], "per_s": per_s} for name, per_s in QUIET_PER_S.items()}


def _take(found: dict[str, list[list[float]]], when: str, told: dict[str, Any]) -> None:
    for name, flow in told.items():
        if flow["answers"].keys() != {"200"}:
            raise RuntimeError(f"the quiet tenant was answered {flow['answers']}")
        found.setdefault(f"{name} {when}", []).append(flow["latencies_s"])


def report(result: dict[str, Any]) -> None:
    """Prints both tables."""
    print_table(
        "Refused requests, one gateway process; ms",
        ["refused", "a second", "p50", "p99", "cpu ms"],
        [[name, *told["row"]] for name, told in result["capacity"].items()],
    )
    theirs = result["capacity"].get("HTTP, a wrong key at LiteLLM")
    if theirs:
        ours = result["capacity"]["HTTP, forged token"]
        ratio = middle(ours["per_s"]) / middle(theirs["per_s"])
        print(f"refusals a second, gateway / LiteLLM: {ratio:.1f} x")
    if not result["by_rate"]:
        print("a tenant over its rate was not refused: this gateway keeps no rates")
    rows = []
    for flood, told in result["floods"].items():
        for name in QUIET_PER_S:
            alone, flooded = (middle(told["p99_s"][f"{name} {w}"]) for w in ("alone", "flooded"))
            cells = [f"{told['per_s']:.0f} ({told['sent_per_s']:.0f})", name]
            cells += [f"{alone * 1e3:.2f}", f"{flooded * 1e3:.2f}", f"{flooded / alone:.2f} x"]
            rows.append([flood, *cells, "met" if flooded / alone <= AIM else "missed"])
    print_table(
        "Floods at a share of that capacity, and another tenant's reads and creates beside them "
        f"({', '.join(f'{rate:g} {name}s' for name, rate in QUIET_PER_S.items())} a second); "
        f"p99 in ms, median of the rounds; aim: {AIM} x at {FLOOD_SHARES[0]:g}",
        ["flood", "asked (sent) a second", "of", "alone", "beside it", "ratio", "aim"],
        rows,
    )
