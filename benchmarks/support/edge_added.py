"""What the gateway adds to a backend, beside LiteLLM's proxy in front of the same one."""

from __future__ import annotations

from typing import Any

from benchmarks.support import edge_calls
from benchmarks.support.edge_figures import Load, middle, quantile, singly
from benchmarks.support.edge_requests import peer_calls
from benchmarks.support.edge_site import EdgeSite
from benchmarks.support.table import Spread, print_table
from benchmarks.support.talk import Child


async def measure(site: EdgeSite, client: Child, load: Load) -> dict[str, Any]:
    """Seconds of single creates: to the backend itself, and through each of the two."""
    calls = {
        "backend": edge_calls.create(site.backend, "none", model="instant"),
        "gateway": edge_calls.create(site.http, site.tokens["busy"]),
        "LiteLLM": (await peer_calls(site, client))["create, LiteLLM"],
    }
    return await singly(client, calls, load.samples)


def report(result: dict[str, Any]) -> None:
    """Prints both added latencies."""
    base = middle(result["backend"])
    rows = [
        [
            name,
            Spread.of(samples).text(scale=1e3),
            f"{quantile(samples, 99) * 1e3:.2f}",
            f"{(middle(samples) - base) * 1e3:+.2f}",
        ]
        for name, samples in result.items()
    ]
    print_table(
        f"A create over HTTP, {len(result['backend'])} each way in turn; ms: median [p10 … p90]",
        ["way", "latency", "p99", "added"],
        rows,
    )
    ours, theirs = (middle(result[name]) - base for name in ("gateway", "LiteLLM"))
    verdict = "met" if ours < theirs else "missed"
    print(
        f"added latency, gateway / LiteLLM: {ours / theirs:.2f} x (aim: below 1; {verdict}). The "
        "gateway's create is durable: its record is in etcd before the answer."
    )
