"""The gateway's edge: requests, refusals, what it adds, and downloads, each beside a peer.

``python -m benchmarks.edge [--only create|refuse|litellm|content] [--seconds 3] [--rounds 5]
[-o FILE]``

One gateway process on a real control plane and etcd, before a node that answers at once
(benchmarks/support/instant_node.py). The client is a process of its own, on a core of its
own where there are two; the gateway, and each peer in its turn, on another. What is measured:

create   creates, reads and lists with a token, over HTTP and gRPC: a second, and how long
refuse   refusals a second; then floods of them at half of that rate, beside which another
         tenant's p99 must stay within 1.2 times its value alone
litellm  what a create takes longer than at the backend itself, through the gateway and
         through LiteLLM's proxy in front of the same process
content  downloads beside nginx with sendfile on the same file, at least 0.8 times its rate

LiteLLM's proxy is installed into a cache folder at the first run; nginx is your system's.
Where one of them is missing, it says so and leaves out what needs it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import idle_delay
from benchmarks.support import edge_added, edge_content, edge_refusals, edge_requests
from benchmarks.support.edge_figures import Load
from benchmarks.support.edge_site import EdgeSite, cores, start_edge_site
from benchmarks.support.talk import Child, child

SECTIONS = ("create", "refuse", "litellm", "content")
PEERS = {"create": {"litellm"}, "refuse": {"litellm"}, "litellm": {"litellm"}, "content": {"nginx"}}
CLIENT = "benchmarks.support.edge_client"


async def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Starts the site, runs what was asked for and prints it."""
    asked = tuple(args.only) or SECTIONS
    wanted = frozenset().union(*(PEERS[section] for section in asked))
    load = Load(seconds=args.seconds, rounds=args.rounds, samples=args.samples)
    _, client_core = cores()
    results: dict[str, Any] = {"machine": str(idle_delay())}
    print(f"this machine, idle: {results['machine']}", flush=True)
    if client_core < 0:
        print("there is one core: gateway and client share it")
    async with contextlib.AsyncExitStack() as stack:
        site = await stack.enter_async_context(start_edge_site(folder, wanted=wanted))
        for name, why in site.missing.items():
            print(f"{name} cannot be had, and what needs it is left out: {why}")
        of_core = (f"--core={client_core}",)
        client = await stack.enter_async_context(child(CLIENT, *of_core, nice=0))
        # Behind the one that measures, with which it shares a core.
        flooder = await stack.enter_async_context(child(CLIENT, *of_core, nice=10))
        for section in asked:
            result = await _section(section, site, client, flooder, load)
            if result is not None:
                results[section] = result
    return results


async def _section(
    section: str, site: EdgeSite, client: Child, flooder: Child, load: Load
) -> dict[str, Any] | None:
    litellm_pid = site.litellm_pid
    if section == "create":
        result = await edge_requests.measure(site, client, load, litellm_pid=litellm_pid)
        edge_requests.report(result, load)
    elif section == "refuse":
        result = await edge_refusals.measure(site, client, flooder, load, litellm_pid=litellm_pid)
        edge_refusals.report(result)
    elif section == "litellm":
        if site.litellm is None:
            return None
        result = await edge_added.measure(site, client, load)
        edge_added.report(result)
    else:
        if site.nginx is None:
            return None
        result = await edge_content.measure(site, client, load)
        edge_content.report(result)
    return result


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=SECTIONS, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=3.0, help="of one round of one call")
    parser.add_argument("--rounds", type=int, default=5, help="2 or more")
    parser.add_argument("--samples", type=int, default=200, help="single calls, one at a time")
    parser.add_argument("-o", "--output", type=Path, help="writes the figures as JSON")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds must be 2 or more: a spread needs two figures")
    with tempfile.TemporaryDirectory(prefix="reelmesh-bench-") as folder:
        results = asyncio.run(measure(args, Path(folder)))
    if args.output:
        args.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
